"""Guidance algebra: the branches of each rule, and what runs outside of the interval."""

from __future__ import annotations

import pytest
import torch

from dittool.sampling.guidance import against_weak, guidance, unguided

V = {"none": 1.0, "text": 10.0, "dino": 100.0, "full": 1000.0}


def combined(*arguments: object) -> float:
    rule = guidance(*arguments)
    return float(rule.combine(torch.stack([torch.full((1, 1, 1, 1), V[name]) for name in rule.branches])))


def test_additive_guidance_is_its_formula():
    assert combined("additive", 3.0, 2.0, True, True) == pytest.approx(1 + 3 * (10 - 1) + 2 * (100 - 1))


def test_nested_guidance_is_its_formula():
    assert combined("nested", 3.0, 2.0, True, True) == pytest.approx(1 + 2 * (100 - 1) + 3 * (1000 - 100))


def test_joint_guidance_is_its_formula():
    v = 1000 + (3 - 1) * (1000 - 100) + (2 - 1) * (1000 - 10)
    assert combined("joint", 3.0, 2.0, True, True) == pytest.approx(v)


def test_equal_scales_of_nested_guidance_are_classifier_free_guidance_on_both_in_two_passes():
    rule = guidance("nested", 2.0, 2.0, True, True)
    assert rule.branches == ["none", "full"] and rule.passes == 2
    assert combined("nested", 2.0, 2.0, True, True) == pytest.approx(1 + 2 * (1000 - 1))


@pytest.mark.parametrize(
    ("kind", "scales", "branch"),
    [
        ("additive", (0.0, 0.0), "none"),
        ("additive", (1.0, 0.0), "text"),
        ("additive", (0.0, 1.0), "dino"),
        ("nested", (0.0, 0.0), "none"),
        ("nested", (0.0, 1.0), "dino"),
        ("nested", (1.0, 1.0), "full"),
        ("joint", (0.0, 0.0), "none"),
        ("joint", (1.0, 0.0), "text"),
        ("joint", (0.0, 1.0), "dino"),
        ("joint", (1.0, 1.0), "full"),
    ],
)
def test_scales_of_zero_and_one_give_the_branches_and_run_no_other(kind, scales, branch):
    rule = guidance(kind, *scales, True, True)
    assert rule.branches == [branch]
    assert combined(kind, *scales, True, True) == V[branch]


@pytest.mark.parametrize("kind", ["additive", "nested", "joint"])
def test_an_absent_condition_has_no_branch(kind):
    assert set(guidance(kind, 3.0, 2.0, True, False).branches) == {"none", "text"}
    assert set(guidance(kind, 3.0, 2.0, False, True).branches) == {"none", "dino"}
    assert combined(kind, 3.0, 2.0, False, True) == 1 + 2 * (100 - 1)


def test_a_scale_of_zero_leaves_its_condition_out_of_joint_guidance():
    assert combined("joint", 0.0, 2.0, True, True) == 1 + 2 * (100 - 1)
    assert combined("joint", 3.0, 0.0, True, True) == 1 + 3 * (10 - 1)


def test_guidance_away_from_a_weak_model_is_its_formula():
    rule = against_weak(guidance("joint", 1.0, 1.0, True, True), "full", 1.5)
    assert (rule.branches, dict(rule.weak), rule.passes) == (["full"], {"full": -0.5}, 2)
    velocities = torch.tensor([1000.0, 400.0]).reshape(2, 1, 1, 1, 1)  # of the model, of the weak one
    assert float(rule.combine(velocities)) == pytest.approx(400 + 1.5 * (1000 - 400))
    added = against_weak(guidance("additive", 3.0, 2.0, True, True), "full", 1.5)
    assert added.weights == {"none": -4.0, "text": 3.0, "dino": 2.0, "full": 0.5} and added.passes == 5


def test_a_scale_of_one_leaves_the_weak_model_out():
    rule = guidance("additive", 3.0, 2.0, True, True)
    assert against_weak(rule, "full", 1.0) == rule


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="weird"):
        guidance("weird", 1.0, 1.0, True, True)


@pytest.mark.parametrize(
    ("scales", "there", "branch"),
    [
        ((3.0, 2.0), (True, True), "full"),
        ((3.0, 2.0), (True, False), "text"),
        ((3.0, 2.0), (False, True), "dino"),
        ((3.0, 2.0), (False, False), "none"),
        ((0.0, 2.0), (True, True), "dino"),  # a scale of 0 leaves the prompt out, inside of the interval and outside
        ((3.0, 0.0), (True, True), "text"),
    ],
)
def test_without_guidance_the_branch_with_all_conditions_runs_alone(scales, there, branch):
    assert unguided(*scales, *there).weights == {branch: 1.0}
