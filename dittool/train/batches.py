"""The batches of a configuration: of one size, or of as many samples of each bucket as a budget of latent tokens
allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dittool.config.schema import Config
from dittool.data.normalisation import LatentNorm
from dittool.data.shards.read import SampleRef, ShardSet
from dittool.data.shards.stream import BatchStream, sizes_within
from dittool.errors import StorageError
from dittool.train.distributed import Ranks


def batch_sizes(config: Config, shards: ShardSet, refs: list[SampleRef]) -> int | dict[str, int]:
    """Samples in a micro-batch of all processes together: `train.batch_size`, or by bucket what
    `train.tokens_per_batch` has room for.
    """
    train = config.train
    if train.batch_size is not None:
        return train.batch_size
    cell = shards.card.vae.stride * config.model.patch_size
    return sizes_within(train.tokens_per_batch, sorted({ref.bucket for ref in refs}), cell, train.batch_multiple or 1)


def training_stream(
    config: Config, shards: ShardSet, refs: list[SampleRef], norm: LatentNorm, ranks: Ranks
) -> BatchStream:
    """The run's micro-batches, this process's share of each. Raises `UsageError` when a size does not divide among
    the processes.
    """
    return BatchStream(
        shards,
        refs,
        norm,
        batch_sizes(config, shards, refs),
        config.train.seed,
        config.model.patches,
        rank=ranks.rank,
        ranks=ranks.count,
        accumulate=config.train.accumulate,
    )


@contextmanager
def reader_errors_explained() -> Iterator[None]:
    """Inside, the death of a process that reads batches is a `StorageError`.

    The loader notices it by a signal, so the error may come from anywhere, in the midst of an update too: what is in
    memory then is no state to save.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise StorageError(
            f"a process that reads batches is gone: {str(error).splitlines()[0]}",
            "memory or /dev/shm ran full (see df /dev/shm): go on from the last checkpoint with fewer workers, dit"
            " train --resume -s train.workers=N",
        ) from error
