"""From noise and conditions to latents: the model's branches, the guidance and the solver joined.

B samples · K branches of the guidance · C H W latent
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dittool.models.conditioning import Conditions, Kept
from dittool.models.dit import DiT
from dittool.sampling.guidance import BRANCHES, Guidance, guidance
from dittool.sampling.solvers import SOLVERS, time_grid


@dataclass(frozen=True)
class SampleSettings:
    """How to sample; the defaults of a run stand in `[sample]` and `[flow]` of its configuration."""

    solver: str
    steps: int
    cfg_text: float
    cfg_dino: float
    guidance: str
    shift: float


@torch.inference_mode()
def sample_latents(model: DiT, conditions: Conditions, noise: Tensor, settings: SampleSettings) -> Tensor:
    """Integrates the model's velocity from `noise` (B, C, H, W) at t = 1 to latents (B, C, H, W), normalised, at t = 0.

    The context does not depend on t, so its keys and values are computed once; all branches run as one batch.
    """
    rule = guidance(
        settings.guidance, settings.cfg_text, settings.cfg_dino,
        has_text=conditions.text is not None, has_reference=conditions.cls is not None,
    )  # fmt: skip
    count, batch = len(rule.branches), len(noise)
    kept = _kept(rule, batch, noise.device)
    repeated = conditions.map(lambda tensor: tensor.repeat(count, *[1] * (tensor.dim() - 1)))
    context = model.context(repeated, kept, count * batch, model.token_grid(noise))
    keys_values = model.keys_values(context)

    def velocity(z: Tensor, t: float) -> Tensor:
        times = torch.full((count * batch,), t, device=z.device)
        branches = model.velocity(z.repeat(count, 1, 1, 1), times, context, keys_values)  # (K·B, C, H, W)
        return rule.combine(branches.float().unflatten(0, (count, batch)))

    return SOLVERS[settings.solver](velocity, noise, time_grid(settings.steps, settings.shift))


def _kept(rule: Guidance, batch: int, device: torch.device) -> Kept:
    text, reference = zip(*(BRANCHES[name] for name in rule.branches), strict=True)
    return Kept(
        torch.tensor(text, device=device).repeat_interleave(batch),
        torch.tensor(reference, device=device).repeat_interleave(batch),
    )
