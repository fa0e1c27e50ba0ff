"""Where the members of a shard lie: a strict reader of tar headers.

A shard from a stranger is never extracted. It is a list of regular files with plain names, closed by two zero blocks;
links, devices, paths that climb, bad checksums and cut ends are refused. (Python's and WebDataset's readers take a tar
cut between two members for a complete one.)

WebDataset's own writer puts a POSIX extended header in front of each member, because its times are fractions of a
second. Such a header is read for a name or size that did not fit the plain one; what else it says about a regular file
does not matter here.

A tar that somebody made of a folder (`tar cf a.tar .`) is read more generously: it may have entries of folders, names
in folders, long names in GNU's way and files that belong to no sample. Names that climb are refused there too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dittool.errors import BadDataError, UnsafeFileError

_BLOCK = 512
_REGULAR = (b"0", b"\0")
_EXTENDED, _GLOBAL = b"x", b"g"
_FOLDER, _LONG_NAME = b"5", b"L"
_SHARD_KINDS = (*_REGULAR, _EXTENDED)
_FOLDER_KINDS = (*_SHARD_KINDS, _GLOBAL, _FOLDER, _LONG_NAME)
_LONGEST_NAME, _LONGEST_PATH = 255, 4096
_PLACES = {"path", "size"}  # what a header says about one member's place
_LONGEST_EXTENDED = 64 << 10
_LONGEST_PADDING = 20 * _BLOCK  # tar programs fill the last record of 20 blocks with zeros


@dataclass(frozen=True)
class Member:
    """One file of a tar: its bytes are [offset, offset + size)."""

    key: str  # text before the first dot: the sample's id; in a tar of a folder with the folders before it
    suffix: str  # the rest: which feature; "" for a file that belongs to no sample
    offset: int
    size: int


def tar_members(path: Path, of_folder: bool = False) -> list[Member]:
    """All members of a tar, in order.

    Args:
        of_folder: the tar may have been made of a folder, and not as a list of samples.

    Raises `BadDataError` for a damaged tar and `UnsafeFileError` for one that holds anything but plainly named regular
    files.
    """
    total = path.stat().st_size
    members: list[Member] = []
    with path.open("rb") as file:
        position = 0
        extended: dict[str, str] = {}  # what goes for the next member
        while (header := _next_block(path, file, position, total)).strip(b"\0"):
            kind, name, size = _parse_header(path, position, header, _FOLDER_KINDS if of_folder else _SHARD_KINDS)
            start = position + _BLOCK
            if kind == _EXTENDED:
                extended |= _parse_extended(path, start, file.read(_extended_size(path, start, size)))
            elif kind == _GLOBAL:
                if said := _parse_extended(path, start, file.read(_extended_size(path, start, size))).keys() & _PLACES:
                    raise _damaged(path, start, f"a header for all members sets their {', '.join(sorted(said))}")
            elif kind == _LONG_NAME:
                raw = file.read(_extended_size(path, start, size))
                extended["path"] = raw.split(b"\0")[0].decode("utf-8", "replace")
            else:
                name, size = extended.get("path", name), _extended_int(path, position, extended.get("size"), size)
                if kind == _FOLDER:
                    require_inside(path, name)
                else:
                    members.append((_folder_member if of_folder else _member)(path, position, name, start, size))
                extended = {}
            position = start + -(-size // _BLOCK) * _BLOCK
            if position > total:
                raise _damaged(
                    path, start, f"member '{name}' needs {size:,} bytes and the file has {max(total - start, 0):,} left"
                )
            file.seek(position)
        if extended:
            raise _damaged(path, position, "an extended header is followed by no member")
        _require_end(path, file, position + _BLOCK, total)
    return members


def group_samples(path: Path, members: list[Member], adjacent: bool = True) -> dict[str, dict[str, Member]]:
    """Members by sample and suffix. Raises `BadDataError` when a member is there twice or, where they must be, a
    sample's members are not adjacent.
    """
    samples: dict[str, dict[str, Member]] = {}
    last = None
    for member in members:
        if adjacent and member.key != last and member.key in samples:
            raise BadDataError(
                f"{path}: members of sample '{member.key}' are not adjacent",
                "pack the tar anew with the members of each sample side by side: tar --sort=name",
            )
        sample = samples.setdefault(member.key, {})
        if member.suffix in sample:
            raise BadDataError(
                f"{path}: member '{member.key}.{member.suffix}' is there twice",
                "copy the tar again, or pack it anew without the second",
            )
        sample[member.suffix] = member
        last = member.key
    return samples


def _next_block(path: Path, file: BinaryIO, position: int, total: int) -> bytes:
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise _damaged(
            path, position, f"the file ends after {total:,} bytes without the two zero blocks that close a tar"
        )
    return block


def _require_end(path: Path, file: BinaryIO, position: int, total: int) -> None:
    """One zero block was read; behind it there is a second one, and zeros only."""
    if (
        _next_block(path, file, position, total).strip(b"\0")
        or file.read(_LONGEST_PADDING).strip(b"\0")
        or file.read(1)
    ):
        raise _damaged(path, position, "the zero block that closes the tar is followed by other data")


def _parse_header(path: Path, position: int, header: bytes, kinds: tuple[bytes, ...]) -> tuple[bytes, str, int]:
    """Type, name and size of the member behind a header block."""
    checksum = _octal(path, position, header[148:156], "checksum")
    if checksum != sum(header[:148]) + 8 * 32 + sum(header[156:]):
        raise _damaged(path, position, "the header's checksum is wrong")
    raw_name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:262] == b"ustar" else b""
    name = (prefix + b"/" + raw_name if prefix else raw_name).decode("utf-8", "replace")
    kind = header[156:157]
    if kind not in kinds:
        raise UnsafeFileError(
            f"{path}: member {name!r} is not a regular file (type {kind!r})",
            "shards hold regular files only: do not use this one",
        )
    return kind, name, _octal(path, position, header[124:136], "size")


def _member(path: Path, position: int, name: str, start: int, size: int) -> Member:
    name = name.removeprefix("./")
    if "/" in name or "\\" in name or ".." in name or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
        raise UnsafeFileError(f"{path}: member name {name!r} is not a plain file name", "do not use this shard")
    key, dot, suffix = name.partition(".")
    if not key or not dot:
        raise UnsafeFileError(
            f"{path}: member '{name}' at byte {position:,} is not KEY.SUFFIX",
            "copy the tar again, or leave it out: dit shard wrote no such file",
        )
    return Member(key, suffix.lower(), start, size)


def _folder_member(path: Path, position: int, name: str, start: int, size: int) -> Member:
    """A file of a tar that was made of a folder. Hidden files, which some systems add, and files without a suffix
    belong to no sample.
    """
    name = require_inside(path, name)
    folder, slash, base = name.rpartition("/")
    key, dot, suffix = base.partition(".")
    hidden = any(part.startswith(".") for part in name.split("/"))
    return (
        Member(name, "", start, size)
        if hidden or not dot
        else Member(folder + slash + key, suffix.lower(), start, size)
    )


def require_inside(path: Path, name: str) -> str:
    """The name without what means here. Raises `UnsafeFileError` when it leads elsewhere, or is no name."""
    plain = name.removeprefix("./").rstrip("/")
    parts = plain.split("/")
    if name.rstrip("/") in (".", ""):
        return ""
    if "\\" in plain or not plain.isprintable() or len(plain) > _LONGEST_PATH:
        raise UnsafeFileError(f"{path}: member name {name!a} is not a plain path", "do not use this archive")
    if any(not part or part.startswith("..") or part == "." or len(part) > _LONGEST_NAME for part in parts):
        raise UnsafeFileError(f"{path}: member name {name!a} leads elsewhere", "do not use this archive")
    return plain


def _extended_size(path: Path, start: int, size: int) -> int:
    if size > _LONGEST_EXTENDED:
        raise _damaged(path, start, f"an extended header of {size:,} bytes")
    return size


def _parse_extended(path: Path, start: int, data: bytes) -> dict[str, str]:
    """The records of an extended header (POSIX.1-2001, pax): each is `LENGTH KEY=VALUE` and a line end, LENGTH
    counting all of it.
    """
    values, position = {}, 0
    while position < len(data):
        length, space, _ = data[position : position + 8].partition(b" ")
        end = position + (int(length) if space and length.isdigit() else 0)
        key, equals, value = data[position + len(length) + 1 : end - 1].partition(b"=")
        if end <= position or end > len(data) or data[end - 1 : end] != b"\n" or not equals:
            raise _damaged(path, start, "an extended header that is not made of LENGTH KEY=VALUE records")
        values[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        position = end
    if foreign := sorted(key for key in values if key == "linkpath" or key.startswith("GNU.")):
        raise UnsafeFileError(
            f"{path}: an extended header at byte {start:,} makes a link or a sparse file ({foreign[0]})",
            "do not use this shard",
        )
    return values


def _extended_int(path: Path, position: int, text: str | None, otherwise: int) -> int:
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _damaged(path, position, f"the extended header's size is not a number ({text[:20]!r})")
    return int(text)


def _octal(path: Path, position: int, field: bytes, what: str) -> int:
    text = field.strip(b"\0 ")
    if not text or not all(byte in b"01234567" for byte in text):
        raise _damaged(path, position, f"the header's {what} is not an octal number ({field!r})")
    return int(text, 8)


def _damaged(path: Path, position: int, why: str) -> BadDataError:
    return BadDataError(
        f"{path}: damaged tar at byte {position:,}: {why}", "copy the file again, or make it again with: dit shard"
    )
