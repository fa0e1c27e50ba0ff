"""Shards held open for reading, a bounded number of them: a set may have more shards than a process may open files."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict
from pathlib import Path

_FEWEST, _MOST = 16, 1024


def most_open() -> int:
    """Shards that are held open at a time: a quarter of what this process may open at most."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else min(max(soft // 4, _FEWEST), _MOST)


class Turn:
    """A lock among the threads of one process; another process has its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()


class OpenFiles:
    """Descriptors by path; the one that was not asked for the longest is closed for a new one.

    Reading by position (`pread`) moves nothing, so a forked process reads through the descriptors that it inherits;
    one that is started anew begins with none.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._most = most_open()

    def descriptor(self, path: Path) -> int:
        """An open file's descriptor, to be used before the next is asked for. Raises OSError."""
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        while len(self._open) >= self._most:
            self._close_oldest()
        self._open[path] = self._opened(path)
        return self._open[path]

    def _opened(self, path: Path) -> int:
        """Where the process has no descriptor left, ours give way first."""
        while True:
            try:
                return os.open(path, os.O_RDONLY)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                    raise
                self._close_oldest()

    def _close_oldest(self) -> None:
        _, descriptor = self._open.popitem(last=False)
        os.close(descriptor)

    def __len__(self) -> int:
        return len(self._open)

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()

    def __del__(self) -> None:
        while self._open:
            self._close_oldest()
