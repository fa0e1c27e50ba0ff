"""From noise and conditions to latents: the model's branches, the guidance and the solver joined.

B samples · K branches of the guidance · C H W latent
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from dittool.config.schema import SampleSettings
from dittool.errors import UsageError
from dittool.models.conditioning import Conditions, Context, Kept
from dittool.models.dit import DiT, KeysValues
from dittool.objective.flow import shift_at
from dittool.objective.routing import passing_tokens
from dittool.sampling.guidance import BRANCHES, Guidance, against_weak, guidance, unguided
from dittool.sampling.projected import Projection
from dittool.sampling.solvers import SOLVERS, evaluation_times, time_grid
from dittool.seeding import derive_seed

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
    weak: DiT | None = None,
) -> Tensor:
    """Integrates the model's velocity from `noise` (B, C, H, W) at t = `start` to latents (B, C, H, W), normalised, at
    t = 0.

    The context does not depend on t, so its keys and values are computed once. All branches run as one batch; with a
    reference of many patches, or a negative prompt, as two or more.

    Args:
        start: below 1, `noise` is z_t of an image on its way.
        negative: of a negative prompt, for each sample. It stands where branches without the caption have its null.
        weak: a model of the same data, to go away from by `settings.cfg_weak`. With `settings.weak_routed` it is the
        model itself, in which that share of the tokens skips the routed blocks.

    Raises `UsageError` for both.
    """
    if weak is not None and settings.weak_routed:
        raise UsageError(
            f"--weak and weak_routed {settings.weak_routed:g} exclude each other: there is one weak model",
            "leave one out: --weak-routed 0, or no --weak",
        )
    weak = model if settings.weak_routed else weak
    has_text = conditions.text is not None or negative is not None
    inside, outside = guidance_rules(settings, has_text, conditions.cls is not None, weak is not None)
    ready: dict[bool, _Branches] = {}
    projection = Projection.of(settings)

    def velocity(z: Tensor, t: float) -> Tensor:
        guided = _within(t, settings.guidance_interval)
        if guided not in ready:
            rule = inside if guided else outside
            batches = _batches(model, conditions, noise, rule.branches, negative)
            of_weak = _batches(weak, conditions, noise, list(rule.weak), negative) if weak and rule.weak else []
            of_weak = [replace(batch, routed=settings.weak_routed) for batch in of_weak]
            ready[guided] = _Branches(rule, batches, of_weak)
        return ready[guided].velocity(z, t, projection if guided else None)

    return SOLVERS[settings.solver](velocity, noise, _times(settings, noise, start))


def sampling_cost(
    settings: SampleSettings,
    latent: Sequence[int],
    has_text: bool,
    has_reference: bool,
    start: float = 1.0,
    has_weak: bool = False,
) -> SamplingCost:
    """The evaluations of `sample_latents` under these settings for a latent of (H, W); a negative prompt counts as
    text.
    """
    inside, outside = guidance_rules(settings, has_text, has_reference, has_weak)
    times = evaluation_times(settings.solver, _times(settings, latent, start))
    passes = sum((inside if _within(t, settings.guidance_interval) else outside).passes for t in times)
    return SamplingCost(len(times), passes)


def guidance_rules(
    settings: SampleSettings, has_text: bool, has_reference: bool, has_weak: bool = False
) -> tuple[Guidance, Guidance]:
    """Inside and outside of the guidance interval; a negative prompt counts as text."""
    scales, there = (settings.cfg_text, settings.cfg_dino), {"has_text": has_text, "has_reference": has_reference}
    outside, inside = unguided(*scales, **there), guidance(settings.guidance, *scales, **there)
    if has_weak or settings.weak_routed:
        (plain_branch,) = outside.weights
        inside = against_weak(inside, plain_branch, settings.cfg_weak)
    if Projection.of(settings):
        at_one = guidance(settings.guidance, float(scales[0] != 0), float(scales[1] != 0), **there)
        inside = replace(inside, plain=at_one.weights)
    return inside, outside


def is_ever_guided(settings: SampleSettings, latent: Sequence[int], start: float = 1.0) -> bool:
    """Whether the model is called at a time within the guidance interval, or never called at all."""
    times = evaluation_times(settings.solver, _times(settings, latent, start))
    return not times or any(_within(t, settings.guidance_interval) for t in times)


def _times(settings: SampleSettings, latent: Tensor | Sequence[int], start: float) -> list[float]:
    return time_grid(settings.steps, shift_at(settings.shift, latent), start)


@dataclass(frozen=True)
class _Batch:
    """Branches of a model that run together, ready for every t."""

    model: DiT
    names: list[str]
    context: Context  # (K·B, M, D)
    keys_values: KeysValues
    routed: float = 0.0  # share of the tokens that skip the routed blocks

    @staticmethod
    def of(model: DiT, conditions: Conditions, noise: Tensor, names: list[str], every_text: bool = False) -> _Batch:
        """`every_text`: all of these branches keep the text that stands in the conditions."""
        rows = len(names) * len(noise)
        repeated = conditions.map(lambda tensor: tensor.repeat(len(names), *[1] * (tensor.dim() - 1)))
        kept = _kept(names, len(noise), noise.device, every_text)
        context = model.context(repeated, kept, rows, model.token_grid(noise))
        return _Batch(model, names, context, model.keys_values(context))

    def velocities(self, z: Tensor, t: float) -> Tensor:
        """(B, C, H, W) → (K, B, C, H, W)."""
        count, batch = len(self.names), len(z)
        times = torch.full((count * batch,), t, device=z.device)
        velocities = self.model.velocity(
            z.repeat(count, 1, 1, 1), times, self.context, self.keys_values, self._route(z, t)
        )  # (K·B, C, H, W)
        return velocities.float().unflatten(0, (count, batch))

    def _route(self, z: Tensor, t: float) -> Tensor | None:
        """(K·B, n) the tokens that pass at this t, the same in every branch and sample."""
        if not self.routed:
            return None
        tokens, seed = math.prod(self.model.token_grid(z)), derive_seed("routed", f"{t:.6f}")
        return passing_tokens([seed], tokens, self.routed).to(z.device).expand(len(self.names) * len(z), -1)


@dataclass(frozen=True)
class _Branches:
    """The branches of one rule, of the model and of the weak one."""

    rule: Guidance
    batches: list[_Batch]
    of_weak: list[_Batch]

    def velocity(self, z: Tensor, t: float, projection: Projection | None) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)."""
        own, of_weak = _by_name(self.batches, z, t), _by_name(self.of_weak, z, t)
        every = [own[name] for name in self.rule.branches] + [of_weak[name] for name in self.rule.weak]
        velocities = torch.stack(every)  # (K, B, C, H, W)
        guided = self.rule.combine(velocities)
        return guided if projection is None else projection.velocity(self.rule.combine_plain(velocities), guided, z, t)


