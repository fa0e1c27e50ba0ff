"""Several writers of one derived folder: how they split the work, and the locks that keep them apart.

A plain run holds the folder alone. Parts hold it together and each holds its own place; the files that all of them
write (records, identity card, journal) are changed under a third lock, for moments only. All are flock: the kernel lets
go of them when a process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from dittool.errors import StorageError, UsageError
from dittool.storage import LOCK_NAME, TEMPORARY_PREFIX, sweep_temporaries

_FOLDER_LOCK = LOCK_NAME  # of dittool.storage.folder_lock: exclusive for a plain run, shared among parts
_PATIENCE = 3  # times as long as its own share took, a part waits for another one's
_LOOK_AGAIN = 0.5  # seconds
_MOMENT_LOCK = f"{LOCK_NAME}-shared"


@dataclass(frozen=True)
class Part:
    """One share of the work: batch number k belongs to part k mod `count`."""

    index: int = 0
    count: int = 1

    @property
    def is_everything(self) -> bool:
        """Whether there is no other part."""
        return self.count == 1

    @property
    def name(self) -> str:
        """`0of4`, as in the names of its files."""
        return f"{self.index}of{self.count}"

    def takes(self, number: int) -> bool:
        return number % self.count == self.index

    @classmethod
    def parse(cls, text: str) -> Part:
        """`"0/4"` to `"3/4"`. Raises `UsageError`."""
        match = re.fullmatch(r"([0-9]{1,5})/([1-9][0-9]{0,4})", text)
        if not match or int(match[1]) >= int(match[2]):
            raise UsageError(
                f"--part {text}: not a part",
                "write I/N with I from 0 to N-1: the first of four parts is 0/4, the last 3/4",
            )
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Part:
        """The part of a process that torchrun started (RANK of WORLD_SIZE); the whole without torchrun."""
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return cls()
        return cls.parse(f"{environment['RANK']}/{environment['WORLD_SIZE']}")


@contextmanager
def writer_lock(folder: Path, part: Part) -> Iterator[None]:
    """Holds the derived folder, or a part's place in it, and sweeps what an interrupted writer of the same left.

    Raises `StorageError` naming the owner: of the folder, of the same part, or of a part of another split.
    """
    with ExitStack() as held:
        lock = held.enter_context(open(folder / _FOLDER_LOCK, "a+", encoding="utf-8"))
        if part.is_everything:
            if not _taken(lock, fcntl.LOCK_EX):
                raise _in_use(folder, _part_owners(folder) or [_owner(lock)])
            _sign(lock)
            for path in folder.glob(f"{_FOLDER_LOCK}-*of*"):
                path.unlink()
            sweep_temporaries(folder)
        else:
            if not _taken(lock, fcntl.LOCK_SH):
                raise _in_use(folder, [_owner(lock)])
            mine = held.enter_context(open(folder / f"{_FOLDER_LOCK}-{part.name}", "a+", encoding="utf-8"))
            if not _taken(mine, fcntl.LOCK_EX):
                raise _in_use(f"{folder}: part {part.index}/{part.count}", [_owner(mine)])
            _sign(mine)
            # Own place first, then a look at the others': of two splits that start at once, at least one sees the
            # other.
            if others := _part_owners(folder, other_than=part.count):
                raise _in_use(f"{folder}: a split into another number of parts than {part.count}", others)
            for leftover in folder.glob(f"*/{TEMPORARY_PREFIX}{part.name}-*"):
                leftover.unlink()
        yield


@contextmanager
def shared_files(folder: Path) -> Iterator[None]:
    """Held for the moment in which a writer changes a file that all parts write. Waits for the others. Not
    reentrant.
    """
    with open(folder / _MOMENT_LOCK, "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def wait_for_others(
    held: Path, part: Part, is_done: Callable[[Part], bool], took: float, say: Callable[[str], None]
) -> None:
    """Waits for the parts beside this one that are at work and have still to do their share: a few times as long as
    this part's share took, then it is done without them.

    Args:
        held: the folder whose lock the parts hold.
        took: seconds.
    """
    others = [Part(index, part.count) for index in range(part.count) if index != part.index]
    until, said = time.monotonic() + _PATIENCE * took + _LOOK_AGAIN, False
    while waiting := [other for other in others if not is_done(other) and is_at_work(held, other)]:
        if not said:
            say(f"waiting for part {waiting[0].index}/{part.count}, which is at work")
        if time.monotonic() > until:
            say("not waiting any longer: what the other parts have not done yet is done here")
            return
        said = True
        time.sleep(_LOOK_AGAIN)


def is_at_work(folder: Path, part: Part) -> bool:
    """Whether somebody holds the part's place."""
    path = folder / f"{_FOLDER_LOCK}-{part.name}"
    if not path.exists():
        return False
    with open(path, "r+", encoding="utf-8") as lock:
        return not _taken(lock, fcntl.LOCK_SH)


def use_own_gpu(environment: Mapping[str, str]) -> None:
    """Under torchrun, makes the GPU of this process's local rank the one that encoders choose."""
    import torch

    if "LOCAL_RANK" in environment and torch.cuda.is_available():
        torch.cuda.set_device(int(environment["LOCAL_RANK"]) % torch.cuda.device_count())


def _taken(lock: TextIO, mode: int) -> bool:
    try:
        fcntl.flock(lock, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(lock: TextIO) -> None:
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}")
    lock.flush()


def _owner(lock: TextIO) -> str:
    lock.seek(0)
    return lock.read().strip() or "another process"


def _part_owners(folder: Path, other_than: int = 0) -> list[str]:
    """Who holds a part's place, except in the split into `other_than` parts."""
    owners = []
    for path in sorted(folder.glob(f"{_FOLDER_LOCK}-*of*")):
        if path.name.endswith(f"of{other_than}"):
            continue
        with open(path, "r+", encoding="utf-8") as lock:
            if not _taken(lock, fcntl.LOCK_SH):
                owners.append(f"{_owner(lock)} (part {path.name.removeprefix(_FOLDER_LOCK + '-').replace('of', '/')})")
    return owners


def _in_use(what: Path | str, owners: list[str]) -> StorageError:
    return StorageError(
        f"{what}: already in use by {', '.join(owners)}", "wait until it ends, or choose another folder with --out"
    )
