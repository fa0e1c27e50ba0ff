"""Projected guidance: what guidance adds to the plain velocity, held back where it only overdoes (APG, arXiv
2410.02416, algorithm 1).

The paper works on the predicted image D = z − t·v and on ΔD, by which guidance moves it; here ΔD is the whole change,
scales included, of whatever rule of `sampling/guidance.py`. With the settings in the paper's order and letters:

    momentum β    ΔD ← ΔD + β·(ΔD of the evaluation before)          below 0: only what is new about the change counts
    norm r        ΔD ← ΔD·min(1, r / rms(ΔD))                        the paper bounds the sum of squares before scaling
    parallel η    ΔD ← ΔD⊥ + η·ΔD∥, ΔD∥ = (⟨ΔD, D⟩ / ⟨D, D⟩)·D       below 1: less of what only makes D stronger

The average runs over changes of v, for at t = 0 no ΔD is left to divide by t.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dittool.config.schema import SampleSettings


@dataclass
class Projection:
    """The settings, and the running change of one sampling: make a new one for each."""

    parallel: float
    norm: float | None
    momentum: float
    running: Tensor | None = None

    @staticmethod
    def of(settings: SampleSettings) -> Projection | None:
        """None where the settings change nothing."""
        asked = settings.guidance_parallel, settings.guidance_norm, settings.guidance_momentum
        return None if asked == (1.0, None, 0.0) else Projection(*asked)

    def velocity(self, plain: Tensor, guided: Tensor, z: Tensor, t: float) -> Tensor:
        """(B, C, H, W) each: the velocity at scales of 1 and the guided one at z → the one to follow. Each sample of
        the batch is treated alone.
        """
        change = guided - plain  # Δv = −ΔD / t
        if self.momentum != 0:
            change = change if self.running is None else change + self.momentum * self.running
            self.running = change
        if self.norm is not None:
            size = (t * change).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()  # (B, 1, 1, 1)
            change = change * (self.norm / size.clamp_min(1e-12)).clamp_max(1.0)
        if self.parallel != 1:
            image = z - t * plain
            along = (change * image).sum(dim=(1, 2, 3), keepdim=True) / image.square().sum(
                dim=(1, 2, 3), keepdim=True
            ).clamp_min(1e-12)
            change = change - (1 - self.parallel) * along * image
        return plain + change
