"""Large tables that all processes of a machine share: made once, kept in the user's cache folder, mapped by each.

    $XDG_CACHE_HOME/dittool (else ~/.cache/dittool, else a folder of this user's in the temporary folder)

A file is named by a hash of all that decides its content, so none is ever stale, and a set on read-only media needs no
room beside it. The oldest files make way for new ones; a process that has mapped one keeps it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from dittool.storage import cache_folder, write_atomic

_LOCK = "making.lock"


def shared_file(name: str, write: Callable[[BinaryIO], object], most_bytes: int) -> Path | None:
    """The file of this name, written by the first process that asks; the others wait for it. None where no cache folder
    takes it: then each process keeps its own table.

    Args:
        most_bytes: of all files with the same suffix; those unused for the longest are removed.
    """
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / name
    try:
        if not path.exists():
            with open(folder / _LOCK, "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    write_atomic(path, write)
                    _make_room(path, most_bytes)
        os.utime(path)
    except OSError:
        return path if path.exists() else None
    return path


def _make_room(new: Path, most_bytes: int) -> None:
    """Removes the files that were not used for the longest, as many as are too many."""
    stats = [(path.stat(), path) for path in new.parent.glob(f"[!.]*{new.suffix}") if path != new]
    room = most_bytes - new.stat().st_size
    for stat, path in sorted(stats, key=lambda item: -item[0].st_mtime):
        room -= stat.st_size
        if room < 0:
            path.unlink(missing_ok=True)
