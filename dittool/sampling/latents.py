"""From noise and conditions to latents: the model's branches, the guidance and the solver joined.

B samples · K branches of the guidance · C H W latent
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from dittool.config.schema import SampleSettings
from dittool.models.conditioning import Conditions, Context, Kept
from dittool.models.dit import DiT, KeysValues
from dittool.objective.flow import shift_at
from dittool.sampling.guidance import BRANCHES, Guidance, guidance, unguided
from dittool.sampling.solvers import SOLVERS, evaluation_times, time_grid

_MANY_PATCHES = 256  # from here on a batch of its own for the branches without them is worth it: docs/sampling.md
_SLACK = 1e-9  # of a time at the interval's edge: 0.3 of a grid is 0.30000000000000004


@dataclass(frozen=True)
class TextFeatures:
    """Encoded captions of a batch."""

    hidden: Tensor  # (B, L, text width), padded
    mask: Tensor  # (B, L) bool, True on tokens

    def rows(self, rows: slice, device: torch.device) -> TextFeatures:
        """Some of the samples, on a device."""
        return TextFeatures(self.hidden[rows].to(device), self.mask[rows].to(device))

    def expand(self, count: int) -> TextFeatures:
        """The caption of a single sample for each of `count`."""
        return TextFeatures(self.hidden.expand(count, -1, -1), self.mask.expand(count, -1))


@dataclass(frozen=True)
class SamplingCost:
    """What one image costs, however many are drawn at once."""

    evaluations: int  # of the guided velocity
    passes: int  # of the model: a guided evaluation has one for each of its branches


@torch.inference_mode()
def sample_latents(
    model: DiT,
    conditions: Conditions,
    noise: Tensor,
    settings: SampleSettings,
    start: float = 1.0,
    negative: TextFeatures | None = None,
) -> Tensor:
    """Integrates the model's velocity from `noise` (B, C, H, W) at t = `start` to latents (B, C, H, W), normalised, at
    t = 0.

    The context does not depend on t, so its keys and values are computed once. All branches run as one batch; with a
    reference of many patches, or a negative prompt, as two or more.

    Args:
        start: below 1, `noise` is z_t of an image on its way.
        negative: of a negative prompt, for each sample. It stands where branches without the caption have its null.
    """
    inside, outside = _rules(settings, conditions.text is not None or negative is not None, conditions.cls is not None)
    ready: dict[bool, _Branches] = {}

    def velocity(z: Tensor, t: float) -> Tensor:
        guided = _within(t, settings.guidance_interval)
        if guided not in ready:
            ready[guided] = _Branches.of(model, conditions, noise, inside if guided else outside, negative)
        return ready[guided].velocity(model, z, t)

    return SOLVERS[settings.solver](velocity, noise, _times(settings, noise, start))


def sampling_cost(
    settings: SampleSettings, latent: Sequence[int], has_text: bool, has_reference: bool, start: float = 1.0
) -> SamplingCost:
    """The evaluations of `sample_latents` under these settings for a latent of (H, W); a negative prompt counts as
    text.
    """
    inside, outside = _rules(settings, has_text, has_reference)
    times = evaluation_times(settings.solver, _times(settings, latent, start))
    passes = sum(len((inside if _within(t, settings.guidance_interval) else outside).branches) for t in times)
    return SamplingCost(len(times), passes)


def is_ever_guided(settings: SampleSettings, latent: Sequence[int], start: float = 1.0) -> bool:
    """Whether the model is called at a time within the guidance interval, or never called at all."""
    times = evaluation_times(settings.solver, _times(settings, latent, start))
    return not times or any(_within(t, settings.guidance_interval) for t in times)


def _times(settings: SampleSettings, latent: Tensor | Sequence[int], start: float) -> list[float]:
    return time_grid(settings.steps, shift_at(settings.shift, latent), start)


@dataclass(frozen=True)
class _Batch:
    """Branches that run together, ready for every t."""

    names: list[str]
    context: Context  # (K·B, M, D)
    keys_values: KeysValues

    @staticmethod
    def of(model: DiT, conditions: Conditions, noise: Tensor, names: list[str], every_text: bool = False) -> _Batch:
        """`every_text`: all of these branches keep the text that stands in the conditions."""
        rows = len(names) * len(noise)
        repeated = conditions.map(lambda tensor: tensor.repeat(len(names), *[1] * (tensor.dim() - 1)))
        kept = _kept(names, len(noise), noise.device, every_text)
        context = model.context(repeated, kept, rows, model.token_grid(noise))
        return _Batch(names, context, model.keys_values(context))

    def velocities(self, model: DiT, z: Tensor, t: float) -> Tensor:
        """(B, C, H, W) → (K, B, C, H, W)."""
        count, batch = len(self.names), len(z)
        times = torch.full((count * batch,), t, device=z.device)
        velocities = model.velocity(z.repeat(count, 1, 1, 1), times, self.context, self.keys_values)  # (K·B, C, H, W)
        return velocities.float().unflatten(0, (count, batch))


@dataclass(frozen=True)
class _Branches:
    """The branches of one rule: as one batch, or those without the reference apart, where its many patches are one
    null token.
    """

    rule: Guidance
    batches: list[_Batch]

    @staticmethod
    def of(
        model: DiT, conditions: Conditions, noise: Tensor, rule: Guidance, negative: TextFeatures | None
    ) -> _Branches:
        few_patches = conditions.patches is None or conditions.patches.shape[1] < _MANY_PATCHES
        if negative is None and few_patches:
            return _Branches(rule, [_Batch.of(model, conditions, noise, rule.branches)])
        batches = []
        for text, reference in product(
            (None,) if negative is None else (False, True), (None,) if few_patches else (False, True)
        ):
            names = [
                name
                for name in rule.branches
                if text in (None, BRANCHES[name][0]) and reference in (None, BRANCHES[name][1])
            ]
            if names and negative is not None and not text:
                with_negative = replace(conditions, text=negative.hidden, text_mask=negative.mask)
                used = _used(with_negative, names, every_text=True)
                batches.append(_Batch.of(model, used, noise, names, every_text=True))
            elif names:
                batches.append(_Batch.of(model, _used(conditions, names), noise, names))
        return _Branches(rule, batches)

    def velocity(self, model: DiT, z: Tensor, t: float) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        velocities = {
            name: velocity
            for batch in self.batches
            for name, velocity in zip(batch.names, batch.velocities(model, z, t), strict=True)
        }
        return self.rule.combine(torch.stack([velocities[name] for name in self.rule.branches]))


def _among(keeps: tuple[bool, bool], wanted: tuple[bool | None, bool | None]) -> bool:
    """Whether a branch keeps what is wanted; None: either."""
    return all(want in (None, keep) for keep, want in zip(keeps, wanted, strict=True))


def _used(conditions: Conditions, names: list[str], every_text: bool = False) -> Conditions:
    """Without what none of these branches keeps: then its null is a single token."""
    if not every_text and not any(BRANCHES[name][0] for name in names):
        conditions = replace(conditions, text=None, text_mask=None)
    if not any(BRANCHES[name][1] for name in names):
        conditions = replace(conditions, cls=None, patches=None)
    return conditions


def _rules(settings: SampleSettings, has_text: bool, has_reference: bool) -> tuple[Guidance, Guidance]:
    """Inside and outside of the guidance interval."""
    scales, there = (settings.cfg_text, settings.cfg_dino), {"has_text": has_text, "has_reference": has_reference}
    return guidance(settings.guidance, *scales, **there), unguided(*scales, **there)


def _within(t: float, interval: Sequence[float]) -> bool:
    """Inside of the interval there is guidance; outside only the conditional branch runs."""
    return interval[0] - _SLACK <= t <= interval[1] + _SLACK


def _kept(names: list[str], batch: int, device: torch.device, every_text: bool) -> Kept:
    text, reference = zip(*(BRANCHES[name] for name in names), strict=True)
    return Kept(
        torch.tensor([True] * len(names) if every_text else text, device=device).repeat_interleave(batch),
        torch.tensor(reference, device=device).repeat_interleave(batch),
    )
