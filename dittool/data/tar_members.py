"""Where the members of a shard lie: a strict reader of tar headers.

A shard from a stranger is never extracted. It is a list of regular files with plain names, closed by two zero blocks; links,
devices, paths that climb, bad checksums and cut ends are refused. (Python's and WebDataset's readers take a tar cut between two
members for a complete one.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dittool.errors import BadDataError, UnsafeFileError

_BLOCK = 512
_REGULAR = (b"0", b"\0")
_LONGEST_NAME = 255


@dataclass(frozen=True)
class Member:
    """One file of a tar: its bytes are [offset, offset + size)."""

    key: str  # text before the first dot: the sample's id
    suffix: str  # the rest: which feature
    offset: int
    size: int


def tar_members(path: Path) -> list[Member]:
    """All members of a tar, in order.

    Raises `BadDataError` for a damaged tar and `UnsafeFileError` for one that holds anything but plainly named regular files.
    """
    total = path.stat().st_size
    members: list[Member] = []
    with path.open("rb") as file:
        position = 0
        while True:
            header = file.read(_BLOCK)
            if len(header) < _BLOCK:
                raise _damaged(path, position, f"the file ends after {total:,} bytes without the two zero blocks that close a tar")
            if not header.strip(b"\0"):
                break
            name, size = _parse_header(path, position, header)
            key, dot, suffix = name.partition(".")
            if not key or not dot:
                raise UnsafeFileError(f"{path}: member '{name}' at byte {position:,} is not KEY.SUFFIX", "make the shards again with: dit shard")
            start = position + _BLOCK
            position = start + -(-size // _BLOCK) * _BLOCK
            if position > total:
                raise _damaged(path, start, f"member '{name}' needs {size:,} bytes and the file has {max(total - start, 0):,} left")
            members.append(Member(key, suffix.lower(), start, size))
            file.seek(position)
        if file.read(_BLOCK).strip(b"\0"):
            raise _damaged(path, position, "one zero block is followed by other data")
    return members


def group_samples(path: Path, members: list[Member]) -> dict[str, dict[str, Member]]:
    """Members by sample and suffix. Raises `BadDataError` when a member is there twice or a sample's members are not adjacent."""
    samples: dict[str, dict[str, Member]] = {}
    last = None
    for member in members:
        if member.key != last and member.key in samples:
            raise BadDataError(f"{path}: members of sample '{member.key}' are not adjacent", "make the shards again with: dit shard")
        sample = samples.setdefault(member.key, {})
        if member.suffix in sample:
            raise BadDataError(f"{path}: member '{member.key}.{member.suffix}' is there twice", "make the shards again with: dit shard")
        sample[member.suffix] = member
        last = member.key
    return samples


def _parse_header(path: Path, position: int, header: bytes) -> tuple[str, int]:
    checksum = _octal(path, position, header[148:156], "checksum")
    if checksum != sum(header[:148]) + 8 * 32 + sum(header[156:]):
        raise _damaged(path, position, "the header's checksum is wrong")
    raw_name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:262] == b"ustar" else b""
    name = (prefix + b"/" + raw_name if prefix else raw_name).decode("utf-8", "replace")
    if header[156:157] not in _REGULAR:
        raise UnsafeFileError(
            f"{path}: member '{name}' is not a regular file (type {header[156:157]!r})", "shards hold regular files only: do not use this one"
        )
    name = name.removeprefix("./")
    if "/" in name or "\\" in name or ".." in name or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise UnsafeFileError(f"{path}: member name {name!r} is not a plain file name", "do not use this shard")
    return name, _octal(path, position, header[124:136], "size")


def _octal(path: Path, position: int, field: bytes, what: str) -> int:
    text = field.strip(b"\0 ")
    if not text or not all(byte in b"01234567" for byte in text):
        raise _damaged(path, position, f"the header's {what} is not an octal number ({field!r})")
    return int(text, 8)


def _damaged(path: Path, position: int, why: str) -> BadDataError:
    return BadDataError(f"{path}: damaged tar at byte {position:,}: {why}", "copy the file again, or make it again with: dit shard")
