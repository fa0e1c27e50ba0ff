"""Where the members of a stranger's zip lie, and their bytes: a reader that never extracts.

A zip is a list of regular files with plain paths, each once, stored or deflated. Links, devices, paths that climb,
members that share bytes (how a small zip unfolds to petabytes) and encrypted ones are refused when it is listed. A
member gives as many bytes as its directory says, which are those of its checksum, or none.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from dittool.errors import BadDataError, UnsafeFileError
from dittool.untrusted.tar import require_inside

_LOCAL = struct.Struct("<4s5H3I2H")  # header in front of a member's bytes
_ENCRYPTED = 1
_CHUNK = 1 << 20  # packed bytes inflated at a time
_COPY_AGAIN = "copy the zip again, or make it again"


@dataclass(frozen=True)
class ZipMember:
    """One file of a zip."""

    name: str  # path in the zip, with '/'
    size: int  # bytes of its content, as the zip says
    header: int  # where its local header begins
    packed: int  # bytes that it takes there
    deflated: bool
    checksum: int  # CRC-32 of the content


def zip_members(path: Path) -> list[ZipMember]:
    """The files of a zip, in the order of their bytes. Raises OSError, `BadDataError` for a damaged zip and one that
    is packed in ways that are not read, `UnsafeFileError` for one that holds anything but plainly named files.
    """
    try:
        with zipfile.ZipFile(path) as file:
            entries, end = sorted(file.infolist(), key=lambda entry: entry.header_offset), file.start_dir
    except (zipfile.BadZipFile, ValueError, struct.error, RuntimeError) as error:
        raise BadDataError(f"{path}: damaged zip: {ascii(str(error))[1:-1]}", _COPY_AGAIN) from error
    starts = [entry.header_offset for entry in entries] + [end]
    for entry, (start, limit) in zip(entries, pairwise(starts), strict=True):
        if start < 0 or start + _LOCAL.size + entry.compress_size > limit:
            raise UnsafeFileError(
                f"{path}: member {entry.filename!a} shares bytes with what follows it, as in a zip bomb",
                "do not use this zip",
            )
    found: dict[str, ZipMember] = {}
    for entry in entries:
        member = _checked(path, entry)
        if member is None:
            continue
        if member.name in found:
            raise BadDataError(f"{path}: member '{member.name}' is there twice", "pack the zip anew without the second")
        found[member.name] = member
    return list(found.values())


def read_zip_member(path: Path, member: ZipMember) -> bytes:
    """The content of a member, which the caller found small enough. Never holds more than it says. Raises OSError, and
    `BadDataError` where it is not what the zip's directory promises.
    """
    with path.open("rb") as file:
        file.seek(_content_of(file, path, member))
        data = _inflated(file, path, member) if member.deflated else file.read(member.packed)
    if len(data) != member.size or zlib.crc32(data) != member.checksum:
        raise _broken(path, member, f"{len(data):,} bytes of another checksum than the directory says")
    return data


def map_zip_member(path: Path, member: ZipMember) -> memoryview:
    """The content of a member of any size that is stored and not deflated: mapped, and read once for its checksum.
    Raises as `read_zip_member` does.
    """
    with path.open("rb") as file:
        start = _content_of(file, path, member)
        if start + member.size > os.fstat(file.fileno()).st_size:
            raise _broken(path, member, "the zip ends before it does")
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[start : start + member.size]
    checksum = 0
    for at in range(0, len(mapped), _CHUNK):
        checksum = zlib.crc32(mapped[at : at + _CHUNK], checksum)
    if checksum != member.checksum:
        raise _broken(path, member, f"{member.size:,} bytes of another checksum than the directory says")
    return mapped


def _content_of(file: BinaryIO, path: Path, member: ZipMember) -> int:
    """Where a member's bytes begin."""
    file.seek(member.header)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
        raise _broken(path, member, "no member begins where the directory says")
    name_length, extra_length = _LOCAL.unpack(header)[-2:]
    return member.header + _LOCAL.size + int(name_length) + int(extra_length)


def _inflated(file: BinaryIO, path: Path, member: ZipMember) -> bytes:
    inflater, left, parts, size = zlib.decompressobj(-zlib.MAX_WBITS), member.packed, [b""], 0
    try:
        while left and not inflater.eof:
            packed = file.read(min(left, _CHUNK))
            left -= len(packed)
            # one byte more than promised shows that there is more
            part = inflater.decompress(packed, member.size - size + 1)
            size += len(part)
            parts.append(part)
            if size > member.size:
                raise _broken(
                    path, member, f"it unfolds to more than the {member.size:,} bytes that the directory says"
                )
            if not packed:
                break
    except zlib.error as error:
        raise _broken(path, member, ascii(str(error))[1:-1]) from error
    return b"".join(parts)


def _checked(path: Path, entry: zipfile.ZipInfo) -> ZipMember | None:
    """The member of an entry; None for a folder."""
    if "\0" in entry.orig_filename:
        raise UnsafeFileError(f"{path}: member name {entry.orig_filename!a} is not a plain path", "do not use this zip")
    name = require_inside(path, entry.orig_filename)
    kind = stat.S_IFMT(entry.external_attr >> 16)  # of zips that were made on Unix
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeFileError(
            f"{path}: member {entry.filename!a} is not a regular file (mode {entry.external_attr >> 16:o})",
            "pack the pictures themselves, not links to them",
        )
    if entry.is_dir() or not name:
        return None
    if entry.flag_bits & _ENCRYPTED:
        raise BadDataError(f"{path}: member {entry.filename!a} is encrypted", "pack it anew without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadDataError(
            f"{path}: member {entry.filename!a} is packed by method {entry.compress_type}, not stored or deflated",
            "pack it anew: zip -r NAME.zip FOLDER",
        )
    deflated = entry.compress_type == zipfile.ZIP_DEFLATED
    if not deflated and entry.compress_size != entry.file_size:
        raise BadDataError(
            f"{path}: member {entry.filename!a} is stored in {entry.compress_size:,} bytes and said to have"
            f" {entry.file_size:,}",
            _COPY_AGAIN,
        )
    return ZipMember(name, entry.file_size, entry.header_offset, entry.compress_size, deflated, entry.CRC)


def _broken(path: Path, member: ZipMember, why: str) -> BadDataError:
    return BadDataError(f"{path}: member '{member.name}': {why}", _COPY_AGAIN)
