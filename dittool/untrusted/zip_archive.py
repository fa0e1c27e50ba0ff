"""The zip archive around a `.pt` file, read so strictly that no two readers can disagree about its content.

A zip names its members twice, in a directory at the end and in a header before each; tools that trust different copies
see different files. Here both must say the same, the members must tile the file without gap or overlap, and nothing may
be compressed, encrypted, doubled, or outside the one root folder. torch.save writes exactly that. Source of the format:
PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dittool.errors import BadDataError
from dittool.untrusted.refusal import unsafe

_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "the number is in the 64-bit field"
_ENCRYPTED, _SIZES_AFTER_DATA, _UTF8_NAME = 0x1, 0x8, 0x800
_LONGEST_END = 22 + 0xFFFF  # the end record and the longest comment behind it
_LONGEST_DESCRIPTOR = 24  # sizes and checksum behind a member's data
_MOST_DIRECTORY_BYTES = 16 << 20  # some hundred thousand members


@dataclass(frozen=True)
class Member:
    """Where a member's bytes lie in the file."""

    offset: int
    size: int


@dataclass(frozen=True)
class _Entry:
    name: bytes
    flags: int
    method: int
    size: int
    header: int  # offset of its local header


def read_archive(file: BinaryIO, size: int, path: Path) -> dict[str, Member]:
    """Members by their name under the root folder, as `data.pkl` or `data/0`.

    `size` is the file's, in bytes. Raises `BadDataError` when the file is cut short and `UnsafeFileError` when its
    parts contradict each other.
    """
    offset, length, count = _directory(file, size, path)
    entries = _entries(_take(file, offset, length, path), count, path)
    members: dict[str, Member] = {}
    seen: set[str] = set()
    root, end = None, 0
    for entry in entries:
        folder, name = _split_name(entry.name, path)
        if root not in (None, folder):
            raise unsafe(path, f"the archive has two root folders, {root!r} and {folder!r}")
        if name.lower() in seen:  # torch looks names up without regard to case
            raise unsafe(path, f"the archive holds {name!r} twice")
        if not end <= entry.header <= end + _LONGEST_DESCRIPTOR:
            raise unsafe(path, f"the archive's member {name!r} overlaps another or leaves a gap before it")
        member = _member(file, entry, name, path)
        root, end = folder, member.offset + member.size
        members[name] = member
        seen.add(name.lower())
    if entries and not (entries[0].header == 0 and end <= offset <= end + _LONGEST_DESCRIPTOR):
        raise unsafe(path, "the archive has bytes that belong to none of its members")
    return members


def ends_as_archive(file: BinaryIO, size: int) -> bool:
    """Whether a zip's end record stands where readers look for one, whatever the file begins with."""
    file.seek(max(0, size - _LONGEST_END))
    tail = file.read(_LONGEST_END)
    return 0 <= tail.rfind(b"PK\x05\x06") <= len(tail) - _END.size


def _directory(file: BinaryIO, size: int, path: Path) -> tuple[int, int, int]:
    """Offset, length in bytes and number of entries of the central directory."""
    end = size - _END.size
    if end < 0:
        raise _cut_short(path, size)
    signature, disk, first_disk, here, count, length, offset, comment = _END.unpack(_take(file, end, _END.size, path))
    if signature != b"PK\x05\x06" or comment:
        if ends_as_archive(file, size):
            raise unsafe(path, "a zip archive with something behind its end")
        raise _cut_short(path, size)
    directory_end, narrow = end, (here, count, length, offset)
    locator_at = end - _END64_LOCATOR.size
    if locator_at >= 0 and (locator := _take(file, locator_at, _END64_LOCATOR.size, path)).startswith(b"PK\x06\x07"):
        directory_end = locator_at - _END64.size
        if directory_end < 0 or _END64_LOCATOR.unpack(locator)[1:] != (0, directory_end, 1):
            raise unsafe(path, "the archive's 64-bit end record is not where it should be")
        signature64, _, _, _, disk64, first_disk64, *wide = _END64.unpack(_take(file, directory_end, _END64.size, path))
        full = (_FULL16, _FULL16, _FULL32, _FULL32)
        agree = all(small in (large, limit) for small, large, limit in zip(narrow, wide, full, strict=True))
        if signature64 != b"PK\x06\x06" or disk64 or first_disk64 or not agree:
            raise unsafe(path, "the archive's two end records contradict each other")
        here, count, length, offset = wide
    if disk or first_disk or here != count or offset + length != directory_end or length > _MOST_DIRECTORY_BYTES:
        raise unsafe(path, "the archive's end record does not describe this file")
    return offset, length, count


