"""One-step sampling: the class, the scale and the seed decide the image, and nothing else does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dittool.errors import UsageError
from dittool.sampling.one_step import OneStepPipeline, OneStepRequest, draw_classes


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
    assert pipeline.label("red-circle") == pipeline.classes.index("red-circle") == pipeline.label(str(pipeline.classes.index("red-circle")))
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
    assert json.loads(written.text["dit"]) == drawn[0].settings
    assert drawn[0].settings["seed"] == 3 and drawn[0].settings["weights"] == "ema" and drawn[0].settings["alpha"] == 1.0


def test_the_command_draws_the_same_image_again(dit, checkpoint, tmp_path):
    for name in ("a.png", "b.png"):
        told = dit("sample", "--checkpoint", checkpoint, "--class", "green-square", "--alpha", "1.5", "--seed", 4, "--out", tmp_path / name)
        assert told.code == 0, told.err
    one, two = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert np.array_equal(one, two) and one.std() > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--class", "owl"), "not one of the 12 classes"),
        (("--class", "red-circle", "--alpha", "9"), "trained were scales from 1 to 2"),
        (("--class", "red-circle", "--steps", "4"), "--steps: no effect with --class"),
        (("--alpha", "1.5", "--prompt", "a cat"), "--prompt: no effect with --class and --alpha"),
    ],
)
def test_a_wrong_call_exits_with_2(arguments, told, dit, checkpoint, tmp_path):
    outcome = dit("sample", "--checkpoint", checkpoint, *arguments, "--out", tmp_path / "x")
    assert outcome.code == 2 and told in outcome.err


def test_a_checkpoint_of_the_first_family_says_so(dit, tiny_run, tmp_path):
    outcome = dit("sample", "--checkpoint", tiny_run, "--class", "owl", "--out", tmp_path / "x")
    assert outcome.code == 2 and "one-step generator" in outcome.err


def test_a_prompt_is_not_drawn_from_a_one_step_generator(dit, checkpoint, tmp_path):
    outcome = dit("sample", "--checkpoint", checkpoint, "--prompt", "an owl", "--out", tmp_path / "x")
    assert outcome.code == 2 and "--class" in outcome.err
