"""Deterministic batches: micro-batch number n is the same on every machine, after every resume, for any number of workers and ranks.

Each bucket is an endless row of shuffled passes over its samples, cut into batches; an epoch takes from every bucket the
batches that its samples fill, in an order shuffled over all buckets. A remainder is not dropped and not repeated: it opens the
bucket's next batch.

    order of samples and batches = f(seed, epoch)          noise, timestep, dropout = f(seed, global sample index)

B samples of a batch · C H W latent · L longest caption of the batch, rounded up · N patches
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dittool.config.schema import parse_size
from dittool.data.normalisation import LatentNorm
from dittool.data.shard_set import Sample, SampleRef, ShardSet
from dittool.encoders.image import patch_grid
from dittool.errors import BadDataError, UsageError
from dittool.models.conditioning import Conditions
from dittool.seeding import derive_seed

_TEXT_MULTIPLE = 8  # captions of a batch are padded to a multiple of this, so that few shapes occur
_AHEAD = 4  # batches that each worker prepares in advance


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one bucket, with the random draws that belong to its samples."""

    number: int  # counted from 0 over the whole run
    ids: list[str]
    latents: Tensor  # (B, C, H, W), normalised
    conditions: Conditions
    noise: Tensor  # (B, C, H, W), N(0, 1)
    timestep_draw: Tensor  # (B,) uniform in (0, 1)
    mode_draw: Tensor  # (B,) uniform in [0, 1)

    def to(self, device: torch.device) -> Batch:
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("latents", "noise", "timestep_draw", "mode_draw")}
        return Batch(self.number, self.ids, conditions=self.conditions.map(lambda tensor: tensor.to(device, non_blocking=True)), **moved)


