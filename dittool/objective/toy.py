"""Distributions in the plane, and what tells whether generated points are of one: energy distance alone can be fooled,
three figures hardly.

two-modes       clouds of deviation 0.5 around (±2.5, 0)
checkerboard    the 8 dark squares of side 1 on [−2, 2]²
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dittool.objective.drift import energy_distance

_CENTRE, _SPREAD = 2.5, 0.5
_JUDGED = 2000  # points on either side
_FLOOR_DRAWS = 8


@dataclass(frozen=True)
class ToyFigures:
    """What points look like beside real ones."""

    energy: float  # energy distance to real points; its floor is what real points have to real points
    # two-modes: share of points right of the middle; checkerboard: share in the fullest of 4 quarters
    mode_share: float
    # two-modes: deviation of points from the middle of their own cloud, over the true one; checkerboard: of all points
    spread: float
    off_support: float  # share of points where the density is (almost) zero


@dataclass(frozen=True)
class Floor:
    """The same figures for real points against real points."""

    energy_mean: float
    energy_std: float


# Largest difference from real points that counts as the same. Energy is over the floor's mean; see docs/drifting.md for
# how they were set.
_LIMITS = {"energy": 0.03, "mode_share": 0.1, "spread": 0.2, "off_support": 0.08}
_TRUE = {"two-modes": (0.5, 1.0), "checkerboard": (0.25, 1.0)}  # mode share, spread


def real_points(distribution: str, count: int, generator: torch.Generator) -> Tensor:
    """(count, 2) of a distribution."""
    if distribution == "two-modes":
        side = torch.randint(2, (count,), generator=generator) * 2 - 1
        return torch.randn(count, 2, generator=generator) * _SPREAD + torch.stack(
            [side * _CENTRE, torch.zeros(count)], dim=1
        )
    column = torch.randint(4, (count,), generator=generator)
    row = torch.randint(2, (count,), generator=generator) * 2 + column % 2  # rows of the same colour
    return torch.stack([column, row], dim=1) - 2 + torch.rand(count, 2, generator=generator)


def judge(distribution: str, points: Tensor, seed: int = 0) -> ToyFigures:
    """Figures of points (n, 2), against real ones drawn from `seed`."""
    real = real_points(distribution, _JUDGED, torch.Generator().manual_seed(seed))
    share, spread, stray = (_two_modes if distribution == "two-modes" else _checkerboard)(points)
    return ToyFigures(energy_distance(points, real), share, spread, stray)


@lru_cache(maxsize=2)
def floor(distribution: str) -> Floor:
    """Energy distance of real points to other real points: mean and deviation over draws."""
    values = torch.tensor(
        [
            judge(
                distribution, real_points(distribution, _JUDGED, torch.Generator().manual_seed(1000 + draw)), seed=draw
            ).energy
            for draw in range(_FLOOR_DRAWS)
        ]
    )
    return Floor(float(values.mean()), float(values.std()))


def faults(distribution: str, figures: ToyFigures, at: Floor) -> list[str]:
    """Why points do not pass for real ones; empty when they do. The loss is not asked: it may end higher than it
    began.
    """
    share, spread = _TRUE[distribution]
    differences = {
        "energy": figures.energy - at.energy_mean,
        "mode_share": abs(figures.mode_share - share),
        "spread": abs(figures.spread - spread),
        "off_support": figures.off_support,
    }
    wrong = {name: off for name, off in differences.items() if not off <= _LIMITS[name]}
    return [
        f"{name} {getattr(figures, name):.3g} is {off:.3g} off, at most {_LIMITS[name]:g}"
        for name, off in wrong.items()
    ]


def _two_modes(points: Tensor) -> tuple[float, float, float]:
    right = points[:, 0] > 0
    centre = torch.where(right, _CENTRE, -_CENTRE)
    away = points - torch.stack([centre, torch.zeros_like(centre)], dim=1)
    own = torch.stack(
        [points[side].var(dim=0, correction=0).mean() * side.sum() for side in (right, ~right) if side.any()]
    ).sum() / len(points)
    return (
        float(right.float().mean()),
        float(own.sqrt()) / _SPREAD,
        float((away.norm(dim=1) > 4 * _SPREAD).float().mean()),
    )


def _checkerboard(points: Tensor) -> tuple[float, float, float]:
    cell = (points + 2).floor().long()
    inside = ((cell >= 0) & (cell < 4)).all(dim=1)
    on = inside & ((cell[:, 0] + cell[:, 1]) % 2 == 0)
    quarters = torch.bincount((cell[inside].div(2, rounding_mode="floor") @ torch.tensor([1, 2])), minlength=4)
    true_spread = (16 / 12) ** 0.5  # of a uniform coordinate on [−2, 2]
    fullest = float(quarters.max() / max(int(quarters.sum()), 1))
    return fullest, float(points.std(dim=0, correction=0).mean()) / true_spread, float((~on).float().mean())
