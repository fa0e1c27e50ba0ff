"""Positions that turn queries and keys: attention must depend on the offset alone, and the turn keep lengths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from dittool.audit.specimens.turns import stretch_of_turn
from tests.audit import foreign_turns
from tests.audit.diffusers_models import TINY
from tests.audit.foreign_turns import SOUND, WRONG
from tests.audit.opened import open_subject
from tests.quick import others_slow

FILE = Path(foreign_turns.__file__)
E2 = [rule for rule in built_in_rules() if rule.code == "E2"]


def finding(target, **kwargs):
    (found,) = audit_subject(open_subject(target, kwargs=json.dumps(kwargs)), E2).findings
    return found.finding


@pytest.mark.parametrize("block", others_slow(SOUND, SOUND[:1]), ids=lambda block: block.__name__)
def test_rotations_of_any_pairs_and_positions_added_inside_pass(block):
    found = finding(f"{FILE}:made", block=block.__name__)
    assert found.status == "pass", found.evidence


@pytest.mark.parametrize("block", others_slow(WRONG, tuple(WRONG)[:2]), ids=lambda block: block.__name__)
def test_a_turn_that_is_no_rotation_or_turns_keys_otherwise_fails(block):
    found = finding(f"{FILE}:made", block=block.__name__)
    assert found.status == "fail"
    assert WRONG[block] in found.evidence


@pytest.mark.slow
def test_the_angles_of_ernie_image_in_diffusers_are_found():
    found = finding("diffusers:ErnieImageTransformer2DModel", **TINY["ErnieImageTransformer2DModel"])
    assert found.status == "fail" and "no rotation" in found.evidence


def contents(change, count=10, heads=2, places=6, width=8):
    """Queries of several contents in two directions, changed at each place."""
    drawn = torch.Generator().manual_seed(0)
    directions, weights = torch.randn(2, heads, width, generator=drawn), torch.randn(count, 2, generator=drawn)
    return [
        torch.stack([change(torch.einsum("i,ihd->hd", each, directions), place) for place in range(places)], 1)
        for each in weights
    ]


def rotated(query, place):
    angle = torch.tensor(0.7 * place)
    a, b = query.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def test_a_rotation_keeps_lengths_and_a_gate_does_not():
    assert stretch_of_turn(contents(rotated)) == pytest.approx(0, abs=1e-5)
    assert stretch_of_turn(contents(lambda query, place: query * (1 + place))) == pytest.approx(5, rel=1e-3)


def test_what_is_added_or_normed_afterwards_is_no_turn():
    added = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    assert stretch_of_turn(contents(lambda query, place: query + added[place])) is None
    assert stretch_of_turn(contents(lambda query, place: rotated(query + added[place], place))) is not None
    normed = contents(lambda query, place: torch.nn.functional.layer_norm(query + added[place], (8,)))
    assert stretch_of_turn(normed) is None


def test_too_few_contents_show_nothing():
    assert stretch_of_turn(contents(rotated, count=2)) is None
