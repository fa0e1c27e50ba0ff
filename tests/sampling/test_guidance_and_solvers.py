"""Guidance algebra and the Euler solver."""

from __future__ import annotations

import math

import pytest
import torch

from dittool.sampling.guidance import guidance
from dittool.sampling.solvers import euler, time_grid

V = {"none": 1.0, "text": 10.0, "dino": 100.0, "full": 1000.0}


def combined(*arguments: object) -> float:
    rule = guidance(*arguments)
    return float(rule.combine(torch.stack([torch.full((1, 1, 1, 1), V[name]) for name in rule.branches])))


def test_additive_guidance_is_its_formula():
    assert combined("additive", 3.0, 2.0, True, True) == pytest.approx(1 + 3 * (10 - 1) + 2 * (100 - 1))


def test_nested_guidance_is_its_formula():
    assert combined("nested", 3.0, 2.0, True, True) == pytest.approx(1 + 2 * (100 - 1) + 3 * (1000 - 100))


@pytest.mark.parametrize(
    ("kind", "scales", "branch"),
    [
        ("additive", (0.0, 0.0), "none"),
        ("additive", (1.0, 0.0), "text"),
        ("additive", (0.0, 1.0), "dino"),
        ("nested", (0.0, 0.0), "none"),
        ("nested", (0.0, 1.0), "dino"),
        ("nested", (1.0, 1.0), "full"),
    ],
)
def test_scales_of_zero_and_one_give_the_branches_and_run_no_other(kind, scales, branch):
    rule = guidance(kind, *scales, True, True)
    assert rule.branches == [branch]
    assert combined(kind, *scales, True, True) == V[branch]


@pytest.mark.parametrize("kind", ["additive", "nested"])
def test_an_absent_condition_has_no_branch(kind):
    assert set(guidance(kind, 3.0, 2.0, True, False).branches) == {"none", "text"}
    assert set(guidance(kind, 3.0, 2.0, False, True).branches) == {"none", "dino"}


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="weird"):
        guidance("weird", 1.0, 1.0, True, True)


def test_times_run_from_noise_to_data():
    assert time_grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert time_grid(2, shift=3.0) == [1.0, 0.75, 0.0]


def test_euler_is_exact_on_a_straight_path():
    x0, noise = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(euler(lambda z, t: noise - x0, noise, time_grid(3)), x0)


def test_euler_is_of_first_order():
    """dz/dt = z from t = 1 to 0: z(0) = z(1)/e. Halving the step halves the error."""
    start = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    errors = [abs(float(euler(lambda z, t: z, start, time_grid(steps))) - math.exp(-1)) for steps in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)
