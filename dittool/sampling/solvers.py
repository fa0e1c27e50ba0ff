"""Solvers of the sampling equation dz/dt = v(z, t), from t = 1 (noise) to t = 0 (data)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from dittool.objective.flow import shifted

Velocity = Callable[[Tensor, float], Tensor]  # (z (B, C, H, W), t) → (B, C, H, W)


def time_grid(steps: int, shift: float = 1.0) -> list[float]:
    """steps + 1 times from 1 to 0, evenly spaced and then shifted towards the noise (`objective.flow.shifted`)."""
    return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).tolist()


def euler(velocity: Velocity, z: Tensor, times: list[float]) -> Tensor:
    """z ← z + (t_next − t)·v(z, t); first order, one evaluation a step."""
    for t, t_next in pairwise(times):
        z = z + (t_next - t) * velocity(z, t)
    return z


SOLVERS: dict[str, Callable[[Velocity, Tensor, list[float]], Tensor]] = {"euler": euler}
