"""Decoding, encoding and writing at the same time, with a bounded amount of work between them, so that memory stays
flat.

Decoding runs ahead of the encoder by two batches, writing behind it by two. Files of a batch are written by several
threads, each waiting for its own fsync; then one thread, in the order of the batches, enters the batch into the
journal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, current_process, get_context, parent_process
from multiprocessing.synchronize import Event
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from dittool.data.features.journal import joined_digest
from dittool.data.features.store import FeatureStore
from dittool.data.records import Feature, Record
from dittool.data.source.images import ImageRefused
from dittool.data.source.scan import bucketed, load_upright
from dittool.data.source.thumbnail import thumbnail_of
from dittool.errors import StorageError, UsageError
from dittool.machine import usable_cores

_AHEAD = 2  # batches being decoded while one is encoded
_BEHIND = 2  # batches being written
_WRITERS = 8  # threads: each waits for the disk, hardly any computes
_MOST_DECODERS = 16
_WORTH_A_PROCESS = 200  # images; a worker process takes about half a second to start
_SMALL = 256 * 256  # pixels of the picture as it is on disk

Loaded = TypeVar("Loaded")
Pixels = np.ndarray  # (H, W, 3) uint8, one bucketed image
Arrays = Mapping[Feature, np.ndarray]


@dataclass(frozen=True)
class Refusal:
    """Why an image could not be decoded: a value, because it comes from another process."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Decoded:
    """An image as the encoders see it, and its thumbnail."""

    pixels: Pixels
    thumbnail: np.ndarray  # (16, 16, 3) uint8, of the whole image


def decoded(record: Record, source: Path) -> Decoded | Refusal:
    """The image of a record. It stands in this file because worker processes import what it stands in: no torch, no
    encoder.
    """
    try:
        upright = load_upright(record, source)
        return Decoded(bucketed(record, upright), thumbnail_of(upright))
    except ImageRefused as error:
        return Refusal(error.reason, error.detail)


def decoder_count() -> int:
    """How many images are decoded at a time: one for each core that this process may use."""
    return min(usable_cores(), _MOST_DECODERS)


def decoders(records: Sequence[Record]) -> Executor:
    """Who decodes these images: worker processes, or threads when the images are few or small.

    Pillow holds the interpreter for much of its work. Measured on two cores with pictures of about a megapixel: two
    threads are as fast as one, two processes 1.6 times as fast. With pictures of 96x96 handing them over costs more
    than decoding them: threads are twice as fast. Spawned, not forked: a fork of a process that runs threads can hang,
    and would inherit the folder's lock.
    """
    pixels = sum(record.width * record.height for record in records)
    if len(records) < _WORTH_A_PROCESS or pixels < len(records) * _SMALL:
        return ThreadPoolExecutor(decoder_count())
    return _Decoders()


class _Decoders(ProcessPoolExecutor):
    """Worker processes, and whether any of them began to work."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.begun = context.Event()
        super().__init__(decoder_count(), context, initializer=_begin, initargs=(self.begun,))


def leave_a_process_that_starts() -> None:
    """Ends a worker process that calls this while it still starts. A spawned process imports the script that it came
    from; where that script embeds without asking whether it is run, every worker would begin to embed as well.
    """
    if getattr(current_process(), "_inheriting", False):
        raise SystemExit(1)


def loaded_ahead(
    batches: Iterable[Sequence[Record]], load: Callable[[Record, Path], Loaded], source: Path, pool: Executor
) -> Iterator[tuple[Sequence[Record], list[Loaded]]]:
    """Each batch with what `load` made of its records and the source, in order. Raises `StorageError` when a worker
    process died.
    """
    pending: deque[tuple[Sequence[Record], list[Future[Loaded]]]] = deque()
    try:
        for batch in batches:
            pending.append((batch, [pool.submit(load, record, source) for record in batch]))
            if len(pending) > _AHEAD:
                yield _taken(pending)
        while pending:
            yield _taken(pending)
    except BrokenProcessPool as error:
        if isinstance(pool, _Decoders) and not pool.begun.is_set():
            raise _not_begun() from error
        raise StorageError(
            "a process that decodes images was killed; mostly that is the system's answer to too little memory",
            "close other programs or give this one more memory, then run the same command again: what is made stays",
        ) from error
    finally:
        for _, futures in pending:
            for future in futures:
                future.cancel()


class FeatureWriter:
    """Writes features behind the encoder. A batch counts when all its files and then its journal line are on disk.

    Use as a context manager: leaving it waits for what is under way and raises what went wrong in it.
    """

    def __init__(self, store: FeatureStore, stage: str, on_written: Callable[[int], None]) -> None:
        self._store, self._stage, self._on_written = store, stage, on_written
        self._files, self._journal = ThreadPoolExecutor(_WRITERS), ThreadPoolExecutor(1)
        self._pending: deque[Future[int]] = deque()
        self.written = 0  # records

    def put(self, records: Sequence[Record], arrays: Sequence[Arrays]) -> None:
        """Hands over a batch, and waits while too many are being written. Raises what writing an earlier one raised."""
        jobs = [
            (record.id, feature.name, self._files.submit(self._store.write, feature, record.id, array))
            for record, made in zip(records, arrays, strict=True)
            for feature, array in made.items()
        ]
        self._pending.append(self._journal.submit(self._enter, records, jobs))
        self._settle(_BEHIND)

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._settle(0)
        finally:
            self._files.shutdown(cancel_futures=True)
            self._journal.shutdown(cancel_futures=True)

    def _enter(self, records: Sequence[Record], jobs: list[tuple[str, str, Future[str]]]) -> int:
        found: dict[str, dict[str, list[str]]] = {}
        for record_id, feature, job in jobs:
            found.setdefault(record_id, {}).setdefault(feature, []).append(job.result())
        digests = {key: {name: joined_digest(some) for name, some in of.items()} for key, of in found.items()}
        self._store.append_journal(self._stage, records, digests)
        return len(records)

    def _settle(self, most: int) -> None:
        while len(self._pending) > most:
            count = self._pending.popleft().result()
            self.written += count
            self._on_written(count)


def _taken(pending: deque[tuple[Sequence[Record], list[Future[Loaded]]]]) -> tuple[Sequence[Record], list[Loaded]]:
    batch, futures = pending.popleft()
    return batch, [future.result() for future in futures]


def _not_begun() -> UsageError:
    script = getattr(sys.modules.get("__main__"), "__file__", None) or "the script that is run"
    return UsageError(
        f"{script}: the processes that decode images ended while they were starting: each imports this script, which"
        ' calls embed() outside of: if __name__ == "__main__":',
        'put the call under: if __name__ == "__main__":',
    )


def _begin(begun: Event) -> None:
    begun.set()
    _end_with_the_parent()


def _end_with_the_parent() -> None:
    """In a worker process: Ctrl-C is for the parent to handle, and a parent that was killed leaves no worker behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    if (parent := parent_process()) is not None:
        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
