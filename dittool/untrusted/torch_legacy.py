"""`.pt` files as PyTorch wrote them before 1.6, and writes them with `_use_new_zipfile_serialization=False`.

Five pickles, then the storages: a magic number, the format's version (1001), the sizes of numbers on the writer's
machine, the content, and the list of the storages' keys; then for each key in that order its number of values (8 bytes)
and its bytes, up to the file's end. Source of the format: torch/serialization.py, `_legacy_save`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from dittool.untrusted.pickle_bounds import LARGEST_PICKLE
from dittool.untrusted.pickle_walk import PickleContent, read_pickle
from dittool.untrusted.refusal import cut_short, unsafe
from dittool.untrusted.tensor_spec import DTYPE_BYTES
from dittool.untrusted.zip_archive import Member

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_COUNT = 8  # bytes of a storage's number of values


def read_legacy(file: BinaryIO, path: Path) -> tuple[PickleContent, dict[str, Member]]:
    """The content, and where each storage lies.

    Raises `UnsafeFileError` for anything that torch.save never writes, `BadDataError` when the file is cut short.
    """
    size = os.fstat(file.fileno()).st_size
    position = 0
    parts: list[PickleContent] = []
    for _ in range(5):
        file.seek(position)
        part = read_pickle(file.read(LARGEST_PICKLE), None, path, size, alone=False)
        if not parts and part.value != _MAGIC:
            raise unsafe(path, "a bare pickle, which torch.save did not write")
        parts.append(part)
        position += part.end
    _, version, machine, content, keys = parts
    if (
        version.value != _VERSION
        or not isinstance(machine.value, dict)
        or machine.value.get("little_endian") is not True
    ):
        raise unsafe(path, "a legacy file of another version than 1001, or of a big-endian machine")
    if any(part.storages or part.foreign for part in (version, machine, keys)):
        raise unsafe(path, "objects where a legacy file has numbers")
    return content, _storages(file, size, position, content, keys.value, path)


def _storages(
    file: BinaryIO, size: int, position: int, content: PickleContent, keys: object, path: Path
) -> dict[str, Member]:
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(content.storages):
        raise unsafe(path, "a list of storages that are not those of the tensors")
    members = {}
    for key in keys:
        storage = content.storages[key]
        file.seek(position)
        said = file.read(_COUNT)
        count = int.from_bytes(said, "little", signed=True)
        begin, position = position + _COUNT, position + _COUNT + storage.bytes
        if len(said) == _COUNT and count * DTYPE_BYTES[storage.dtype] != storage.bytes:
            raise unsafe(path, f"storage {key!r} of {count:,} values, where the pickle says {storage.bytes:,} bytes")
        if position > size:
            raise cut_short(path, f"storage {key!r} should end at byte {position:,}, the file has {size:,}")
        members[key] = Member(begin, storage.bytes)
    if surplus := size - position:
        raise unsafe(path, f"{surplus:,} bytes behind the last storage")
    return members
