"""What a step of the one-step generator sees: groups of one class and one guidance scale each, with real samples to
drift towards.

Everything random about group g of a run is a function of (seed, g); which real samples enter the queues with step s is
a function of (seed, s). So stopping, resuming and any number of processes give the same groups.

K groups · N generated · P positives · U unconditional · S style tokens
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dittool.config.drift_schema import DriftConfig, ToyConfig
from dittool.data.normalisation import LatentNorm
from dittool.data.records import LATENT
from dittool.data.shards.read import SampleRef, ShardSet
from dittool.errors import BadDataError
from dittool.objective.drift import alpha_from_uniform
from dittool.objective.queues import SampleQueues
from dittool.objective.toy import real_points
from dittool.seeding import derive_seed


@dataclass(frozen=True)
class Groups:
    """One micro-batch of one process."""

    labels: Tensor  # (K,)
    alpha: Tensor  # (K,)
    noise: Tensor  # (K, N, *shape)
    style: Tensor  # (K, N, S)
    positives: Tensor  # (K, P, *shape), normalised
    unconditional: Tensor  # (K, U, *shape)

    def to(self, device: torch.device) -> Groups:
        return Groups(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


class ToyStream:
    """Groups of a distribution in the plane; real points are drawn anew for each."""

    def __init__(self, config: ToyConfig) -> None:
        self._config = config

    def advance(self) -> None:
        """Nothing waits in queues."""

    def groups(self, first: int, count: int) -> Groups:
        """The groups of numbers `first` to `first + count`, exclusive."""
        drift, made = self._config.drift, []
        for number in range(first, first + count):
            generator = group_generator(self._config.train.seed, number)
            noise = torch.randn(drift.generated, self._config.model.noise, generator=generator)
            made.append((noise, real_points(self._config.toy.distribution, drift.positives, generator)))
        noise, positives = (torch.stack(parts) for parts in zip(*made, strict=True))
        labels = torch.zeros(count, dtype=torch.int64)
        return Groups(
            labels,
            torch.ones(count),
            noise,
            labels[:, None, None].expand(-1, drift.generated, 0),
            positives,
            positives[:, :0],
        )

    def state(self) -> dict[str, Any]:
        return {}


class LatentStream:
    """Groups of classes of a shards folder, their real samples from queues that take in a few new ones with each
    step.
    """

    def __init__(self, config: DriftConfig, shards: ShardSet, refs: list[SampleRef], norm: LatentNorm) -> None:
        self._config, self.samples = config, ClassSamples(shards, refs, norm, config.train.seed)
        drift, model = config.drift, config.model
        self.queues = SampleQueues(
            len(shards.classes), drift.class_queue, drift.global_queue, (model.channels, *model.cells)
        )
        self._position = 0  # samples of the endless stream that have entered
        self._arrivals = None

    def fill(self) -> None:
        """Before the first step: until every queue can give what a group needs."""
        drift = self._config.drift
        while self.queues.held_by_all < drift.unconditional or int(self.queues.pushed.min()) < drift.positives:
            self._push(self.samples[self._position])
            self._position += 1

    def restore(self, state: dict[str, Any]) -> None:
        """The queues of a checkpoint, their samples read again from the shards."""
        self._position = state["position"]
        self.queues.restore(state, self.samples.latents)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: sample numbers, not samples."""
        return {**self.queues.to_dict(), "position": self._position}

    def advance(self) -> None:
        """The new samples of one step enter the queues."""
        if self._arrivals is None:
            self._arrivals = iter(self._loader())
        for _ in range(self._config.drift.pushed):
            self._push(next(self._arrivals))
            self._position += 1

    def groups(self, first: int, count: int) -> Groups:
        """The groups of numbers `first` to `first + count`, exclusive."""
        config, drift = self._config, self._config.drift
        made = []
        for number in range(first, first + count):
            generator, label = group_generator(config.train.seed, number), self._label(number)
            alpha = alpha_from_uniform(
                torch.rand(1, generator=generator, dtype=torch.float64), drift.alpha_max, drift.alpha_exponent
            )[0].float()
            made.append(
                (
                    torch.tensor(label),
                    alpha,
                    torch.randn(drift.generated, config.model.channels, *config.model.cells, generator=generator),
                    torch.randint(
                        config.model.style_codebook, (drift.generated, config.model.style_tokens), generator=generator
                    ),
                    self.queues.of_class(label, drift.positives, generator),
                    self.queues.of_all(drift.unconditional, generator),
                )
            )
        return Groups(*(torch.stack(parts) for parts in zip(*made, strict=True)))

    def _push(self, sample: tuple[int, int, Tensor]) -> None:
        number, label, latent = sample
        self.queues.push(torch.tensor([number]), torch.tensor([label]), latent[None])

    def _label(self, group: int) -> int:
        """Classes come in shuffled passes over all of them."""
        count = len(self.queues.pushed)
        return _order(self._config.train.seed, "classes", group // count, count)[group % count]

    def _loader(self) -> DataLoader:
        workers = self._config.train.workers
        end = self._position + (self._config.train.steps + 1) * self._config.drift.pushed
        return DataLoader(
            self.samples,
            batch_size=None,
            sampler=range(self._position, end),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # the loader would else draw from the global one
        )


class ClassSamples(Dataset):
    """The endless stream of real samples, in shuffled passes: at position n (sample number, class number, latent)."""

    def __init__(
        self, shards: ShardSet, refs: list[SampleRef], norm: LatentNorm, seed: int, partial: bool = False
    ) -> None:
        """`partial`: some classes may have no sample. Raises `BadDataError` otherwise, and for a set without
        classes.
        """
        if not shards.classes:
            raise BadDataError(
                f"{shards.folder}: its samples have no classes",
                "embed a folder of class folders without captions: images/CLASS/NAME.jpg",
            )
        self._shards, self._refs, self._norm, self._seed = shards, refs, norm, seed
        self._numbers = {name: number for number, name in enumerate(shards.classes)}
        present = set(self._numbers.values()) if partial else {self.label(number) for number in range(len(refs))}
        if missing := [name for name, number in self._numbers.items() if number not in present]:
            raise BadDataError(
                f"{shards.folder}: {len(missing)} classes have no training sample, the first is '{missing[0]}'",
                "make the shards again with a smaller --holdout, or with more images of the class",
            )

    def __len__(self) -> int:
        return len(self._refs)

    def __getitem__(self, position: int) -> tuple[int, int, Tensor]:
        number = _order(self._seed, "samples", position // len(self._refs), len(self._refs))[position % len(self._refs)]
        return number, self.label(number), self.latents(torch.tensor([number]))[0]

    def label(self, number: int) -> int:
        """The class of a sample. Raises `BadDataError` when its record names none of the set's."""
        record = self._shards.read_record(self._refs[number])
        if record.cls not in self._numbers:
            raise BadDataError(
                f"{self._shards.folder}: sample '{record.id}' is of class '{record.cls}', which the index does not"
                " list",
                "make the shards again with: dit shard",
            )
        return self._numbers[record.cls]

    def latents(self, numbers: Tensor) -> Tensor:
        """(n, C, h, w), normalised, of sample numbers (n,)."""
        arrays = [
            torch.tensor(self._shards.read_array(self._refs[number], LATENT.member), dtype=torch.float32)
            for number in numbers.tolist()
        ]
        return self._norm.apply(torch.stack(arrays))


def group_generator(seed: int, number: int) -> torch.Generator:
    """The source of all that is random about a group."""
    return torch.Generator().manual_seed(derive_seed(seed, "group", number))


@lru_cache(maxsize=4)
def _order(seed: int, what: str, which: int, count: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(seed, what, which))).tolist()
