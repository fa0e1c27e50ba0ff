"""What each condition is worth to the velocity, before anything is drawn: the loss by dropout mode and timestep, and
what a condition changes.

Every sample is put at nine timesteps, the quantiles of the training distribution, with the noise that belongs to its
id. There the model answers once for each dropout mode, and twice more with another sample's caption or reference, so
every comparison is at identical noise.

    loss(mode, t)    = mean ‖v_mode − (ε − x0)‖²                    on the judged split, and on the other beside it
    effect(text)     = rms(v_text_only − v_text_only of another caption) / rms(v_none), and likewise the reference's
    divergence       = rms(v_text_only − v_reference_only) / rms(v_both)
    loss ratio(mode) = loss on held-out samples / on training samples   about 1; far above, the set was learned by heart

A path that is cut has effect 0. Against v_none it would not: that a condition is there also shows in the number of
tokens and in their positions. Two conditions that both work and say different things diverge.

B samples · C H W latent · K = 6 branches: the four modes, another caption, another reference
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dittool.data.shards.columns import SampleRef
from dittool.data.shards.index import HOLDOUT, TRAIN
from dittool.data.shards.read import ShardSet
from dittool.devices import as_in_training, in_parts
from dittool.errors import BadDataError
from dittool.geometry import Bucket
from dittool.models.conditioning import Conditions
from dittool.objective.flow import MODES, interpolate, kept_conditions, shift_at, timesteps
from dittool.sampling.pipeline import Pipeline
from dittool.validate.samples import Trial, bucket_batches, noise_of, normalised_samples

QUANTILES = tuple(i / 10 for i in range(1, 10))  # of the training distribution of timesteps
EFFECTS = ("text", "reference", "divergence")
# the four of MODES, then two with another sample's conditions
_NONE, _TEXT, _REFERENCE, _BOTH, _OTHER_TEXT, _OTHER_REFERENCE = range(6)
_KEYS_VALUES = 8 << 30  # bytes of keys and values at a time
_BRANCH_MODES = (_NONE, _TEXT, _REFERENCE, _BOTH, _TEXT, _REFERENCE)


@dataclass(frozen=True)
class SplitLosses:
    """Mean losses of one split."""

    samples: int
    by_timestep: dict[str, list[float]]  # mode → one loss a timestep

    def mean(self, mode: str) -> float:
        return float(np.mean(self.by_timestep[mode]))


@dataclass(frozen=True)
class ModeLosses:
    """The losses of each split that was measured, and the effects on the judged one."""

    split: str  # the judged one
    timesteps: list[float]
    splits: dict[str, SplitLosses]
    # one of EFFECTS → one value a timestep; None: the velocity that it is relative to is 0
    effects: dict[str, list[float | None]]

    @property
    def judged(self) -> SplitLosses:
        return self.splits[self.split]

    def ratio(self, mode: str) -> float | None:
        """Loss on held-out samples over loss on training samples. None when one of them was not measured."""
        if not {HOLDOUT, TRAIN} <= set(self.splits):
            return None
        trained = self.splits[TRAIN].mean(mode)
        return self.splits[HOLDOUT].mean(mode) / trained if trained > 0 else None

    def effect(self, name: str) -> float | None:
        """The mean over the timesteps where it is known."""
        known = [value for value in self.effects[name] if value is not None]
        return float(np.mean(known)) if known else None

    def to_json(self) -> dict[str, object]:
        return {
            "split": self.split,
            "timesteps": self.timesteps,
            "loss": {mode: self.judged.mean(mode) for mode in MODES},
            "loss_ratio": {mode: self.ratio(mode) for mode in MODES},
            "effect": {name: self.effect(name) for name in EFFECTS},
            "splits": {
                name: {
                    "samples": part.samples,
                    "loss": {mode: part.mean(mode) for mode in MODES},
                    "by_timestep": part.by_timestep,
                }
                for name, part in self.splits.items()
            },
            "effect_by_timestep": self.effects,
        }


def measure_modes(trial: Trial, refs: Mapping[str, Sequence[SampleRef]]) -> ModeLosses:
    """Measures the samples of each split in `refs`, of which the trial's is the one that is judged.

    Raises `BadDataError` for shards that cannot be read and a model whose velocity is not finite.
    """
    pipeline, split = trial.pipeline, trial.split
    flow = pipeline.config.flow
    # of one bucket: all of a set have about the same area, and losses at one quantile are to be averaged
    shift = shift_at(flow.shift, Bucket.from_name(refs[split][0].bucket).latent_grid(trial.shards.card.vae.stride))
    times = timesteps(torch.tensor(QUANTILES), flow.timestep_sampling, shift)
    splits, squares = {}, torch.zeros(5, len(times))
    with trial.talk.progress("modes", sum(len(members) for members in refs.values()), "sample") as task:
        for name, members in refs.items():
            losses = torch.zeros(len(MODES), len(times))
            for bucket, batch in bucket_batches(members, lambda ref: ref):
                found = _measure_batch(pipeline, trial.shards, bucket, batch, times)
                losses += found.losses.sum(dim=-1)
                squares += found.squares if name == split else 0
                task.advance(len(batch))
            rows = (losses.double() / len(members)).tolist()
            splits[name] = SplitLosses(len(members), dict(zip(MODES, rows, strict=True)))
    return ModeLosses(split, times.tolist(), splits, _effects(squares))


def sample_losses(pipeline: Pipeline, shards: ShardSet, refs: Sequence[SampleRef], times: Tensor) -> Tensor:
    """(samples, 4 modes, timesteps): loss(mode, t) of each sample by itself, in the order of `refs`, at the noise that
    belongs to its id. Raises as `measure_modes` does.
    """
    found: dict[str, Tensor] = {}
    for bucket, batch in bucket_batches(refs, lambda ref: ref):
        losses = _measure_batch(pipeline, shards, bucket, batch, times).losses.permute(2, 0, 1)
        found |= {ref.id: own for ref, own in zip(batch, losses, strict=True)}
    return torch.stack([found[ref.id] for ref in refs])


@dataclass(frozen=True)
class _BatchFigures:
    """For each timestep."""

    losses: Tensor  # (4, timesteps, B): of each mode and sample
    # (5, timesteps), summed over the samples: text − other text, reference − other reference, text − reference,
    # none, both; 0 for a sample alone
    squares: Tensor


def _measure_batch(
    pipeline: Pipeline, shards: ShardSet, bucket: Bucket, refs: Sequence[SampleRef], times: Tensor
) -> _BatchFigures:
    latents, conditions = normalised_samples(
        pipeline, [shards.read(ref, pipeline.config.model.patches) for ref in refs]
    )
    noise = noise_of(pipeline, bucket, [ref.id for ref in refs])  # (B, C, H, W)
    others = conditions.map(lambda tensor: tensor.roll(1, dims=0))

    def measured(rows: slice) -> _BatchFigures:
        own, exchanged = conditions.map(lambda tensor: tensor[rows]), others.map(lambda tensor: tensor[rows])
        return _measure_samples(pipeline, latents[rows], noise[rows], own, exchanged, times)

    parts = in_parts(measured, len(refs), min(len(refs), _samples_at_once(pipeline, conditions)))
    losses = torch.cat([part.losses for part in parts], dim=-1)
    squares = torch.stack([part.squares for part in parts]).sum(dim=0)
    found = _BatchFigures(losses, squares * (len(refs) > 1))  # a sample alone has only itself to be exchanged with
    if not torch.isfinite(found.losses).all():
        raise BadDataError(
            f"step {pipeline.step}: the velocity of {bucket.name} holds NaN or infinity",
            "audit it: dit audit CHECKPOINT",
        )
    return found


def _samples_at_once(pipeline: Pipeline, conditions: Conditions) -> int:
    """As many as the keys and values of all their branches, the largest tensors of all, leave room for."""
    model = pipeline.config.model
    text, patches = (0 if one is None else one.shape[1] for one in (conditions.text, conditions.patches))
    of_a_row = model.depth * 2 * (text + 1 + patches) * model.width * 4  # fp32
    return max(1, _KEYS_VALUES // (len(_BRANCH_MODES) * of_a_row))


@torch.inference_mode()
def _measure_samples(
    pipeline: Pipeline, latents: Tensor, noise: Tensor, own: Conditions, others: Conditions, times: Tensor
) -> _BatchFigures:
    """Of samples with their own features and those of others that they are exchanged with."""
    model, device, count, batch = pipeline.model, pipeline.device, len(_BRANCH_MODES), len(latents)
    latents, noise = latents.to(device), noise.to(device)  # (B, C, H, W)
    own_and_others = own.joined([own, own, own, others, others]).map(lambda tensor: tensor.to(device))
    kept = kept_conditions(torch.tensor(_BRANCH_MODES, device=device).repeat_interleave(batch))
    precision = pipeline.config.train.precision
    with as_in_training(device, precision):  # the same at every timestep
        context = model.context(own_and_others, kept, count * batch, model.token_grid(latents))
        keys_values = model.keys_values(context)

    losses, squares = [], []
    for t in times.to(device):
        z = interpolate(latents, noise, t.expand(batch))
        with as_in_training(device, precision):
            made = model.velocity(z.repeat(count, 1, 1, 1), t.expand(count * batch), context, keys_values)
        v = made.float().unflatten(0, (count, batch))  # (K, B, C, H, W)
        losses.append((v[: len(MODES)] - (noise - latents)).square().mean(dim=(2, 3, 4)))
        of_text, of_reference = v[_TEXT] - v[_OTHER_TEXT], v[_REFERENCE] - v[_OTHER_REFERENCE]
        differences = torch.stack([of_text, of_reference, v[_TEXT] - v[_REFERENCE], v[_NONE], v[_BOTH]])
        squares.append(differences.square().mean(dim=(2, 3, 4)).sum(dim=1))
    return _BatchFigures(torch.stack(losses, dim=1).cpu(), torch.stack(squares, dim=1).cpu())


def _effects(squares: Tensor) -> dict[str, list[float | None]]:
    """Relative effects from the sums of squares (5, timesteps)."""
    of_text, of_reference, between, none, both = squares.double()
    pairs = zip(EFFECTS, (of_text, of_reference, between), (none, none, both), strict=True)
    return {
        name: [float((a / b).sqrt()) if b > 0 else None for a, b in zip(difference, base, strict=True)]
        for name, difference, base in pairs
    }