def _by_name(batches: list[_Batch], z: Tensor, t: float) -> dict[str, Tensor]:
    return {
        name: velocity for batch in batches for name, velocity in zip(batch.names, batch.velocities(z, t), strict=True)
    }


def _batches(
    model: DiT, conditions: Conditions, noise: Tensor, branches: list[str], negative: TextFeatures | None
) -> list[_Batch]:
    """One, or those without the reference apart, where its many patches are one null token; with a negative prompt
    those that have it are apart too.
    """
    few_patches = conditions.patches is None or conditions.patches.shape[1] < _MANY_PATCHES
    if negative is None and few_patches:
        return [_Batch.of(model, conditions, noise, branches)]
    batches = []
    for text, reference in product(
        (None,) if negative is None else (False, True), (None,) if few_patches else (False, True)
    ):
        names = [
            name for name in branches if text in (None, BRANCHES[name][0]) and reference in (None, BRANCHES[name][1])
        ]
        if names and negative is not None and not text:
            with_negative = replace(conditions, text=negative.hidden, text_mask=negative.mask)
            used = _used(with_negative, names, every_text=True)
            batches.append(_Batch.of(model, used, noise, names, every_text=True))
        elif names:
            batches.append(_Batch.of(model, _used(conditions, names), noise, names))
    return batches


def _used(conditions: Conditions, names: list[str], every_text: bool = False) -> Conditions:
    """Without what none of these branches keeps: then its null is a single token."""
    if not every_text and not any(BRANCHES[name][0] for name in names):
        conditions = replace(conditions, text=None, text_mask=None)
    if not any(BRANCHES[name][1] for name in names):
        conditions = replace(conditions, cls=None, patches=None)
    return conditions


def _within(t: float, interval: Sequence[float]) -> bool:
    """Inside of the interval there is guidance; outside only the conditional branch runs."""
    return interval[0] - _SLACK <= t <= interval[1] + _SLACK


def _kept(names: list[str], batch: int, device: torch.device, every_text: bool) -> Kept:
    text, reference = zip(*(BRANCHES[name] for name in names), strict=True)
    return Kept(
        torch.tensor([True] * len(names) if every_text else text, device=device).repeat_interleave(batch),
        torch.tensor(reference, device=device).repeat_interleave(batch),
    )
