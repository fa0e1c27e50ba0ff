"""Whole shards of remote sets on this machine: bounded, checked by their hashes, shared by all ranks, workers and jobs.

    SHA256.tar, SHA256.members.json     named by what they hold, so that none is ever stale
    SHA256.lock                         held by the one process that fetches it
    room.lock                           held while room is made

A file appears under its name when it is whole and its hash is right. The ones that were not used for the longest make
way; who has one open reads on. Folder: DIT_CACHE, by default in the user's cache folder; bytes: DIT_CACHE_BYTES.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dittool.errors import BadDataError, StorageError, UsageError
from dittool.storage import TEMPORARY_PREFIX, bytes_text, cache_folder, full_disk_explained, output_folder, write_atomic

FOLDER_VARIABLE, BYTES_VARIABLE = "DIT_CACHE", "DIT_CACHE_BYTES"
DEFAULT_BYTES = 100 * 10**9
_ROOM = "room.lock"
_FORGOTTEN = 24 * 3600  # seconds: temporary files that nobody writes any more
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class NoRoom(StorageError):
    """The cache or its disk is full."""


def parse_bytes(text: str, name: str) -> int:
    """`200GB` → 200,000,000,000. Raises `UsageError`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)b?", text.strip().lower())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"{name} = {text!r}: no number of bytes", "write it like 200GB or 1.5TB")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True)
class Cache:
    """A folder of files that can be fetched again."""

    folder: Path
    most_bytes: int

    @staticmethod
    def of_environment() -> Cache:
        """Raises `UsageError` for bytes that are none, `StorageError` where no folder can be written to."""
        given, bytes_given = os.environ.get(FOLDER_VARIABLE), os.environ.get(BYTES_VARIABLE)
        most = parse_bytes(bytes_given, BYTES_VARIABLE) if bytes_given else DEFAULT_BYTES
        if given:
            return Cache(output_folder(Path(given)), most)
        if (home := cache_folder()) is None:
            raise StorageError("no folder for shards that are fetched", f"name one: {FOLDER_VARIABLE}=FOLDER")
        return Cache(output_folder(home / "fetched"), most)

    def find(self, name: str) -> Path | None:
        """The file of this name, marked as used now."""
        path = self.folder / name
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        except OSError:
            return path if path.exists() else None  # somebody else's cache, which can be read
        return path

    def fetch(
        self,
        name: str,
        sha256: str,
        size: int | None,
        download: Callable[[Callable[[bytes], object]], object],
        source: Path,
        keep: Collection[str] | None = None,
    ) -> Path | None:
        """The file of this name, downloaded by the first process that asks.

        Args:
            size: in bytes; None: small.
            download: called with what takes the bytes, piece by piece.
            keep: names that must not make way; then the call never waits: None where another process fetches it.

        Raises `BadDataError` when the bytes that came have another hash, `NoRoom` when cache or disk are full.
        """
        with open(self.folder / f"{sha256}.lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if keep is not None else 0))
            except BlockingIOError:
                return None
            if (found := self.find(name)) is not None:
                return found
            for leftover in self.folder.glob(f"{TEMPORARY_PREFIX}{sha256}-*"):
                leftover.unlink(missing_ok=True)
            path = self.folder / name
            try:
                with full_disk_explained(path, size or 0):
                    write_atomic(
                        path,
                        lambda file: self._fill(file, sha256, size, download, source, keep),
                        writer=f"{sha256}-",
                    )
            except StorageError as error:
                if isinstance(error.__cause__, OSError):  # the disk
                    raise NoRoom(
                        error.message, f"free some space, or keep the cache elsewhere: {FOLDER_VARIABLE}=FOLDER"
                    ) from error
                raise
            return path

    def _fill(
        self,
        file: BinaryIO,
        sha256: str,
        size: int | None,
        download: Callable[[Callable[[bytes], object]], object],
        source: Path,
        keep: Collection[str] | None,
    ) -> None:
        if size:
            with open(self.folder / _ROOM, "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._make_room(size, keep or ())
                _reserve(file, size)
        digest = hashlib.sha256()

        def take(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        download(take)
        if (found := digest.hexdigest()) != sha256:
            raise BadDataError(
                f"{source}: sha256 {found[:12]}…, the index says {sha256[:12]}…",
                "the object was changed or damaged after its index was written: copy the set there again",
            )

    def _make_room(self, needed: int, keep: Collection[str]) -> None:
        """Removes the files that were not used for the longest, as many as are in the way. Raises `NoRoom`."""
        stats = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                stat = path.stat()
                if path.name.startswith(TEMPORARY_PREFIX) and time.time() - stat.st_mtime > _FORGOTTEN:
                    path.unlink()
                elif not path.name.endswith(".lock"):
                    stats.append((stat.st_mtime, stat.st_size, path))
        used = sum(size for _, size, _ in stats)
        for _, size, path in sorted(stats):
            if used + needed <= self.most_bytes:
                break
            if not path.name.startswith(TEMPORARY_PREFIX) and path.name not in keep:
                path.unlink(missing_ok=True)
                used -= size
        if used + needed > self.most_bytes:
            raise NoRoom(
                f"{self.folder}: a shard of {bytes_text(needed)} and {bytes_text(used)} in use, the cache may hold"
                f" {bytes_text(self.most_bytes)}",
                f"give it more: {BYTES_VARIABLE}=200GB",
            )


def _reserve(file: BinaryIO, size: int) -> None:
    """So that a full disk shows before the download, and other processes count these bytes."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
