"""A file that grows by whole pieces, whatever the disk says."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path


class GrowingFile:
    """What a full disk takes only half of is cut off again: a piece is in it completely, or not at all."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._size = self._file.seek(0, os.SEEK_END)

    def append(self, piece: bytes) -> None:
        """Raises OSError when the disk does not take all of it."""
        try:
            written = self._file.write(piece)
            if written != len(piece):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            with suppress(OSError):
                os.truncate(self._file.fileno(), self._size)
            raise
        self._size += written

    def close(self) -> None:
        self._file.close()
