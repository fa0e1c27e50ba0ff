"""The judge of toys: real points pass, and each way to be wrong is told by the figure that sees it."""

from __future__ import annotations

import pytest
import torch

from dittool.objective.drift import energy_distance
from dittool.objective.toy import Floor, faults, floor, judge, real_points


def real(distribution: str, count: int = 2000, seed: int = 5) -> torch.Tensor:
    return real_points(distribution, count, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def floors() -> dict[str, Floor]:
    return {name: floor(name) for name in ("two-modes", "checkerboard")}


def verdicts(distribution: str, points: torch.Tensor, floors) -> set[str]:
    return {fault.split()[0] for fault in faults(distribution, judge(distribution, points), floors[distribution])}


@pytest.mark.parametrize("distribution", ["two-modes", "checkerboard"])
def test_real_points_pass_and_their_floor_is_zero_within_its_deviation(distribution, floors):
    assert verdicts(distribution, real(distribution), floors) == set()
    assert abs(floors[distribution].energy_mean) < floors[distribution].energy_std < 0.005


def test_one_mode_alone_is_told_by_its_share(floors):
    points = real("two-modes")
    assert "mode_share" in verdicts("two-modes", points.abs() * torch.tensor([1.0, 1.0]), floors)


def test_modes_collapsed_to_points_are_told_by_their_spread(floors):
    points = real("two-modes")
    centres = torch.stack([points[:, 0].sign() * 2.5, torch.zeros(len(points))], dim=1)
    assert "spread" in verdicts("two-modes", centres + 0.1 * (points - centres), floors)


def test_points_between_the_modes_are_told_as_off_support(floors):
    assert verdicts("two-modes", real("two-modes") * torch.tensor([0.3, 1.0]), floors) >= {"energy", "off_support"}


def test_a_filled_square_is_a_checkerboard_for_energy_and_not_for_its_support(floors):
    filled = torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2
    assert verdicts("checkerboard", filled, floors) == {"off_support"}


def test_energy_distance_is_that_of_its_definition():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [5.0]])
    assert energy_distance(x, y) == pytest.approx(2 * (3 + 5 + 2 + 4) / 4 - 1 - 2)