def _entries(directory: bytes, count: int, path: Path) -> list[_Entry]:
    entries, position = [], 0
    while position < len(directory):
        if len(directory) - position < _CENTRAL.size:
            raise unsafe(path, "the archive's directory is malformed")
        fields = _CENTRAL.unpack_from(directory, position)
        (
            signature,
            _,
            _,
            flags,
            method,
            _,
            _,
            _,
            packed,
            size,
            name_length,
            extra_length,
            comment,
            disk,
            _,
            _,
            header,
        ) = fields
        name_at = position + _CENTRAL.size
        extra_at = name_at + name_length
        position = extra_at + extra_length + comment
        if signature != b"PK\x01\x02" or position > len(directory) or disk or comment:
            raise unsafe(path, "the archive's directory is malformed")
        extra = directory[extra_at : extra_at + extra_length]
        size, packed, header = _widened((size, packed, header), extra, path)
        name = directory[name_at:extra_at]
        if method or packed != size:
            raise unsafe(path, f"the archive's member {name!r} is compressed")
        entries.append(_Entry(name, flags, method, size, header))
    if len(entries) != count:
        raise unsafe(path, f"the archive's directory lists {len(entries)} members, its end record says {count}")
    return entries


def _widened(narrow: tuple[int, int, int], extra: bytes, path: Path) -> list[int]:
    """Size, packed size and offset, each from the 64-bit extra field where the 32-bit one is full."""
    wide = b""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            wide = extra[position + 4 : position + 4 + length]
        position += 4 + length
    numbers = []
    for number in narrow:
        if number == _FULL32:
            if len(wide) < 8:
                raise unsafe(path, "the archive lacks a 64-bit size that its directory refers to")
            number, wide = struct.unpack_from("<Q", wide)[0], wide[8:]
        numbers.append(number)
    return numbers


def _member(file: BinaryIO, entry: _Entry, name: str, path: Path) -> Member:
    fields = _LOCAL.unpack(_take(file, entry.header, _LOCAL.size, path))
    signature, _, flags, method, _, _, _, packed, size, name_length, extra_length = fields
    local_name = _take(file, entry.header + _LOCAL.size, name_length, path)
    if entry.flags & _ENCRYPTED or flags & _ENCRYPTED:
        raise unsafe(path, f"the archive's member {name!r} is encrypted")
    if flags & ~(_SIZES_AFTER_DATA | _UTF8_NAME) or flags != entry.flags:
        raise unsafe(path, f"the archive's member {name!r} has flags that torch.save never sets")
    allowed = {entry.size, _FULL32} | ({0} if flags & _SIZES_AFTER_DATA or not entry.size else set())
    if signature != b"PK\x03\x04" or local_name != entry.name or method or not {packed, size} <= allowed:
        raise unsafe(path, f"the archive describes its member {name!r} in two ways that contradict each other")
    return Member(entry.header + _LOCAL.size + name_length + extra_length, entry.size)


def _split_name(raw: bytes, path: Path) -> tuple[str, str]:
    """Root folder and the rest of a member's name; only plain relative names of printable ASCII letters pass."""
    text = raw.decode("ascii", "replace")
    folder, _, name = text.partition("/")
    parts = text.split("/")
    if (
        not text.isascii()
        or not text.isprintable()
        or "\\" in text
        or ":" in text
        or {"", ".", ".."} & set(parts)
        or len(parts) < 2
    ):
        raise unsafe(path, f"the archive has a member with the name {raw[:100]!r}")
    return folder, name


def _take(file: BinaryIO, offset: int, count: int, path: Path) -> bytes:
    file.seek(offset)
    data = file.read(count)
    if len(data) != count:
        raise unsafe(path, f"the archive refers to bytes beyond its end (offset {offset:,})")
    return data


def _cut_short(path: Path, size: int) -> BadDataError:
    return BadDataError(
        f"{path}: a zip archive that does not end as one after {size:,} bytes: it was cut short",
        "copy or download it again",
    )