class BatchPlan:
    """Which samples stand in micro-batch n. Pure arithmetic on (seed, n): nothing to save, nothing to restore."""

    def __init__(self, buckets: Sequence[str], batch_size: int, seed: int) -> None:
        """`buckets`: the bucket of each sample, by sample index."""
        if not buckets:
            raise BadDataError("no training samples", "add images, or lower the hold-out share")
        self._members = {name: [i for i, bucket in enumerate(buckets) if bucket == name] for name in sorted(set(buckets))}
        self._size, self._seed = batch_size, seed
        self._epoch_ends = [0]  # micro-batches before each epoch, extended as needed
        self._passes = lru_cache(maxsize=2 * len(self._members) + 2)(self._shuffled_pass)
        self._orders = lru_cache(maxsize=2)(self._epoch_order)

    def batch(self, number: int) -> list[int]:
        """Sample indices of micro-batch `number`, all of one bucket."""
        epoch = self.epoch_of(number)
        bucket, ordinal = self._orders(epoch)[number - self._epoch_ends[epoch]]
        members = self._members[bucket]
        places = range(ordinal * self._size, (ordinal + 1) * self._size)
        return [members[self._passes(bucket, place // len(members))[place % len(members)]] for place in places]

    def epoch_of(self, number: int) -> int:
        """The epoch that micro-batch `number` belongs to."""
        while self._epoch_ends[-1] <= number:
            epoch = len(self._epoch_ends) - 1
            self._epoch_ends.append(self._epoch_ends[-1] + sum(last - first for _, first, last in self._epoch_ranges(epoch)))
        return next(epoch for epoch in itertools.count() if self._epoch_ends[epoch + 1] > number)

    def _epoch_ranges(self, epoch: int) -> list[tuple[str, int, int]]:
        """For each bucket the ordinals [first, last) of its batches that end in this epoch's pass."""
        return [(name, epoch * len(m) // self._size, (epoch + 1) * len(m) // self._size) for name, m in self._members.items()]

    def _epoch_order(self, epoch: int) -> list[tuple[str, int]]:
        batches = [(name, ordinal) for name, first, last in self._epoch_ranges(epoch) for ordinal in range(first, last)]
        return [batches[i] for i in _permutation(len(batches), derive_seed(self._seed, "batches", epoch))]

    def _shuffled_pass(self, bucket: str, which: int) -> list[int]:
        return _permutation(len(self._members[bucket]), derive_seed(self._seed, "samples", bucket, which))


def _permutation(count: int, seed: int) -> list[int]:
    return np.random.Generator(np.random.PCG64(seed)).permutation(count).tolist()


class BatchStream(Dataset):
    """`stream[n]` is micro-batch n, or one rank's equal share of it."""

    def __init__(
        self,
        shards: ShardSet,
        refs: list[SampleRef],
        norm: LatentNorm,
        batch_size: int,
        seed: int,
        patches: bool = True,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """`batch_size` counts the samples of all ranks together; without `patches` they are not read."""
        if batch_size % ranks:
            raise UsageError(f"train.batch_size {batch_size} does not divide among {ranks} processes", "choose a batch size divisible by them")
        self._shards, self._refs, self._norm, self._seed, self._patches = shards, refs, norm, seed, patches
        self._batch_size, self._rank, self._ranks = batch_size, rank, ranks
        self._patch_size = int(shards.card["encoders"]["image"]["patch_size"])
        self.plan = BatchPlan([ref.bucket for ref in refs], batch_size, seed)

    def __getitem__(self, number: int) -> Batch:
        share = self._batch_size // self._ranks
        mine = range(self._rank * share, (self._rank + 1) * share)
        indices = self.plan.batch(number)
        samples = [self._shards.read(self._refs[indices[place]], self._patches) for place in mine]
        latents, conditions = collate(samples, self._norm, self._patch_size)
        draws = [self._draw(number * self._batch_size + place, latents.shape[1:]) for place in mine]
        noise, timestep_draw, mode_draw = (torch.stack(column) for column in zip(*draws, strict=True))
        return Batch(number, [sample.ref.id for sample in samples], latents, conditions, noise, timestep_draw, mode_draw)

    def _draw(self, global_index: int, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "sample", global_index))
        uniform = torch.rand(2, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        return torch.randn(shape, generator=generator), uniform[0], uniform[1]

    def loader(self, first: int, end: int, workers: int, device: torch.device) -> DataLoader:
        """Micro-batches `first` to `end` (exclusive) in order, prepared by worker processes."""
        return DataLoader(
            self, batch_size=None, sampler=range(first, end), num_workers=workers, pin_memory=device.type == "cuda",
            prefetch_factor=_AHEAD if workers else None, generator=torch.Generator(),  # the loader would else draw from the global one
        )  # fmt: skip


def collate(samples: Sequence[Sample], norm: LatentNorm, patch_size: int) -> tuple[Tensor, Conditions]:
    """Normalised latents (B, C, H, W) and conditions of samples of one bucket. Text is padded to the longest caption, rounded up.

    `patch_size` is the image encoder's. Raises `BadDataError` when a sample's patches do not fill the bucket's grid.
    """
    grid = patch_grid(*parse_size(samples[0].ref.bucket), patch_size)
    for sample in samples:
        if sample.patches is not None and len(sample.patches) != grid[0] * grid[1]:
            raise BadDataError(
                f"{sample.ref.id}: {len(sample.patches)} patches, but the grid of {sample.ref.bucket} is {grid[0]}×{grid[1]} = {grid[0] * grid[1]}",
                "registers stored as patches, or features of another bucket: look with dit audit, then embed again",
            )
    latents = norm.apply(torch.stack([_tensor(sample.latent) for sample in samples]))
    lengths = torch.tensor([len(sample.text) for sample in samples])
    longest = -(-int(lengths.max()) // _TEXT_MULTIPLE) * _TEXT_MULTIPLE
    text = torch.zeros(len(samples), longest, samples[0].text.shape[1])
    for row, sample in zip(text, samples, strict=True):
        row[: len(sample.text)] = _tensor(sample.text)
    mask = torch.arange(longest)[None] < lengths[:, None]
    cls = torch.stack([_tensor(sample.cls) for sample in samples])
    patches = None if samples[0].patches is None else torch.stack([_tensor(sample.patches) for sample in samples])
    return latents, Conditions(text, mask, cls, patches, grid)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
