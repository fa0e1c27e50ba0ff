"""A checkpoint with its encoders: prompt, reference or both, sizes, an image to begin with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from dittool.errors import BadDataError, UsageError
from dittool.sampling.latents import sample_latents
from dittool.sampling.pipeline import Pipeline


@pytest.fixture
def pipeline(checkpoint):
    """With weights that act: after eight steps the gates are still nearly closed."""
    pipeline = Pipeline.load(checkpoint)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in pipeline.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return pipeline


def test_it_uses_the_ema_weights(checkpoint):
    saved = torch.load(checkpoint, weights_only=True)
    model = Pipeline.load(checkpoint).model.state_dict()
    assert all(torch.equal(model[name], saved["ema"][name]) for name in model)
    assert any(not torch.equal(model[name], saved["model"][name]) for name in model)


def test_prompt_reference_and_both_give_three_images(pipeline, tiny_shards):
    reference = pipeline.encode_reference(min(tiny_shards.images.glob("*.png")))
    size = (128, 128)
    images = [pipeline.generate(*what, 1, 0, size)[0] for what in (("a red circle", None), (None, reference), ("a red circle", reference))]
    assert all(image.shape == (128, 128, 3) for image in images)
    assert all(np.abs(a.astype(int) - b).max() > 3 for i, a in enumerate(images) for b in images[:i])


def test_an_image_depends_on_its_seed_and_not_on_its_neighbours(pipeline):
    batch = pipeline.generate("a red circle", None, 3, seed=5)
    alone = pipeline.generate("a red circle", None, 1, seed=6)
    assert np.abs(batch[1].astype(int) - alone[0]).max() <= 1
    assert np.abs(batch[0].astype(int) - batch[1]).max() > 3


def test_the_size_is_the_references_bucket_unless_it_is_asked_for(pipeline, tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "wide.png")
    reference = pipeline.encode_reference(tmp_path / "wide.png")
    assert pipeline.sample_size(None, reference).name == "160x112"
    assert pipeline.sample_size(None, None).name == "128x128"
    assert pipeline.sample_size((64, 96), reference).name == "64x96"
    assert pipeline.generate(None, reference, 1, 0, (96, 64))[0].shape == (64, 96, 3)
    with pytest.raises(UsageError, match="multiples of 16"):
        pipeline.sample_size((100, 100), None)
    with pytest.raises(UsageError, match="at most 67,108,864"):
        pipeline.sample_size((160_000, 160_000), None)


def test_an_image_to_begin_with_is_kept_the_more_the_lower_the_strength(pipeline):
    picture = np.full((90, 130, 3), (200, 40, 40), np.uint8)
    bucket = pipeline.sample_size(None, None, picture)
    assert bucket.name == "160x112", "its own bucket"
    init, noise = pipeline.encode_init(picture, bucket), pipeline.noise(bucket, [0])
    conditions = pipeline.conditions("a blue square", None, bucket, 1)

    def drawn(strength):
        return pipeline.latents(conditions, noise, None, init, strength)

    torch.testing.assert_close(drawn(0.0)[0], init)
    torch.testing.assert_close(drawn(1.0), pipeline.latents(conditions, noise))
    away = [float((drawn(strength)[0] - init).norm()) for strength in (0.0, 0.2, 0.5, 1.0)]
    assert away == sorted(away) and away[1] > 0


def test_branches_in_one_batch_are_the_branches_one_by_one(pipeline, tiny_shards):
    reference = pipeline.encode_reference(min(tiny_shards.images.glob("*.png")))
    bucket = pipeline.sample_size(None, reference)
    conditions, noise = pipeline.conditions("a red circle", reference, bucket, 2), pipeline.noise(bucket, [0, 1])

    def one_step(**changes):
        settings = dataclasses.replace(pipeline.settings, steps=1, **changes)
        return sample_latents(pipeline.model, conditions, noise, settings) - noise

    none, text, dino = (one_step(cfg_text=a, cfg_dino=b) for a, b in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    torch.testing.assert_close(one_step(cfg_text=3.0, cfg_dino=2.0), none + 3 * (text - none) + 2 * (dino - none), rtol=1e-4, atol=1e-4)


def test_an_encoder_with_other_weights_than_in_training_is_refused(pipeline):
    pipeline.data.identity["encoders"]["text"]["weights"] = "0" * 64
    with pytest.raises(BadDataError, match="trained with 000000000000"):
        pipeline.encode_prompts(["a red circle"])
