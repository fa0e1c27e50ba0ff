"""One-step sampling: the class, the scale and the seed decide the image, and nothing else does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dittool import load
from dittool.ckpt.inspect import export_safetensors
from dittool.errors import UsageError
from dittool.sampling.one_step import OneStepPipeline, OneStepRequest, draw_classes
from dittool.sampling.picture_file import seen_from, write_picture


@pytest.fixture
def checkpoint(class_run):
    return class_run / "checkpoints/checkpoint_final.pt"


@pytest.fixture
def pipeline(checkpoint) -> OneStepPipeline:
    return OneStepPipeline.load(checkpoint)


def test_an_image_does_not_depend_on_its_neighbours(pipeline):
    three = pipeline.latents([2, 2, 2], 1.0, [5, 6, 7])
    assert torch.allclose(three[1:2], pipeline.latents([2], 1.0, [6]), atol=1e-6)
    assert not torch.allclose(three[0], three[1], atol=1e-3)


def test_the_network_runs_once_for_a_batch_whatever_the_scale(pipeline):
    calls = []
    pipeline.model.register_forward_hook(lambda *_: calls.append(1))
    pipeline.latents([0] * 4, 2.0, [0, 1, 2, 3])
    assert calls == [1]


def test_a_class_is_given_by_name_or_number_and_a_wrong_one_is_answered_with_the_nearest(pipeline):
    assert (
        pipeline.label("red-circle")
        == pipeline.classes.index("red-circle")
        == pipeline.label(str(pipeline.classes.index("red-circle")))
    )
    with pytest.raises(UsageError, match="not one of the 12 classes") as caught:
        pipeline.label("red-cirle")
    assert "did you mean 'red-circle'?" in caught.value.hint


@pytest.mark.parametrize("alpha", [0.5, 2.1])
def test_a_scale_outside_of_what_was_trained_is_refused(alpha, pipeline):
    with pytest.raises(UsageError, match="trained were scales from 1 to 2"):
        pipeline.guidance_scale(alpha)


def test_every_class_is_drawn_when_none_is_named_and_settings_stand_in_the_pictures(checkpoint, tmp_path):
    drawn = draw_classes(OneStepRequest(checkpoint, (), None, 1, 3), tmp_path)
    assert len(drawn) == 12 and len({image.settings["class"] for image in drawn}) == 12
    written = Image.open(drawn[0].path)
    assert written.size == (32, 32)
    assert json.loads(written.text["dit"]) == seen_from(tmp_path, drawn[0].settings)
    assert (
        drawn[0].settings["seed"] == 3 and drawn[0].settings["weights"] == "ema" and drawn[0].settings["alpha"] == 1.0
    )


def test_a_picture_in_a_folder_is_not_overwritten(checkpoint, tmp_path):
    first, second = (
        draw_classes(OneStepRequest(checkpoint, ("green-square",), alpha, 1, 0), tmp_path)[0].path
        for alpha in (1.0, 2.0)
    )
    assert second.stem == f"{first.stem}_2" and first.read_bytes() != second.read_bytes()


# Drawn again


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_every_picture_of_several_batches_is_drawn_again_to_the_same_bits(dit, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("dittool.sampling.one_step_drawing._BATCH", 3)
    drawn = draw_classes(OneStepRequest(checkpoint, ("green-square", "0"), 1.5, 4, 7), tmp_path)
    assert [image.settings["batch"] for image in drawn[:4]] == [[7, 3]] * 3 + [[10, 1]]
    for image in (drawn[1], drawn[3], drawn[6]):
        outcome = dit("sample", "--from", image.path, "--out", tmp_path / "again", "--json")
        (again,) = json.loads(outcome.out)["images"]
        assert outcome.code == 0 and again["same_pixels"] is True and again["settings"] == image.settings
        assert again["file"] == str(tmp_path / "again" / f"{image.path.stem}_again.png")
        assert np.array_equal(pixels(again["file"]), pixels(image.path))


def test_a_picture_that_has_changed_since_is_not_called_the_same(dit, checkpoint, tmp_path):
    (image,) = draw_classes(OneStepRequest(checkpoint, ("green-square",), 1.0, 1, 0), tmp_path)
    changed = pixels(image.path) ^ 1
    write_picture(image.path, Image.fromarray(changed), image.settings)
    outcome = dit("sample", "--from", image.path, "--out", tmp_path / "again.png", "--json")
    assert json.loads(outcome.out)["images"][0]["same_pixels"] is False and "the pixels differ" in outcome.err


def test_other_options_change_the_picture_and_nothing_else(dit, checkpoint, tmp_path):
    (image,) = draw_classes(OneStepRequest(checkpoint, ("green-square",), 1.5, 1, 4), tmp_path)
    outcome = dit("sample", "--from", image.path, "--alpha", "2", "-n", 2, "--out", tmp_path / "again", "--json")
    images = json.loads(outcome.out)["images"]
    assert [one["settings"]["seed"] for one in images] == [4, 5] and not any("same_pixels" in one for one in images)
    assert {key for key in image.settings if image.settings[key] != images[0]["settings"][key]} == {"alpha", "batch"}


def test_another_checkpoint_under_the_same_name_is_told(dit, checkpoint, tmp_path):
    own = Path(shutil.copy(checkpoint, tmp_path / "own.pt"))
    (image,) = draw_classes(OneStepRequest(own, ("green-square",), 1.0, 1, 0), tmp_path)
    shutil.copy(checkpoint.parent / "checkpoint_step0000002.pt", own)
    outcome = dit("sample", "--from", image.path, "--out", tmp_path / "again.png")
    assert outcome.code == 0 and "is not the checkpoint" in " ".join(outcome.err.split())
    own.unlink()
    outcome = dit("sample", "--from", image.path, "--out", tmp_path / "again.png")
    assert outcome.code == 2 and "--checkpoint PATH" in outcome.err


def test_a_picture_from_before_there_were_batches_is_drawn_alone(dit, checkpoint, tmp_path):
    (image,) = draw_classes(OneStepRequest(checkpoint, ("green-square",), 1.0, 1, 5), tmp_path)
    old = {key: value for key, value in image.settings.items() if key not in ("batch", "made_with")}
    write_picture(image.path, Image.fromarray(pixels(image.path)), old)
    outcome = dit("sample", "--from", image.path, "--out", tmp_path / "again.png", "--json")
    assert json.loads(outcome.out)["images"][0]["same_pixels"] is True


@pytest.mark.parametrize(
    ("change", "said"),
    [({"alpha": 0.5}, "alpha"), ({"batch": [0, 65]}, "65"), ({"batch": [6, 2]}, "seed 5"), ({"class": 3}, "class")],
)
def test_settings_that_cannot_be_meant_are_named(dit, checkpoint, tmp_path, change, said):
    (image,) = draw_classes(OneStepRequest(checkpoint, ("green-square",), 1.0, 1, 5), tmp_path)
    write_picture(image.path, Image.fromarray(pixels(image.path)), image.settings | change)
    outcome = dit("sample", "--from", image.path, "--out", tmp_path / "again.png")
    assert outcome.code == 3 and "the settings inside cannot be used" in outcome.err and said in outcome.err


def test_a_class_has_no_effect_on_a_picture_of_a_prompt(dit, tiny_run, tmp_path):
    assert dit("sample", "--checkpoint", tiny_run, "--prompt", "a red circle", "--out", tmp_path / "a.png").code == 0
    outcome = dit("sample", "--from", tmp_path / "a.png", "--class", "green-square")
    assert outcome.code == 2 and "drawn from a prompt or a reference" in outcome.err


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--class", "owl"), "not one of the 12 classes"),
        (("--class", "red-circle", "--alpha", "9"), "trained were scales from 1 to 2"),
        (("--class", "red-circle", "--steps", "4"), "--steps: no effect with --class"),
        (("--alpha", "1.5", "--prompt", "a cat"), "--prompt: no effect with --class and --alpha"),
    ],
)
def test_a_wrong_call_exits_with_2(arguments, message, dit, checkpoint, tmp_path):
    outcome = dit("sample", "--checkpoint", checkpoint, *arguments, "--out", tmp_path / "x")
    assert outcome.code == 2 and message in outcome.err


def test_a_checkpoint_of_the_first_family_says_so(dit, tiny_run, tmp_path):
    outcome = dit("sample", "--checkpoint", tiny_run, "--class", "owl", "--out", tmp_path / "x")
    assert outcome.code == 2 and "one-step generator" in outcome.err


def test_a_prompt_is_not_drawn_from_a_one_step_generator(dit, checkpoint, tmp_path):
    outcome = dit("sample", "--checkpoint", checkpoint, "--prompt", "an owl", "--out", tmp_path / "x")
    assert outcome.code == 2 and "--class" in outcome.err


def test_validating_a_one_step_generator_says_what_judges_it_instead(dit, class_run):
    rows = [json.loads(line) for line in (class_run / "log.jsonl").read_text().splitlines()]
    assert any("eval_energy" in row for row in rows)
    outcome = dit("validate", class_run)
    assert (
        outcome.code == 2
        and "one-step generator" in outcome.err
        and "eval_energy in its log.jsonl" in " ".join(outcome.err.split())
    )


def test_from_python_a_generator_draws_what_the_command_draws(checkpoint, tmp_path):
    export_safetensors(checkpoint, tmp_path / "g.safetensors")
    drawn = draw_classes(OneStepRequest(checkpoint, ("red-circle", "2"), 1.5, 2, 3), tmp_path / "out")
    for file in (checkpoint, tmp_path / "g.safetensors"):
        images = load(file)(["red-circle", 2], alpha=1.5, count=2, seed=3)
        assert all(np.array_equal(a, pixels(b.path)) for a, b in zip(images, drawn, strict=True))
    assert len(load(checkpoint)()) == len(load(checkpoint).classes)
    with pytest.raises(UsageError, match="prompt: no effect on a one-step generator"):
        load(checkpoint)(prompt="a red circle")
