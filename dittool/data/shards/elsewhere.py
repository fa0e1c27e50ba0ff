"""A set of shards at an address: samples by ranges at once, whole shards fetched meanwhile.

    index.json, NAME.members.json      fetched when the set is opened, the lists checked by the hashes in the index
    a sample whose shard is here       one read of the file
    one whose shard is not             one request for its bytes

The order of training is shuffled over the whole set, so its first batches touch all shards: none is waited for as a
whole. A thread fetches them, one after the other, while batches are made, until all are here or the cache is full.
Threads run in the processes that read (workers, or the training process without any) and share the shards out by file
locks. Bytes that came by a range are compared with nothing but their own headers: hashes are of whole shards, and a
thread that finds one which is not the index's ends the reading.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from dittool.address import Address
from dittool.data.remote.cache import Cache, NoRoom
from dittool.data.remote.requests import download, read_object, read_range
from dittool.data.shards.index import ShardRow, members_path
from dittool.errors import BadDataError, DitError

_AT_ONCE = 16  # requests of one process
T = TypeVar("T")
R = TypeVar("R")


class RemoteShards:
    """The shards of an index at an address. Pickled to workers, each of which begins its own requests and thread."""

    def __init__(self, address: Address, rows: Sequence[ShardRow], cache: Cache) -> None:
        self.address, self.cache = address, cache
        self._rows = {row.path: row for row in rows}
        self._names = {_tar_name(row) for row in rows}
        self._process = 0
        self._failure: DitError | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return RemoteShards, (self.address, tuple(self._rows.values()), self.cache)

    def lists(self) -> list[Path]:
        """The checked list of members of each row, on this machine."""
        return self.each(self._list, self._rows.values())

    def here(self, shard: str) -> Path | None:
        """The whole shard on this machine, if it is."""
        return self.cache.find(_tar_name(self._rows[shard]))

    def whole(self, shard: str) -> Path:
        """The whole shard on this machine, fetched if it is not. Raises `DitError` where it cannot be had."""
        path = self._fetched(self._rows[shard])
        assert path is not None  # only a fetch with `keep` gives up
        return path

    def read(self, shard: str, start: int, into: memoryview) -> int:
        """Fills `into` from byte `start` of a shard that is not here; says how many bytes there were."""
        data = read_range(self._at(shard), start, start + len(into))
        into[: len(data)] = data
        return len(data)

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """`work` of all items, some at a time: what takes time is the wait for answers."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(work, items))

    def fetch_meanwhile(self) -> None:
        """Begins to fetch whole shards in this process. Raises what an earlier fetch in it found wrong."""
        if self._failure is not None:
            raise self._failure
        if self._process != os.getpid():  # not begun here: a thread does not live on in a forked process
            self._process = os.getpid()
            threading.Thread(target=self._fetch_all, daemon=True).start()

    def _fetch_all(self) -> None:
        rows = list(self._rows.values())
        random.Random(os.getpid()).shuffle(rows)  # each process its own order: few meet at a shard
        for row in rows:
            try:
                self._fetched(row, keep=self._names)
            except NoRoom:
                return  # the rest is read by ranges
            except BadDataError as error:
                self._failure = error  # a shard that is not the index's: no sample of it may be trained on
                return
            except DitError:
                continue  # the store fails: who needs a sample of it asks again, and says so

    def _fetched(self, row: ShardRow, keep: set[str] | None = None) -> Path | None:
        address = self._at(row.path)
        return self.cache.fetch(
            _tar_name(row), row.sha256, row.bytes, partial(download, address, row.bytes), address, keep
        )

    def _list(self, row: ShardRow) -> Path:
        address, name = Address(members_path(self._at(row.path))), f"{row.members_sha256}.members.json"
        found = self.cache.find(name) or self.cache.fetch(
            name, row.members_sha256, None, lambda take: take(read_object(address)), address
        )
        assert found is not None
        return found

    def _at(self, shard: str) -> Address:
        return Address(self.address / PurePosixPath(shard))


def _tar_name(row: ShardRow) -> str:
    return f"{row.sha256}.tar"
