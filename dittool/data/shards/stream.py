"""Deterministic batches: micro-batch number n is the same on every machine, after every resume, for any number of
workers and ranks.

Each bucket is an endless row of shuffled passes over its samples, cut into batches; an epoch takes from every bucket
the batches that its samples fill, in an order shuffled over all buckets. A remainder is not dropped and not repeated:
it opens the bucket's next batch.

    order of samples and batches = f(seed, epoch)          noise, timestep, dropout = f(seed, global sample index)
    which caption of several = f(seed, pass over the bucket, id): caption_draw.py

B samples of a batch · C H W latent · L longest caption of the batch, rounded up · N patches
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dittool.data.normalisation import LatentNorm
from dittool.data.patch_storage import stored_grid
from dittool.data.records import text_members
from dittool.data.remote.requests import LONGEST
from dittool.data.shards.caption_draw import Weights, drawn_caption
from dittool.data.shards.columns import SampleRef, Samples
from dittool.data.shards.order import NO_SAMPLES, BatchPlan
from dittool.data.shards.read import Sample, ShardSet
from dittool.data.shards.read_ahead import read_ahead, tensor_bytes
from dittool.errors import BadDataError, UsageError
from dittool.geometry import parse_size, patch_grid
from dittool.models.conditioning import Conditions
from dittool.seeding import derive_seed

_MOST_PASSES = 100  # over the training set in one batch; a few are asked for where one image is learned by heart
_TEXT_MULTIPLE = 8  # captions of a batch are padded to a multiple of this, so that few shapes occur


def require_few_passes(size: int, what: str, samples: int) -> None:
    """Raises `UsageError` for a batch of `size` training samples that holds each of all `samples` absurdly often,
    `BadDataError` where there are none.
    """
    if not samples:
        raise BadDataError(*NO_SAMPLES)
    if size > _MOST_PASSES * samples:
        raise UsageError(
            f"{size:,} {what} in a batch, and {samples:,} samples to train on: each would be in it"
            f" {size // samples:,} times",
            "make train.batch_size or train.tokens_per_batch smaller",
        )


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
    weight: float  # its share of the samples of its step
    first_sample: int  # number of its first sample in the run

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Batch:
        """All but the draws: the host decides by `mode_draw` whether the batch needs a mask, and makes timesteps in
        float64, which Apple's GPUs do not have.
        """
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("latents", "noise")}
        return replace(
            self, conditions=self.conditions.map(lambda tensor: tensor.to(device, non_blocking=True)), **moved
        )

    def pin_memory(self) -> Batch:
        """The DataLoader asks for it where there is a GPU: only from pinned memory is a copy to the device
        asynchronous.
        """
        pinned = {name: getattr(self, name).pin_memory() for name in ("latents", "noise")}
        return replace(self, conditions=self.conditions.map(Tensor.pin_memory), **pinned)


@dataclass(frozen=True)
class StoredBatch:
    """A micro-batch as it travels: features of the type that they are stored in, mostly float16, latents not
    normalised.
    """

    batch: Batch
    shift: Tensor  # (C, 1, 1) of the normalisation
    scale: Tensor  # (C, 1, 1)

    def to(self, device: torch.device) -> Batch:
        """As the model sees it: cast to float32 and normalised there, after half of the bytes have travelled."""
        batch, shift, scale = self.batch.to(device), self.shift.to(device, non_blocking=True), self.scale
        latents = (batch.latents.float() - shift) * scale.to(device, non_blocking=True)
        return replace(batch, latents=latents, conditions=batch.conditions.map(_as_float))

    def pin_memory(self) -> StoredBatch:
        """The DataLoader asks for it."""
        return StoredBatch(self.batch.pin_memory(), self.shift.pin_memory(), self.scale.pin_memory())


def sizes_within(tokens_per_batch: int, buckets: Iterable[str], cell: int, multiple: int = 1) -> dict[str, int]:
    """Samples in a batch of each bucket, so that a batch holds at most so many latent tokens: ⌊budget / tokens of the
    bucket⌋, at least 1.

    Args:
        cell: pixels along one side of a token: the codec's stride times the model's patch size.
        multiple: sizes are brought down to a multiple of it, and are at least it, so that they divide among as many
        processes.
    """
    sizes = {}
    for name in buckets:
        width, height = parse_size(name)
        fitting = tokens_per_batch // ((width // cell) * (height // cell))
        sizes[name] = max(fitting - fitting % multiple, multiple)
    return sizes


class BatchStream(Dataset):
    """`stream[n]` is micro-batch n, or one rank's equal share of it."""

    def __init__(
        self,
        shards: ShardSet,
        refs: Sequence[SampleRef],
        norm: LatentNorm,
        batch_size: int | Mapping[str, int],
        seed: int,
        patches: bool = True,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
        caption_weights: Weights | None = None,
    ) -> None:
        """`batch_size` counts the samples of all ranks together, of every bucket or of each (`sizes_within`). Without
        `patches` they are not read. `accumulate` micro-batches make a step. `caption_weights`: of kinds of captions,
        where samples have several.
        """
        refs = Samples.of(refs)
        self.plan = BatchPlan(refs, batch_size, seed)
        for bucket, size in self.plan.sizes.items():
            require_few_passes(size, f"samples of bucket {bucket}", len(refs))
            if size % ranks:
                where = "" if isinstance(batch_size, int) else f" of bucket {bucket}"
                key = "train.batch_size" if isinstance(batch_size, int) else "train.batch_multiple"
                raise UsageError(
                    f"{size} samples{where} in a batch do not divide among {ranks} processes",
                    f"set {key} to a multiple of {ranks}",
                )
        self._shards, self._refs, self._norm, self._seed, self._patches = shards, refs, norm, seed, patches
        self._rank, self._ranks, self._accumulate = rank, ranks, accumulate
        self._weights = caption_weights or {}
        self._patch_size = shards.card.image.patch_size

    def __getitem__(self, number: int) -> Batch:
        return self.stored(number).to(torch.device("cpu"))

    def stored(self, number: int) -> StoredBatch:
        """Micro-batch `number` as it travels to the device."""
        indices, first = self.plan.batch(number), self.plan.samples_before(number)
        share = len(indices) // self._ranks
        mine = range(self._rank * share, (self._rank + 1) * share)
        refs, passes = [self._refs[indices[place]] for place in mine], self.plan.passes(number)
        texts = [
            drawn_caption(ref, self._weights, self._seed, passes[place]) for ref, place in zip(refs, mine, strict=True)
        ]
        samples = self._shards.read_all(refs, self._patches, texts)
        latents, conditions = collate_stored(samples, self._patch_size)
        noise = torch.empty(latents.shape)
        uniform = torch.empty(share, 2, dtype=torch.float64)  # timestep and mode of each
        for row, place in enumerate(mine):
            self._draw(first + place, noise[row], uniform[row])
        draws = uniform[:, 0].contiguous(), uniform[:, 1].contiguous()
        ids = [sample.ref.id for sample in samples]
        batch = Batch(number, ids, latents, conditions, noise, *draws, self._weight(number), first + mine.start)
        return StoredBatch(batch, *self._norm.tensors())

    def _weight(self, number: int) -> float:
        """Samples of this micro-batch over those of its step, so that a step's loss is the mean over its samples
        whatever their buckets.
        """
        first = number - number % self._accumulate
        of_step = self.plan.samples_before(first + self._accumulate) - self.plan.samples_before(first)
        return (self.plan.samples_before(number + 1) - self.plan.samples_before(number)) / of_step

    def _draw(self, global_index: int, noise: Tensor, uniform: Tensor) -> None:
        """Fills what belongs to the sample at this place of the run."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "sample", global_index))
        torch.rand(2, generator=generator, dtype=torch.float64, out=uniform).clamp_(1e-12, 1 - 1e-12)
        torch.randn(noise.shape, generator=generator, out=noise)

    def batches(self, first: int, end: int, workers: int, device: torch.device) -> Iterator[Batch]:
        """Micro-batches `first` to `end` (exclusive) in order, prepared by worker processes, on the device."""
        ahead = read_ahead(
            _Stored(self),
            range(first, end),
            workers,
            pin_memory=device.type == "cuda",
            item_bytes=self.largest_batch[1] if workers else 0,
            tries=0.0 if self._shards.remote is None else LONGEST,
        )
        return (stored.to(device) for stored in ahead)

    @cached_property
    def largest_batch(self) -> tuple[int, int]:
        """Bytes of this process's share of the largest micro-batch: as the model sees it, as a worker hands it over."""
        longest = self._refs.largest(*text_members(self._refs.columns.suffixes))  # the sample of the longest caption
        sizes = {bucket: size // self._ranks for bucket, size in self.plan.sizes.items()}
        each = {bucket: self._bytes_of_a_sample(longest[bucket]) for bucket in sizes}
        return max(sizes[b] * each[b][0] for b in sizes), max(sizes[b] * each[b][1] for b in sizes)

    def _bytes_of_a_sample(self, ref: SampleRef) -> tuple[int, int]:
        text = max(text_members(ref.members), key=lambda member: ref.members[member][1])
        stored, conditions = collate_stored([self._shards.read(ref, self._patches, text)], self._patch_size)
        drawn = 4 * stored.numel() + 16  # noise; timestep and mode
        given = 4 * stored.numel() + tensor_bytes(conditions.map(_as_float))
        return given + drawn, tensor_bytes(stored) + tensor_bytes(conditions) + drawn


class _Stored:
    """The batches of a stream as they travel."""

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream

    def __getitem__(self, number: int) -> StoredBatch:
        return self._stream.stored(number)


def collate(samples: Sequence[Sample], norm: LatentNorm, patch_size: int) -> tuple[Tensor, Conditions]:
    """Normalised latents (B, C, H, W) and conditions of samples of one bucket, as the model sees them: float32.
    Arguments and errors as of `collate_stored`.
    """
    latents, conditions = collate_stored(samples, patch_size)
    return norm.apply(latents.float()), conditions.map(_as_float)


def collate_stored(samples: Sequence[Sample], patch_size: int) -> tuple[Tensor, Conditions]:
    """Latents (B, C, H, W) and conditions of samples of one bucket, as they are stored. Text is padded to the longest
    caption, rounded up; a batch that needs no padding has no mask.

    `patch_size` is the image encoder's. Raises `BadDataError` when a sample's patches do not fill the bucket's grid.
    """
    grid = stored_grid(patch_grid(*parse_size(samples[0].ref.bucket), patch_size), samples[0].patch_storage)
    for sample in samples:
        if sample.patches is not None and len(sample.patches) != grid[0] * grid[1]:
            raise BadDataError(
                f"{sample.ref.id}: {len(sample.patches)} patches, but the grid of {sample.ref.bucket} is"
                f" {grid[0]}×{grid[1]} = {grid[0] * grid[1]}",
                "registers stored as patches, or features of another bucket: look with dit audit, then embed again",
            )
    lengths = torch.tensor([len(sample.text) for sample in samples])
    longest = -(-int(lengths.max()) // _TEXT_MULTIPLE) * _TEXT_MULTIPLE
    width, kind = samples[0].text.shape[1], _dtype([sample.text for sample in samples])
    text = torch.zeros(len(samples), longest, width, dtype=kind)
    for row, sample in zip(text, samples, strict=True):
        row[: len(sample.text)].copy_(torch.from_numpy(sample.text))
    padded = bool((lengths < longest).any())
    # (B, L); without a mask attention has faster kernels
    mask = torch.arange(longest)[None] < lengths[:, None] if padded else None
    cls = _stacked([sample.cls for sample in samples], samples)
    kept = [sample.patches for sample in samples if sample.patches is not None]
    patches = _stacked(kept, samples) if kept else None
    latents = _stacked([sample.latent for sample in samples], samples)
    return latents, Conditions(text, mask, cls, patches, grid)


def _stacked(arrays: Sequence[np.ndarray], samples: Sequence[Sample]) -> Tensor:
    """(B, …) of their type, each array copied to where it will stand. Raises `BadDataError` when one has another
    shape than the first.
    """
    batch = _allocated(_dtype(arrays), len(arrays), *arrays[0].shape)
    for row, array, sample in zip(batch, arrays, samples, strict=True):
        if array.shape != row.shape:
            raise BadDataError(
                f"{sample.ref.id}: a feature of shape {array.shape} in a batch of {tuple(row.shape)}"
                f" ({sample.ref.bucket})",
                "features of another bucket or encoder: look with dit audit, then embed again",
            )
        row.copy_(torch.from_numpy(array))
    return batch


def _allocated(dtype: torch.dtype, *shape: int) -> Tensor:
    """Uninitialised. numpy asks the kernel for huge pages; the many small ones that torch gets cost more time than all
    the reading.
    """
    return torch.from_numpy(np.empty(shape, dtype=np.float16 if dtype == torch.float16 else np.float32))


def _dtype(arrays: Sequence[np.ndarray]) -> torch.dtype:
    """What holds all of them without loss: float16 where all are stored so."""
    return torch.float16 if all(array.dtype == np.float16 for array in arrays) else torch.float32


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
