"""What a step of the drifting objective sees and minimises: groups of one class and one guidance scale each, with real
samples to drift towards.

Everything random about group g of a run is a function of (seed, g), so any number of processes sees the same groups.

K groups · N generated · P positives · U unconditional · S style tokens · L feature vectors of a sample · C channels
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dittool.config.drift_schema import DriftConfig, ToyConfig
from dittool.errors import UsageError
from dittool.families.family import Forward
from dittool.models.drift_dit import ClassConditions
from dittool.objective.drift import FieldSettings, multi_feature_loss, unconditional_weight
from dittool.seeding import derive_seed

if TYPE_CHECKING:
    from dittool.train.distributed import Ranks

Features = Callable[[Tensor], Mapping[str, Tensor]]  # samples (n, *shape) → kind → (n, L, C)


@dataclass(frozen=True)
class Groups:
    """One micro-batch of one process."""

    ids: list[str]  # K names, for errors
    weight: float  # its share of its step
    labels: Tensor  # (K,)
    alpha: Tensor  # (K,)
    noise: Tensor  # (K, N, *shape)
    style: Tensor  # (K, N, S)
    positives: Tensor  # (K, P, *shape), normalised
    unconditional: Tensor  # (K, U, *shape)

    def __len__(self) -> int:
        return self.noise.shape[0] * self.noise.shape[1]

    def to(self, device: torch.device) -> Groups:
        tensors = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("ids", "weight")}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


@dataclass(frozen=True)
class DriftLoss:
    """The loss of a micro-batch. No run is judged by its value: with one normalised temperature it is 1, always."""

    mean: Tensor  # () the sum over kinds of feature, those of maps weighted
    per_sample: Tensor  # (K,) the same of each group
    by_kind: dict[str, Tensor]  # kind of feature → () mean over its fields


def group_numbers(config: DriftConfig | ToyConfig, step: int, micro: int, ranks: Ranks) -> range:
    """This process's groups of a micro-batch, numbered over the whole run."""
    groups = batch_size(config) // config.drift.generated
    share = groups // ranks.count
    first = (step * config.train.accumulate + micro) * groups + ranks.rank * share
    return range(first, first + share)


def require_equal_shares(config: DriftConfig | ToyConfig, ranks: Ranks) -> None:
    """Raises `UsageError` when the groups of a step do not divide among the processes."""
    groups = batch_size(config) // config.drift.generated
    if groups % ranks.count:
        raise UsageError(
            f"{groups} groups a step do not divide into {ranks.count} processes",
            f"set train.batch_size to a multiple of {ranks.count} × drift.generated ="
            f" {ranks.count * config.drift.generated}",
        )


def batch_size(config: DriftConfig | ToyConfig) -> int:
    """Samples in a micro-batch of all processes."""
    size = config.train.batch_size
    assert size is not None  # the schemas refuse tokens_per_batch
    return size


def group_generator(seed: int, number: int) -> torch.Generator:
    """The source of all that is random about a group."""
    return torch.Generator().manual_seed(derive_seed(seed, "group", number))


def noise_generator(of_group: torch.Generator, seed: int, number: int, device: torch.device) -> torch.Generator | None:
    """The source of a group's noise, which is made where it is used: on a CPU the group's own; on another device one
    of that device, whose numbers are others. None: of a device without values.
    """
    if device.type in ("cpu", "meta"):
        return of_group if device.type == "cpu" else None
    return torch.Generator(device).manual_seed(derive_seed(seed, "noise of a group", number))


def drift_loss(config: DriftConfig | ToyConfig, model: Forward, groups: Groups, features: Features) -> DriftLoss:
    """mean ‖f(ε) − stopgrad(f(ε) + V)‖² of each field, summed over kinds of feature."""
    drift, (count, generated) = config.drift, groups.noise.shape[:2]
    samples = model(*inputs(groups)).float()  # (K·N, *shape)

    def grouped(samples: Tensor) -> dict[str, Tensor]:
        """Features (K·n, L, C) as (K, n, L, C)."""
        return {kind: vectors.reshape(count, -1, *vectors.shape[1:]) for kind, vectors in features(samples).items()}

    with torch.no_grad():
        positives, unconditional = (grouped(each.flatten(0, 1)) for each in (groups.positives, groups.unconditional))
    weight = unconditional_weight(groups.alpha, generated, drift.unconditional)
    settings = FieldSettings(
        drift.temperatures, drift.normalise_distances, drift.normalise_drift, drift.repulsion, drift.kernel_values
    )
    losses = multi_feature_loss(grouped(samples), positives, unconditional, weight, settings)  # kind → (K, L)
    means = {kind: loss.mean() for kind, loss in losses.items()}
    by_group = {kind: loss.detach().mean(dim=1) for kind, loss in losses.items()}
    return DriftLoss(
        _weighted(means, drift.maps_weight),
        _weighted(by_group, drift.maps_weight),
        {kind: mean.detach() for kind, mean in means.items()},
    )


def inputs(groups: Groups) -> tuple[Tensor, Tensor, ClassConditions]:
    """What the network is called with: noise (K·N, *shape), guidance scales (K·N,), classes and styles."""
    labels, alpha = (each.repeat_interleave(groups.noise.shape[1]) for each in (groups.labels, groups.alpha))
    return groups.noise.flatten(0, 1), alpha, ClassConditions(labels, groups.style.flatten(0, 1))


def figures(losses: Sequence[DriftLoss], ranks: Ranks) -> dict[str, float]:
    """The loss of each kind of feature."""
    return {
        f"loss_{kind}": float(ranks.mean(torch.stack([loss.by_kind[kind] for loss in losses]).mean()))
        for kind in losses[0].by_kind
    }


def _weighted(by_kind: Mapping[str, Tensor], maps_weight: float) -> Tensor:
    first, *rest = [loss * (1 if kind == "raw" else maps_weight) for kind, loss in by_kind.items()]
    for loss in rest:
        first = first + loss
    return first
