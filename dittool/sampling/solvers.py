"""Solvers of the sampling equation dz/dt = v(z, t), from t = 1 (noise) to t = 0 (data).

A solver takes the whole time grid, so that a multistep one may look back. What it costs is counted by running it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from dittool.objective.flow import shifted

Velocity = Callable[[Tensor, float], Tensor]  # (z (B, C, H, W), t) → (B, C, H, W)
Solver = Callable[[Velocity, Tensor, list[float]], Tensor]


def time_grid(steps: int, shift: float = 1.0, start: float = 1.0) -> list[float]:
    """steps + 1 times from `start` to 0, evenly spaced and then shifted towards the noise (`objective.flow.shifted`).

    `start` in [0, 1] is a time after the shift; at 0 there is nothing to integrate, and the grid is that one time.
    """
    if start == 0:
        return [0.0]
    first = start / (shift + (1 - shift) * start)  # the time that the shift takes to `start`
    return shifted(torch.linspace(first, 0, steps + 1, dtype=torch.float64), shift).tolist()


def euler(velocity: Velocity, z: Tensor, times: list[float]) -> Tensor:
    """z ← z + h·v(z, t) with h = t_next − t; first order, one evaluation a step."""
    for t, t_next in pairwise(times):
        z = z + (t_next - t) * velocity(z, t)
    return z


def heun(velocity: Velocity, z: Tensor, times: list[float]) -> Tensor:
    """z ← z + h·(v(z, t) + v(z + h·v(z, t), t_next)) / 2; second order, two evaluations a step."""
    for t, t_next in pairwise(times):
        h, here = t_next - t, velocity(z, t)
        z = z + h / 2 * (here + velocity(z + h * here, t_next))
    return z


def ab2(velocity: Velocity, z: Tensor, times: list[float]) -> Tensor:
    """Adams–Bashforth on uneven steps: z ← z + h·(v_n + h/(2·h_before)·(v_n − v_{n−1})); second order, one evaluation a
    step.

    The first step, which has nothing to look back on, is Euler's: its error is of the order of the whole.
    """
    before: tuple[float, Tensor] | None = None  # (h, v) of the step before
    for t, t_next in pairwise(times):
        h, here = t_next - t, velocity(z, t)
        slope = here if before is None else here + h / (2 * before[0]) * (here - before[1])
        z, before = z + h * slope, (h, here)
    return z


SOLVERS: dict[str, Solver] = {"euler": euler, "heun": heun, "ab2": ab2}  # the names of `sample.solver`


def evaluation_times(solver: str, times: list[float]) -> list[float]:
    """The times at which a solver asks for the velocity, in its order; as many as function evaluations."""
    asked: list[float] = []

    def velocity(z: Tensor, t: float) -> Tensor:
        asked.append(t)
        return z

    SOLVERS[solver](velocity, torch.zeros(()), times)
    return asked
