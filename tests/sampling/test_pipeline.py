"""A checkpoint with its encoders: prompt, reference or both, sizes, an image to begin with."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dittool import load
from dittool.ckpt.files import save_checkpoint
from dittool.ckpt.inspect import export_safetensors
from dittool.ckpt.weights import load_weights
from dittool.data.source.images import fit_to_bucket
from dittool.errors import BadDataError, UsageError
from dittool.geometry import Bucket, nearest_bucket
from dittool.sampling.latents import TextFeatures, sample_latents
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


def furthest(one, other):
    """The largest difference of two pictures, of 255."""
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


def test_it_uses_the_ema_weights(checkpoint):
    saved = torch.load(checkpoint, weights_only=True)
    model = Pipeline.load(checkpoint).model.state_dict()
    assert all(torch.equal(model[name], saved["ema"][name]) for name in model)
    assert any(not torch.equal(model[name], saved["model"][name]) for name in model)


def test_prompt_reference_and_both_give_three_images(pipeline, tiny_shards):
    reference = min(tiny_shards.images.glob("*.png"))
    asked = ({"prompt": "a red circle"}, {"reference": reference}, {"prompt": "a red circle", "reference": reference})
    images = [pipeline(**what, size=(128, 128))[0] for what in asked]
    assert all(image.size == (128, 128) for image in images)
    assert all(furthest(a, b) > 3 for i, a in enumerate(images) for b in images[:i])


def test_an_image_depends_on_its_seed_and_not_on_its_neighbours(pipeline):
    batch = pipeline("a red circle", count=6, seed=5)
    alone = pipeline("a red circle", seed=10)
    assert furthest(batch[5], alone[0]) <= 1
    assert furthest(batch[0], batch[5]) > 3


def test_the_size_is_the_references_bucket_unless_it_is_asked_for(pipeline, tmp_path):
    Image.new("RGB", (300, 200), "red").save(tmp_path / "wide.png")
    reference = pipeline.encode_reference(tmp_path / "wide.png")
    assert pipeline.sample_size(None, reference).name == "160x112"
    assert pipeline.sample_size(None, None).name == "128x128"
    assert pipeline.sample_size((64, 96), reference).name == "64x96"
    assert pipeline(reference=reference, size="96x64")[0].size == (96, 64)
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
        settings = pipeline.settings.changed({"steps": 1, **changes})
        return sample_latents(pipeline.model, conditions, noise, settings) - noise

    none, text, dino = (one_step(cfg_text=a, cfg_dino=b) for a, b in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    torch.testing.assert_close(
        one_step(cfg_text=3.0, cfg_dino=2.0), none + 3 * (text - none) + 2 * (dino - none), rtol=1e-4, atol=1e-4
    )


def test_an_encoder_with_other_weights_than_in_training_is_refused(pipeline):
    card = pipeline.data.card
    other = card.with_encoder(dataclasses.replace(card.text, weights="0" * 64))
    pipeline.data = dataclasses.replace(pipeline.data, identity=other)
    with pytest.raises(BadDataError, match="trained with 000000000000"):
        pipeline.encode_prompts(["a red circle"])


def test_a_negative_prompt_stands_where_the_dropped_caption_had_its_null(pipeline, tiny_shards):
    """v = v(n, ∅) + s_text·(v(text, ∅) − v(n, ∅)) + s_dino·(v(n, dino) − v(n, ∅)), each computed on its own."""
    reference = pipeline.encode_reference(min(tiny_shards.images.glob("*.png")))
    bucket = pipeline.sample_size(None, reference)
    noise = pipeline.noise(bucket, [0, 1])

    def one_step(prompt, seen, **changes):
        settings = pipeline.settings.changed({"steps": 1, **changes})
        conditions = pipeline.conditions(prompt, seen, bucket, 2)
        return sample_latents(pipeline.model, conditions, noise, settings) - noise

    text = one_step("a red circle", None, cfg_text=1.0)
    avoided = one_step("a blue square", None, cfg_text=1.0)
    both = {"cfg_text": 1.0, "cfg_dino": 1.0, "guidance_interval": (0.0, 0.0)}  # outside of it: v(text, dino)
    avoided_and_seen = one_step("a blue square", reference, **both)
    settings = pipeline.settings.changed({"steps": 1, "cfg_text": 3.0, "cfg_dino": 2.0})
    negative = TextFeatures(*pipeline.encode_prompts(["a blue square"])).expand(2)
    conditions = pipeline.conditions("a red circle", reference, bucket, 2)
    found = sample_latents(pipeline.model, conditions, noise, settings, negative=negative) - noise
    expected = avoided + 3 * (text - avoided) + 2 * (avoided_and_seen - avoided)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# From Python


def test_prompts_arrays_and_an_image_to_begin_with_serve_as_on_the_command_line(pipeline, tiny_shards):
    path = min(tiny_shards.images.glob("*.png"))
    array = np.array(Image.open(path).convert("RGB"))
    few = {"steps": 1}
    each = pipeline(["a red circle", "a blue square"], reference=array, count=2, **few)
    alone = pipeline("a blue square", reference=path, count=2, **few)
    assert len(each) == 4 and np.array_equal(each[2], alone[0])
    kept = pipeline("a red circle", init=array, strength=0.0, **few)[0]
    fresh = pipeline("a red circle", size=kept.size, **few)[0]
    fitted, _ = fit_to_bucket(array, Bucket(*kept.size))
    assert furthest(kept, fitted) < furthest(fresh, fitted)
    avoiding = pipeline("a red circle", size=kept.size, negative="a blue square", **few)[0]
    assert not np.array_equal(avoiding, fresh)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": (0, 0)}, "size (0, 0)"),
        ({"size": (-64, 64)}, "size (-64, 64)"),
        ({"size": (64,)}, "size (64,)"),
        ({"size": 64}, "size 64"),
        ({"prompt": []}, "prompt []"),
        ({"prompt": 3}, "prompt 3"),
        ({"prompt": ["a", None]}, "prompt ['a', None]"),
        ({"count": 1.5}, "count 1.5"),
        ({"seed": -1}, "seed -1"),
        ({"strength": 0.5}, "strength has no effect without init"),
        ({"init": np.zeros((8, 8, 3), np.uint8), "strength": 2.0}, "strength 2 is outside"),
        ({"reference": np.zeros((3, 64, 64), np.float32)}, "an array of shape (3, 64, 64) and type float32"),
        ({"label": "red-circle"}, "label"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(pipeline, arguments, said):
    with pytest.raises(UsageError) as raised:
        pipeline(**{"prompt": "a red circle", **arguments})
    assert said in raised.value.message


def test_an_exported_file_draws_what_its_checkpoint_draws(checkpoint, tmp_path):
    export_safetensors(checkpoint, tmp_path / "w.safetensors")
    drawn = load(tmp_path / "w.safetensors")("a red circle", steps=1)
    assert np.array_equal(drawn[0], load(checkpoint)("a red circle", steps=1)[0])


def test_bare_weights_say_how_to_export_them(checkpoint, tmp_path):
    save_file(load_weights(checkpoint), tmp_path / "bare.safetensors")
    with pytest.raises(BadDataError, match="bare weights") as raised:
        load(tmp_path / "bare.safetensors")
    assert "dit export" in raised.value.hint


def test_three_lines_draw_what_the_command_draws(tiny_run, tiny_shards, dit, tmp_path):
    reference = min(tiny_shards.images.glob("*.png"))
    pipe = load(str(tiny_run))
    images = pipe(
        prompt="a red circle",
        reference=str(reference),
        count=6,
        seed=3,
        steps=3,
        cfg_text=2.0,
        guidance_interval=(0.2, 1.0),
    )
    options = [
        "--prompt",
        "a red circle",
        "--ref",
        reference,
        "-n",
        6,
        "--seed",
        3,
        "--steps",
        3,
        "--cfg-text",
        2,
        "--guidance-interval",
        0.2,
        1.0,
    ]
    done = dit("sample", "--checkpoint", tiny_run, *options, "--out", tmp_path)
    assert done.code == 0, done.err
    drawn = [Image.open(path) for path in sorted(tmp_path.iterdir())]
    assert [furthest(*pair) for pair in zip(images, drawn, strict=True)] == [0] * 6


def test_without_a_name_the_newest_run_is_loaded_and_a_damaged_checkpoint_is_told(tiny_run, tmp_path, monkeypatch):
    shutil.copytree(tiny_run, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    assert load().step == 8
    (tmp_path / "runs/mine/checkpoints/checkpoint_final.pt").write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"checkpoint_final\.pt: skipped"):
        assert load().step == 6


def test_a_prompt_that_is_cut_is_a_python_warning(pipeline):
    with pytest.warns(UserWarning, match="the text encoder takes 512: the last 4 of its 2,052 characters are cut"):
        pipeline(prompt="red " * 513, steps=1)


def test_a_reference_may_be_a_picture_that_is_open_already(pipeline, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 4), np.uint8)
    see_through = Image.fromarray(noise, "RGBA")
    turned = Image.fromarray(noise[..., :3])
    turned.getexif()[0x0112] = 6
    for name, picture in (
        ("a.png", see_through),
        ("b.png", see_through.convert("L")),
        ("c.png", turned),
        ("d.tiff", turned.convert("CMYK")),
    ):
        picture.save(tmp_path / name, exif=picture.getexif())
        from_file, in_memory = (
            pipeline.encode_reference(tmp_path / name),
            pipeline.encode_reference(Image.open(tmp_path / name)),
        )
        assert from_file.bucket == in_memory.bucket and torch.equal(from_file.patches, in_memory.patches), name


def test_a_reference_of_any_shape_and_kind_is_seen_as_in_training(pipeline, tmp_path):
    upright = Image.fromarray(np.random.default_rng(1).integers(0, 255, (150, 50, 3), np.uint8))
    upright.save(tmp_path / "tall.png")
    seen = pipeline.encode_reference(tmp_path / "tall.png")
    assert seen.bucket == nearest_bucket(50, 150, pipeline.buckets) and seen.bucket.height > 1.5 * seen.bucket.width
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned back
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    assert torch.equal(pipeline.encode_reference(tmp_path / "turned.png").patches, seen.patches)
    upright.convert("L").save(tmp_path / "grey.png")
    upright.convert("L").convert("RGB").save(tmp_path / "grey_rgb.png")
    grey, as_rgb = (pipeline.encode_reference(tmp_path / name) for name in ("grey.png", "grey_rgb.png"))
    assert torch.equal(grey.cls, as_rgb.cls) and not torch.equal(grey.cls, seen.cls)
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    clear, white = (pipeline.encode_reference(tmp_path / name) for name in ("clear.png", "white.png"))
    assert torch.equal(clear.patches, white.patches), "hidden colours stay hidden"


def test_drawing_leaves_the_random_state_of_the_notebook_alone(pipeline):
    before = torch.get_rng_state()
    pipeline("a red circle")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({}, "nothing to draw"),
        ({"prompt": "x", "steps": 0}, "sample.steps"),
        ({"prompt": "x", "stepz": 3}, "sample.stepz"),
        ({"prompt": "x", "solver": "hein"}, "sample.solver"),
        ({"prompt": "x", "size": "64"}, "WIDTHxHEIGHT"),
        ({"prompt": "x", "count": 0}, "count 0"),
        ({"prompt": "x", "seed": -1}, "seed -1"),
    ],
)
def test_what_a_call_cannot_mean_is_a_usage_error(pipeline, call, said):
    with pytest.raises(UsageError) as raised:
        pipeline(**call)
    assert said in raised.value.message and raised.value.hint


def test_a_model_that_draws_nan_is_an_error_and_no_picture(pipeline, monkeypatch):
    monkeypatch.setattr(
        "dittool.sampling.drawing.sample_latents",
        lambda _model, _conditions, noise, *_: torch.full_like(noise, torch.nan),
    )
    with pytest.raises(BadDataError, match="NaN"):
        pipeline("a red circle")


def test_added_patches_draw_at_the_size_of_the_reference_alone(checkpoint, tiny_shards, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    state["config"]["model"]["patch_fusion"] = "added"
    pipeline = Pipeline.load(save_checkpoint(tmp_path, state, final=True))
    reference = pipeline.encode_reference(min(tiny_shards.images.glob("*.png")))
    (drawn,) = pipeline("a red circle", reference)
    assert drawn.size == (reference.bucket.width, reference.bucket.height)
    assert pipeline("a red circle", size=(64, 96))[0].size == (64, 96)  # the null is added to however many tokens
    with pytest.raises(UsageError, match=r"patches, and a picture of 64x96 has 6×4 tokens") as raised:
        pipeline("a red circle", reference, size=(64, 96))
    assert f"--size {reference.bucket.name}" in raised.value.hint
