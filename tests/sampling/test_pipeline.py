"""Sampling with a checkpoint: prompt, reference or both, each image a function of its own seed and settings."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dittool.errors import BadDataError, UsageError
from dittool.sampling.draw import SETTINGS_KEY, DrawRequest, draw
from dittool.sampling.latents import sample_latents
from dittool.sampling.pipeline import Pipeline


@pytest.fixture(scope="module")
def checkpoint(tiny_run):
    return tiny_run / "checkpoints" / "checkpoint_final.pt"


@pytest.fixture
def pipeline(checkpoint):
    """With weights that act: after eight steps the gates are still nearly closed."""
    pipeline = Pipeline.load(checkpoint)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in pipeline.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return pipeline


def request(checkpoint, **changes):
    plain = DrawRequest(checkpoint, "a red circle", None, count=1, seed=0, size=None, changes={})
    return dataclasses.replace(plain, **changes)


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


def test_branches_in_one_batch_are_the_branches_one_by_one(pipeline, tiny_shards):
    reference = pipeline.encode_reference(min(tiny_shards.images.glob("*.png")))
    bucket = pipeline.sample_size(None, reference)
    conditions, noise = pipeline.conditions("a red circle", reference, bucket, 2), pipeline.noise(bucket, [0, 1])

    def one_step(**changes):
        settings = dataclasses.replace(pipeline.settings, steps=1, **changes)
        return sample_latents(pipeline.model, conditions, noise, settings) - noise

    none, text, dino = (one_step(cfg_text=a, cfg_dino=b) for a, b in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    torch.testing.assert_close(one_step(cfg_text=3.0, cfg_dino=2.0), none + 3 * (text - none) + 2 * (dino - none), rtol=1e-4, atol=1e-4)


def test_the_settings_travel_inside_the_png(checkpoint, tiny_shards, tmp_path):
    reference = min(tiny_shards.images.glob("*.png"))
    drawn = draw(request(checkpoint, reference=reference, count=2, seed=7, changes={"steps": 3, "cfg_text": 1.5}), tmp_path)
    assert [image.path.name for image in drawn] == ["sample_seed000007.png", "sample_seed000008.png"]
    inside = json.loads(Image.open(drawn[1].path).text[SETTINGS_KEY])
    assert inside == json.loads(json.dumps(drawn[1].settings))
    assert (inside["seed"], inside["steps"], inside["cfg_text"], inside["prompt"], inside["weights"]) == (8, 3, 1.5, "a red circle", "ema")
    assert inside["reference_sha256"] and inside["checkpoint_sha256"]


def test_the_same_settings_draw_the_same_bytes(checkpoint, tmp_path):
    first, second = (draw(request(checkpoint), tmp_path / name)[0].path for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()


def test_one_file_for_several_images_is_refused(checkpoint, tmp_path):
    with pytest.raises(UsageError, match="one file for 2 images"):
        draw(request(checkpoint, count=2), tmp_path / "a.png")


def test_a_reference_that_is_no_image_is_named(checkpoint, tmp_path):
    (tmp_path / "page.png").write_text("<html>")
    with pytest.raises(BadDataError, match=r"page\.png"):
        draw(request(checkpoint, reference=tmp_path / "page.png"), tmp_path)


def test_an_encoder_with_other_weights_than_in_training_is_refused(pipeline):
    pipeline.data.identity["encoders"]["text"]["weights"] = "0" * 64
    with pytest.raises(BadDataError, match="trained with 000000000000"):
        pipeline.encode_prompts(["a red circle"])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "neither --prompt nor --ref"),
        (["--prompt", "x", "--ref", "missing.png"], 2, "missing.png"),
        (["--prompt", "x", "--size", "100"], 2, "WIDTHxHEIGHT"),
        (["--prompt", "x", "--solver", "magic"], 2, "magic"),
        (["--prompt", "x", "--checkpoint", "nothing.pt"], 2, "nothing.pt"),
    ],
)
def test_wrong_options_are_told_in_one_line(dit, arguments, code, said):
    outcome = dit("sample", *arguments)
    assert outcome.code == code and said in outcome.err and "Traceback" not in outcome.err
