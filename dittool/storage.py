"""Files that are never half-written, folders that never have two writers.

A file appears under its name only when it is whole: temporary name in the same folder, write, flush, fsync, rename,
fsync of the folder. Whatever interrupts this leaves the old file, and at worst a `.tmp-dit-…` file that the next writer
sweeps.
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from dittool.errors import BadDataError, StorageError, UsageError
from dittool.nearest import did_you_mean

if TYPE_CHECKING:
    import numpy as np

LOCK_NAME = ".lock"  # begins the name of every lock in an output folder
TEMPORARY_PREFIX = ".tmp-dit-"  # a name that is ours: whatever bears it below an output folder is swept


def write_atomic(
    path: Path, content: bytes | Callable[[BinaryIO], object], *, writer: str = "", name_synced: bool = True
) -> None:
    """Writes bytes, or lets `content(file)` write, so that `path` holds either its old content or all of the new one.

    Args:
        writer: begins the temporary file's name behind the prefix, so that one of several writers sweeps only its own.
        name_synced: False leaves it to the caller to make the new name durable, for many files with one `sync_folder`.

    Raises OSError (disk full, permission) with the temporary file removed and the old file untouched.
    """
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{writer}{uuid.uuid4().hex}{path.suffix}")
    try:
        # the kernel takes the umask off these permissions
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # of a write that fails the kernel names no file
        raise
    if name_synced:
        sync_folder(path.parent)


def append_durably(path: Path, line: bytes) -> None:
    """Appends a line, behind the last whole one: half a line is what a killed or failed writer left. Call it with
    the file held.
    """
    is_new = not path.exists()
    with path.open("ab" if is_new else "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(0)
            size = _end_of_last_line(file, size)
            file.seek(size)
            file.truncate()
        try:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(path, size)
            error.filename = error.filename or str(path)
            raise
    if is_new:
        sync_folder(path.parent)


def append_rows(path: Path, rows: np.ndarray) -> None:
    """Appends rows of one size, behind the last whole one: part of a row is what a killed writer left. Call it with the
    file held. Raises `StorageError` when the disk is full, with the file as it was.
    """
    is_new = not path.exists()
    with full_disk_explained(path, rows.nbytes), path.open("ab") as file:
        size = file.tell() // rows.itemsize * rows.itemsize
        file.truncate(size)
        try:
            file.write(rows.tobytes())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.truncate(path, size)
            raise
    if is_new:
        sync_folder(path.parent)


def mapped_rows(path: Path, row: np.dtype) -> np.ndarray:
    """The rows (N,) of a file, mapped and not read; none where there is no file. Part of a row at its end is left
    out.
    """
    import numpy as np

    count = path.stat().st_size // row.itemsize if path.exists() else 0
    return np.memmap(path, row, "r", shape=(count,)) if count else np.empty(0, row)


def write_json(path: Path, value: object) -> None:
    """`write_atomic` of readable JSON, keys in the order given."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def utf8_text(raw: bytes) -> str:
    """The text in a file's bytes, without its byte order mark. Raises ValueError in words: UTF-16, which some editors
    write, or the byte that is no UTF-8.
    """
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw[:2]:
        raise ValueError("UTF-16 text, not UTF-8; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text at byte {error.start} (0x{raw[error.start]:02x})") from error


def read_json(path: Path) -> Any:
    """A JSON file's value. Raises `BadDataError` when it is missing or not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BadDataError(f"{path}: no such file", did_you_mean(path, "check the path")) from error
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{path}: not valid JSON: {error}", "restore the file or make it again") from error


def read_json_lines(path: Path) -> list[Any]:
    """The values of a JSONL file; a torn last line (the writer was killed in it) is left out. Raises `BadDataError`
    for any other.
    """
    lines = path.read_bytes().split(b"\n")
    values = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline behind it: torn
                break
            raise BadDataError(
                f"{path}:{number}: not valid JSON: {error}", "remove the line or make the file again"
            ) from error
    return values


def sync_folder(folder: Path) -> None:
    """Makes renames inside the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_temporaries(folder: Path) -> None:
    """Removes what an interrupted writer left in the folder, files and folders. Call it under the folder's lock."""
    for leftover in list(folder.rglob(f"{TEMPORARY_PREFIX}*")):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        elif leftover.is_file() and not leftover.is_symlink():
            leftover.unlink()


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest_slowly(file)
        )


