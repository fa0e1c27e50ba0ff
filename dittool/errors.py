"""The errors a user may meet. Each says what went wrong and where, then what to do next.

`DitError` is the only kind that the command line turns into two lines and an exit code; anything else that
escapes is a bug of ours and exits with 70. The codes are a contract: scripts branch on them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

DONE, ANSWER_IS_NO, BUG = 0, 1, 70


class DitError(Exception):
    """A failure with an explanation: `message` is what, where and why; `hint` is what to do next."""

    exit_code = BUG

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DitError):
    """A wrong option, preset or configuration value."""

    exit_code = 2


class BadDataError(DitError):
    """Images, features, shards or checkpoints whose content cannot be used."""

    exit_code = 3


class UnsafeFileError(DitError):
    """A file that could run code or exhaust the machine when it is loaded; it was not loaded."""

    exit_code = 4


class StorageError(DitError):
    """Disk full, no permission, or a folder that another process holds."""

    exit_code = 5


class NonFiniteError(DitError):
    """Training met NaN or infinity and stopped before the update. `samples`: the ids of those whose loss it was, if
    one can tell.
    """

    exit_code = 6

    def __init__(self, message: str, hint: str = "", samples: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.samples = list(samples)


class WeightsMissingError(DitError):
    """Pretrained weights that are neither on this disk nor allowed to be fetched."""

    exit_code = 7


class Interrupted(DitError):
    """A signal ended the work after its state was saved; the exit code is 128 + the signal's number."""

    def __init__(self, message: str, hint: str, signal_number: int) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number


def one_line(text: object) -> str:
    """Any text with every run of blanks and line ends as one blank."""
    return " ".join(str(text).split())


def is_debugging() -> bool:
    """Whether somebody wants tracebacks: `DIT_DEBUG=1`."""
    return os.environ.get("DIT_DEBUG", "0") not in ("", "0")


def described(error: BaseException) -> str:
    """An error's kind and words in one line: `KeyError: 'x'`."""
    return f"{type(error).__name__}: {one_line(error)}".rstrip(": ")


def listed(items: Sequence[str], most: int = 10, separator: str = ", ") -> str:
    """The first items of a list and how many are left: `"a, b and 3 more"`."""
    shown = separator.join(items[:most])
    left = len(items) - most
    return f"{shown}{separator.strip(',;') or ' '}and {left:,} more" if left > 0 else shown


_STORAGE_ERRNOS = {
    errno.ENOSPC,
    errno.EFBIG,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    # a folder where a file should be, and the like
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOLCK,
    errno.ENOTSUP,
}
_HINTS = {
    errno.EROFS: "this disk can only be read: choose a folder on another with --out, or mount it for writing",
    errno.EIO: "the disk or its connection fails, see dmesg: copy what is there while it can be read",
    errno.ESTALE: "the server of this network folder lost the file: mount it again, then run the same command again",
    errno.EISDIR: "a folder stands where a file belongs: move it away, or name another file",
    errno.ENOTDIR: "a file stands where a folder belongs: move it away, or name another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "the links lead in a circle: name the file itself",
    errno.ENOLCK: "this file system has no locks, which keep two writers apart: choose a folder on another with --out",
}
_HINTS[errno.ENOTSUP] = _HINTS[errno.ENOLCK]
_PERMISSIONS = "check the owner and the permissions; where it was to be written, another folder will do (--out)"
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
# what libraries write where they lose the number; the second: a descriptor sent over a socket found no room
_OUT_OF_DESCRIPTORS_TEXTS = ("Too many open files", "items of ancdata")


def from_os_error(error: OSError) -> DitError | None:
    """The `StorageError` that says the same as an operating-system error, or None when it is not about storage."""
    if error.errno in _OUT_OF_DESCRIPTORS:
        return no_descriptor_left(str(error.filename or "a socket or a file"))
    if error.errno not in _STORAGE_ERRNOS:
        return None
    where = error.filename2 or error.filename or "the output folder"  # of a rename its target, not the temporary file
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return StorageError(
            f"{where}: {error.strerror}", "free some space or choose another folder, then run the same command again"
        )
    return StorageError(f"{where}: {error.strerror}", _HINTS.get(error.errno, _PERMISSIONS))


def is_out_of_descriptors(error: BaseException) -> bool:
    """Whether a process had no file descriptor left, whoever noticed it."""
    number = error.errno if isinstance(error, OSError) else None
    return number in _OUT_OF_DESCRIPTORS or any(text in str(error) for text in _OUT_OF_DESCRIPTORS_TEXTS)


def no_descriptor_left(where: str) -> StorageError:
    """What to do where `where` could not be opened. The limits are those of this process."""
    import resource  # not on Windows, where this module is read too

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(max(2 * soft, 4096), hard)
    if wanted > soft:
        raising = f"raise it in the shell that starts dit: ulimit -n {wanted}"
    else:
        raising = "who runs this machine can raise it (limits.conf, systemd, docker run --ulimit nofile=4096)"
    return StorageError(
        f"{where}: too many open files: this process may have {soft:,} open at a time (ulimit -n)",
        f"{raising}, or read with fewer processes: -s train.workers=0",
    )
