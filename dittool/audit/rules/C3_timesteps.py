"""The timesteps that training draws have the distribution that the preset names.

## What it checks
10,000 timesteps are drawn with the preset's `flow.timestep_sampling` and `flow.shift` and compared with that
distribution's own function: the Kolmogorov–Smirnov distance must be below its 99.9% quantile, 1.95/√n. All must lie in
[0.001, 0.999].

## Why it matters
A key that nobody reads trains with another distribution than the one that the run is reported with. Timesteps of
exactly 0 or 1 ask for a velocity where there is no signal or no noise.

## Example
`timestep_sampling = "logit_normal"` that draws uniformly fails with a distance of about 0.12 against 0.02.

## Fix
Let the key choose the sampling (`objective.flow.timesteps`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from dittool.audit.rule import Finding, failed, passed
from dittool.audit.subject import Checkpoint, Preset
from dittool.objective import flow

CODE, NAME, SEVERITY, SCOPE, SINCE = "C3", "timesteps", "error", ("preset",), "0.1"

_DRAWS = 10_000
_LIMIT = 1.95 / math.sqrt(_DRAWS)
_ROUNDING = 1e-6  # of float32 at the ends of the range
_FIX = "draw timesteps with objective.flow.timesteps from flow.timestep_sampling and flow.shift"


def _law_of_mode(t: Tensor) -> Tensor:
    """u(t) of t = 1 − v − 1.29·(cos²(πv/2) − 1 + v) with v = 1 − u (arXiv 2403.03206, eq. 20), read off a table."""
    v = torch.linspace(1, 0, 100_001, dtype=torch.float64)
    table = 1 - v - flow.MODE_SCALE * (torch.cos(math.pi / 2 * v).square() - 1 + v)
    return torch.searchsorted(table, t) / (len(v) - 1)


_LAWS: Mapping[str, Callable[[Tensor], Tensor]] = {  # P(T ≤ t), without shift
    "logit_normal": lambda t: torch.special.ndtr(torch.logit(t)),
    "uniform": lambda t: t,
    "mode": _law_of_mode,
    "cosmap": lambda t: 2 / math.pi * torch.atan(t / (1 - t)),
}


def check(subject: Preset | Checkpoint) -> list[Finding]:
    config = subject.specimen.flow()
    section, shift = config.flow, flow.shift_at(config.flow.shift, config.data.bucket_sizes()[0].latent_grid())
    uniform = torch.rand(_DRAWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = flow.timesteps(uniform, section.timestep_sampling, shift).double()
    drawn = (
        f"{_DRAWS:,} draws of {section.timestep_sampling} with shift {shift:g}: mean {t.mean():.3f}, from"
        f" {t.min():.3g} to {t.max():.3g}"
    )
    if t.min() < flow.SMALLEST_T - _ROUNDING or t.max() > flow.LARGEST_T + _ROUNDING:
        return failed(f"{drawn}; the range is [{flow.SMALLEST_T}, {flow.LARGEST_T}]", _FIX)
    distance = _distance(t, section.timestep_sampling, shift)
    if distance > _LIMIT:
        return failed(f"{drawn}; Kolmogorov–Smirnov distance {distance:.3f}, at most {_LIMIT:.3f}", _FIX)
    return passed(f"{drawn}; Kolmogorov–Smirnov distance {distance:.4f}, below {_LIMIT:.3f}")


def _distance(t: Tensor, sampling: str, shift: float) -> float:
    """Largest distance between the draws' distribution and the one that is named; inside the clamps, where it is
    continuous.
    """
    t = t.sort().values
    unshifted = t / (shift - (shift - 1) * t)  # the inverse of s·t / (1 + (s − 1)·t)
    expected = _LAWS[sampling](unshifted)
    ranks = torch.arange(len(t), dtype=torch.float64)
    inside = (t > flow.SMALLEST_T + _ROUNDING) & (t < flow.LARGEST_T - _ROUNDING)
    above, below = ((ranks + 1) / len(t) - expected).abs(), (expected - ranks / len(t)).abs()
    return float(torch.maximum(above, below)[inside].max())