def cache_folder() -> Path | None:
    """This user's folder for what can be made again; None where none can be written to."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    for folder in (home / "dittool", Path(tempfile.gettempdir()) / f"dittool-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # in a folder that all may write to, somebody else's would decide what we read
            if os.access(folder, os.W_OK) and folder.lstat().st_uid == os.getuid() and not folder.is_symlink():
                return folder
        except OSError:
            continue
    return None


def output_folder(path: Path) -> Path:
    """Makes the folder, and checks at once that it can be written to. Raises `StorageError`."""
    if path.is_symlink() and not path.exists():
        raise StorageError(
            f"{path}: a link to nothing stands where the output folder should be",
            "remove it or choose another folder with --out",
        )
    if path.exists() and not path.is_dir():
        raise StorageError(
            f"{path}: a file stands where the output folder should be", "move it or choose another folder with --out"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=TEMPORARY_PREFIX, dir=path):
            pass
    except OSError as error:
        raise StorageError(
            f"{path}: cannot write there: {error.strerror}", "check the permissions or choose another folder with --out"
        ) from error
    return path


def require_replaceable(
    out: Path, inputs: Iterable[Path], force: bool, same_origin: Callable[[Path], bool], option: str
) -> None:
    """Before a file is written to `out`: an input is never an output, and what stands there already is replaced when it
    is of `same_origin`, that is, an earlier result of the same kind, or with `force`. Raises `UsageError`.
    """
    if not out.exists():
        return
    for path in inputs:
        if path.exists() and path.samefile(out):
            raise UsageError(f"{option} {out}: it is the input {path} itself", "give another file")
    if not out.is_dir() and not force and not same_origin(out):
        raise UsageError(
            f"{option} {out}: a file of another origin stands there", "give another name, or replace it with --force"
        )


@contextmanager
def nothing_left_of_refusal(folder: Path) -> Iterator[None]:
    """Around work that makes an output folder: when it is refused before anything is written there, the folder and its
    locks go again, as far as they were not there before and nobody holds them.
    """
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    before = set(folder.glob(f"{LOCK_NAME}*"))
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for lock in set(folder.glob(f"{LOCK_NAME}*")) - before:
                with open(lock, "rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    lock.unlink()
            for path in absent:
                path.rmdir()  # fails for one that holds something
        raise


def free_name_beside(path: Path) -> Path:
    """A name that nothing has, to move `path` to: `nano.old`, `nano.old2`."""
    names = (f"{path.name}.old{number or ''}" for number in (0, *range(2, 1_000_000)))
    return next(place for place in map(path.with_name, names) if not os.path.lexists(place))


def require_free(folder: Path, needed: int, what: str, hint: str = "free some space or choose another folder") -> None:
    """Raises `StorageError` when the disk under `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder}: {what} needs {bytes_text(needed)} and the disk has {bytes_text(free)} free",
            hint,
        )


@contextmanager
def full_disk_explained(path: Path, needed: int) -> Iterator[None]:
    """Around the writing of `needed` bytes: a full disk, quota or size limit becomes a `StorageError` with both
    numbers.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise
        free = shutil.disk_usage(path.parent).free
        raise StorageError(
            f"{path}: {error.strerror}: {bytes_text(needed)} to write, {bytes_text(free)} free",
            "free some space, then run the same command again: what is made stays",
        ) from error


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds the folder for one writer; the kernel lets go when the process ends, however it ends. Raises
    `StorageError` naming the owner.
    """
    path = folder / LOCK_NAME
    with open(path, "a+", encoding="utf-8") as file:
        try:
            _lock(file)
            if not os.fstat(file.fileno()).st_nlink:
                raise BlockingIOError("its last owner has just removed it")
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise StorageError(
                f"{folder}: already in use by {owner}", "wait until it ends, or choose another folder with --out"
            ) from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _lock(file: IO[str]) -> None:
    """Raises BlockingIOError when somebody else holds it for longer than `in_use` does to look."""
    for last in (False, False, True):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if last:
                raise
            time.sleep(0.02)


def in_use(folder: Path) -> bool:
    """Whether a writer holds the folder. One on another machine is seen where the file system passes locks on."""
    try:
        with open(folder / LOCK_NAME, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def bytes_text(count: float) -> str:
    """A count of bytes for people: `8.4 MB` (decimal units)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _end_of_last_line(file: BinaryIO, size: int) -> int:
    """The position behind the last newline, 0 when there is none."""
    block = 1 << 16
    while size:
        start = max(0, size - block)
        file.seek(start)
        if (found := file.read(size - start).rfind(b"\n")) >= 0:
            return start + found + 1
        size = start
    return 0


def _digest_slowly(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
