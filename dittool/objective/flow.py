"""Rectified flow (arXiv 2209.03003, 2403.03206): a straight path from data at t = 0 to noise at t = 1.

    z_t = (1 − t)·x0 + t·ε        target velocity = dz/dt = ε − x0        sampling integrates from t = 1 to t = 0

Every random quantity is a function of uniform draws that the caller supplies, so it is exact under resume and any split
of the batch. B batch · C H W latent
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dittool.models.conditioning import Conditions, Kept
from dittool.models.dit import TrainingAnswer
from dittool.objective.alignment import Alignment, spread

SMALLEST_T, LARGEST_T = 0.001, 0.999
MODE_SCALE = 1.29  # of the published comparison's best
_SHIFT_AT_128 = 3.0  # of a latent of 128×128 cells
MODES = ("none", "text_only", "reference_only", "both")  # by which conditions a sample KEEPS


@dataclass(frozen=True)
class FlowLoss:
    """Losses of a batch, by sample, with what they were computed at."""

    per_sample: Tensor  # (B,) mean squared error over the latent
    t: Tensor  # (B,)
    modes: Tensor  # (B,) index into MODES
    velocity_norm: Tensor  # () root mean square of the prediction
    alignment: Tensor | None = None  # (B,) 1 − cosine of tokens and patches, 0 of samples that see their reference
    alignment_weight: float = 0.0

    @property
    def mean(self) -> Tensor:
        mean = self.per_sample.mean()
        return mean if self.alignment is None else mean + self.alignment_weight * self.alignment.mean()


def timesteps(uniform: Tensor, sampling: str, shift: float) -> Tensor:
    """Timesteps from uniform draws, by inverse distribution function.

    Args:
        uniform: (B,) in (0, 1).
        sampling: of arXiv 2403.03206, section 3.1, "logit_normal", t = sigmoid(n) with n ~ N(0, 1), "mode" with scale
            1.29, t = u + 1.29·(u − sin²(πu/2)), and "cosmap", t = 1 − 1/(1 + tan(πu/2)); or "uniform".
        shift: resolution shift, t' = s·t / (1 + (s − 1)·t) (the same, section 5.3.2); 1 changes nothing.

    Returns: (B,) in [0.001, 0.999].
    """
    uniform = uniform.double()
    if sampling == "logit_normal":
        t = torch.sigmoid(math.sqrt(2) * torch.erfinv(2 * uniform - 1))
    elif sampling == "uniform":
        t = uniform
    elif sampling == "mode":
        t = uniform + MODE_SCALE * (uniform - torch.sin(math.pi / 2 * uniform).square())
    elif sampling == "cosmap":
        t = 1 - 1 / (1 + torch.tan(math.pi / 2 * uniform))
    else:
        raise ValueError(f"timestep sampling '{sampling}' is none of logit_normal, uniform, mode and cosmap")
    return shifted(t, shift).clamp(SMALLEST_T, LARGEST_T).float()


def shift_at(shift: float | str, latent: Tensor | Sequence[int]) -> float:
    """The resolution shift for a latent, the same in training, judging and drawing: what is configured, or with
    "per-bucket" s = 3·√(H·W / 128²), √(m/n) of arXiv 2403.03206, eq. 23, with their choice of 3 at 1024² pixels.

    Args:
        latent: (…, H, W), or its shape.
    """
    rows, columns = (latent.shape if isinstance(latent, Tensor) else latent)[-2:]
    return _SHIFT_AT_128 * math.sqrt(rows * columns) / 128 if isinstance(shift, str) else shift


def shifted(t: Tensor, shift: float) -> Tensor:
    """t' = s·t / (1 + (s − 1)·t)."""
    return shift * t / (1 + (shift - 1) * t)


def dropout_modes(uniform: Tensor, shares: Sequence[float]) -> Tensor:
    """ONE categorical draw a sample, so that modes exclude each other.

    Args:
        uniform: (B,) in [0, 1).
        shares: of `MODES`, summing to 1.

    Returns: (B,) index into `MODES`.
    """
    edges = torch.tensor(shares, dtype=torch.float64, device=uniform.device).cumsum(0)[:-1]
    return torch.bucketize(uniform.double(), edges, right=True)


def kept_conditions(modes: Tensor) -> Kept:
    """What each mode keeps: none, text, reference, both."""
    return Kept(text=(modes == 1) | (modes == 3), reference=(modes == 2) | (modes == 3))


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z_t = (1 − t)·x0 + t·ε, shapes (B, C, H, W) and (B,)."""
    t = t[:, None, None, None]
    return (1 - t) * x0 + t * noise


def flow_loss(
    model: Callable[..., Tensor],
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    conditions: Conditions,
    modes: Tensor,
    alignment: Alignment | None = None,
    route: Tensor | None = None,
) -> FlowLoss:
    """E ‖v(z_t, t, conditions) − (ε − x0)‖² for each sample of the batch.

    Args:
        model: `DiT`, or what calls it.
        x0: (B, C, H, W) normalised latents; noise: the same shape, N(0, 1).
        t: (B,) timesteps; modes: (B,) dropout modes, best on the CPU (`Kept`).
        alignment: also of a block's tokens with the patches in `conditions`.
        route: (B, K) the tokens that pass the routed blocks; None: all.
    """
    z, kept, of_alignment = interpolate(x0, noise, t), kept_conditions(modes), None
    if alignment is None:
        routed = () if route is None else (None, route)
        prediction = model(z, t, conditions, kept, *routed).float()
    else:
        assert conditions.patches is not None, "an alignment needs the reference's patches"
        rows = alignment.rows(kept.reference).to(x0.device, non_blocking=True)
        velocity, projected = cast("Callable[..., TrainingAnswer]", model)(z, t, conditions, kept, rows, route)
        prediction, patches = velocity.float(), conditions.patches[rows]
        of_rows = None if route is None else route[rows]
        losses = alignment.losses(projected, patches, conditions.patch_grid, x0, of_rows)
        of_alignment = spread(losses, rows, len(x0))
    per_sample = (prediction - (noise - x0)).square().mean(dim=(1, 2, 3))
    norm = prediction.detach().square().mean().sqrt()
    weight = 0.0 if alignment is None else alignment.weight
    return FlowLoss(per_sample, t, modes.to(x0.device, non_blocking=True), norm, of_alignment, weight)
