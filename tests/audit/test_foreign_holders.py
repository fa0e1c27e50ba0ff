"""Latents inside of arguments, and with their channels last: found, each leaf varied by itself, and judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from dittool.audit.specimens.foreign.example import Example, has_channels_last, named_latent
from dittool.audit.specimens.leaves import leaves, put_back, taken_out
from tests.audit import foreign_holders
from tests.audit.foreign_holders import EXAMPLES, HOLDERS
from tests.audit.opened import open_subject

FILE = Path(foreign_holders.__file__)


def findings(name, example=None, codes=("E1", "E2", "C6", "C8"), **kwargs):
    given = f"{FILE}:{example}" if example else None
    subject = open_subject(f"{FILE}:{name}", kwargs=json.dumps(kwargs), example=given)
    result = audit_subject(subject, [rule for rule in built_in_rules() if rule.code in codes])
    assert not result.crashes
    return [each.finding for each in result.findings]


@pytest.mark.parametrize("holder", HOLDERS, ids=lambda holder: holder.__name__)
def test_inputs_in_whatever_holds_them_are_guessed_and_each_is_varied(holder):
    (found,) = [found for found in findings(holder.__name__, codes=("C6",), deaf=True) if found.status == "fail"]
    assert "the prediction does not change" in found.evidence
    assert any(label in found.evidence for label in ("label", "class_id", "y:", "[2]"))


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_may_hand_them_over_in_the_same_ways(example):
    name = EXAMPLES[example].__name__
    assert {finding.status for finding in findings(name, example)} == {"pass"}


@pytest.mark.parametrize("name", ["ChannelsLastInADictionary", "InADataclass"])
def test_what_is_sound_passes(name):
    assert {finding.status for finding in findings(name)} == {"pass"}


def test_a_tensor_is_taken_out_of_what_holds_it_and_put_back():
    inputs = {"batch": {"latents": torch.ones(2, 4, 2, 2), "parts": [torch.zeros(2)]}, "t": torch.zeros(2)}
    known = taken_out(inputs, "batch.latents", "latents")
    assert list(leaves(known)) == ["latents", "batch.parts[0]", "t"]
    moved = put_back({**known, "latents": torch.full((2, 4, 2, 2), 3.0)}, "latents")
    assert moved.keys() == inputs.keys() and bool((moved["batch"]["latents"] == 3).all())


def test_of_several_tensors_that_might_be_the_latent_the_usual_name_counts_wherever_it_stands():
    picture, text = torch.zeros(2, 4, 8, 8), torch.zeros(2, 5, 16)
    assert named_latent({"text": text, "batch": {"latents": picture}}) == "batch.latents"
    assert named_latent({"x": text, "batch": {"latents": picture}}) == "x"
    assert named_latent({"given": [text, picture]}) == "given[1]"


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (2, 4, 8, 8), (2, 4, 8, 4), (2, 3, 1, 8, 8)])
def test_a_latent_with_channels_first_is_left_as_it_is(shape):
    layer = nn.Conv2d if len(shape) == 4 else nn.Conv3d
    model = nn.Sequential(layer(shape[1], 2, 1))
    assert not has_channels_last(model, {"input": torch.zeros(shape)}, "input")


def test_a_model_of_one_size_with_its_channels_last_is_told_by_its_sides():
    class OneSize(nn.Module):
        def __init__(self):
            super().__init__()
            self.all = nn.Linear(8 * 8 * 4, 8 * 8 * 4)

        def forward(self, x):
            return self.all(x.flatten(1)).reshape(x.shape)

    example = Example(OneSize(), {}, lambda model: {"x": torch.zeros(2, 8, 8, 4)})
    assert example.size == (8, 8) and example.inputs()["x"].shape == (2, 4, 8, 8)
    assert example.prepared(OneSize())(**example.inputs()).shape == (2, 4, 8, 8)
