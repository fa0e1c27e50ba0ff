"""Which samples stand in micro-batch n: arithmetic on numbers, whatever the size of the set.

An epoch's order takes 32 bytes a batch. The shuffled pass over a large bucket, 4 bytes a sample, is made by the first
process that needs it and shared by all of the machine.
"""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import BinaryIO

import numpy as np

from dittool.data.shards.columns import Samples
from dittool.data.shards.shared_files import shared_file
from dittool.errors import BadDataError
from dittool.seeding import derive_seed

NO_SAMPLES = "no training samples", "add images, or lower the hold-out share"
_SHARED_FROM = 2**17  # samples of a bucket
_MOST_ORDERS = 4 * 2**30  # bytes of shuffled passes in the cache folder


class _Bucket:
    """The samples of one bucket, as runs of neighbours in the set."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []  # samples of the bucket up to the end of each run

    def add(self, first: int, count: int) -> None:
        self._firsts.append(first)
        self._ends.append(len(self) + count)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: int) -> int:
        """Sample index of the bucket's sample number `place`."""
        run = bisect_right(self._ends, place)
        return self._firsts[run] + place - (self._ends[run - 1] if run else 0)


class _EpochOrder:
    """An epoch's batches in order."""

    def __init__(self, ranges: Sequence[tuple[str, int, int]], sizes: Mapping[str, int], seed: int) -> None:
        """`ranges`: for each bucket the ordinals [first, last) of its batches."""
        self._names, firsts = [name for name, _, _ in ranges], np.array([first for _, first, _ in ranges])
        counts = np.array([last - first for _, first, last in ranges])
        shuffled = _permutation(int(counts.sum()), seed)
        self._which = np.repeat(np.arange(len(ranges)), counts)[shuffled]
        self._ordinals = shuffled - (np.cumsum(counts) - counts)[self._which] + firsts[self._which]
        size = np.array([sizes[name] for name in self._names])[self._which]
        self._before = np.cumsum(size) - size

    def __getitem__(self, place: int) -> tuple[str, int, int]:
        """Bucket, ordinal, samples of the epoch before it."""
        return self._names[int(self._which[place])], int(self._ordinals[place]), int(self._before[place])


class BatchPlan:
    """Which samples stand in micro-batch n. Pure arithmetic on (seed, n): nothing to save, nothing to restore."""

    def __init__(self, buckets: Sequence[str] | Samples, batch_size: int | Mapping[str, int], seed: int) -> None:
        """`buckets`: the bucket of each sample, by sample index, or the samples. `batch_size`: of every batch, or of
        the batches of each bucket.
        """
        if not buckets:
            raise BadDataError(*NO_SAMPLES)
        members: defaultdict[str, _Bucket] = defaultdict(_Bucket)
        first = 0
        for name, count in _runs(buckets):
            members[name].add(first, count)
            first += count
        self._members = dict(sorted(members.items()))
        self.sizes = {name: batch_size if isinstance(batch_size, int) else batch_size[name] for name in self._members}
        self._seed = seed
        # micro-batches and samples before each epoch, extended as needed
        self._epoch_batches, self._epoch_samples = [0], [0]
        self._passes = lru_cache(maxsize=2 * len(self._members) + 2)(self._shuffled_pass)
        self._orders = lru_cache(maxsize=2)(self._epoch_order)

    def batch(self, number: int) -> list[int]:
        """Sample indices of micro-batch `number`, all of one bucket."""
        bucket, ordinal, _ = self._place(number)
        members, size = self._members[bucket], self.sizes[bucket]
        places = range(ordinal * size, (ordinal + 1) * size)
        return [members[int(self._passes(bucket, place // len(members))[place % len(members)])] for place in places]

    def passes(self, number: int) -> list[int]:
        """How often each sample of micro-batch `number` came before: the passes over its bucket that are behind it."""
        bucket, ordinal, _ = self._place(number)
        size = self.sizes[bucket]
        return [place // len(self._members[bucket]) for place in range(ordinal * size, (ordinal + 1) * size)]

    def samples_before(self, number: int) -> int:
        """Samples in micro-batches 0 to `number` − 1: the global index of the first sample of micro-batch `number`."""
        return self._place(number)[2]

    def epoch_of(self, number: int) -> int:
        """The epoch that micro-batch `number` belongs to."""
        while self._epoch_batches[-1] <= number:
            ranges = self._epoch_ranges(len(self._epoch_batches) - 1)
            self._epoch_batches.append(self._epoch_batches[-1] + sum(last - first for _, first, last in ranges))
            self._epoch_samples.append(
                self._epoch_samples[-1] + sum((last - first) * self.sizes[name] for name, first, last in ranges)
            )
        return bisect_right(self._epoch_batches, number) - 1  # of several that begin here, all but the last are empty

    def _place(self, number: int) -> tuple[str, int, int]:
        """Bucket of micro-batch `number`, its ordinal there, and the samples before it."""
        epoch = self.epoch_of(number)
        bucket, ordinal, before = self._orders(epoch)[number - self._epoch_batches[epoch]]
        return bucket, ordinal, self._epoch_samples[epoch] + before

    def _epoch_ranges(self, epoch: int) -> list[tuple[str, int, int]]:
        """For each bucket the ordinals [first, last) of its batches that end in this epoch's pass."""
        return [
            (name, epoch * len(m) // self.sizes[name], (epoch + 1) * len(m) // self.sizes[name])
            for name, m in self._members.items()
        ]

    def _epoch_order(self, epoch: int) -> _EpochOrder:
        return _EpochOrder(self._epoch_ranges(epoch), self.sizes, derive_seed(self._seed, "batches", epoch))

    def _shuffled_pass(self, bucket: str, which: int) -> np.ndarray:
        return _shared_permutation(len(self._members[bucket]), derive_seed(self._seed, "samples", bucket, which))


def _runs(buckets: Sequence[str] | Samples) -> Iterator[tuple[str, int]]:
    """Bucket and length of each run of neighbours of one bucket."""
    if isinstance(buckets, Samples):
        return buckets.bucket_runs()
    return ((name, len(list(some))) for name, some in itertools.groupby(buckets))


def _permutation(count: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).permutation(count)


def _shared_permutation(count: int, seed: int) -> np.ndarray:
    """(count,) the same as `_permutation`, of a large one in memory that all processes share."""

    def write(file: BinaryIO) -> None:
        file.write(_permutation(count, seed).astype("<u4").data)

    if not _SHARED_FROM <= count < 2**32:
        return _permutation(count, seed)
    name = hashlib.sha256(f"PCG64 numpy {np.__version__} {count} {seed}".encode()).hexdigest()
    path = shared_file(f"{name}.order", write, _MOST_ORDERS)
    try:
        if path is not None and path.stat().st_size == 4 * count:
            return np.asarray(np.memmap(path, "<u4", mode="r"))
    except OSError:  # it has just made way for another
        pass
    return _permutation(count, seed).astype("<u4")
