"""Checkpoints and weights as files: durable, with ordinary permissions, hashed while they are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor

from dittool.ckpt.lazy_tensors import specs_of
from dittool.storage import output_folder, require_free, write_atomic
from dittool.untrusted.safetensors_header import DTYPES
from dittool.untrusted.tensor_spec import DTYPE_BYTES, TensorSpec

_FORMAT_NAMES = {ours: theirs for theirs, ours in DTYPES.items()}
_HEADER_ALIGNMENT = 8  # bytes


class Written(NamedTuple):
    """Of the bytes that were meant, so that a disk's fault shows later."""

    sha256: str
    bytes: int


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Written:
    """A `.safetensors` file. One tensor is on the host at a time, so that lazily read ones, or those of a device, need
    no memory for all; the library's writer holds them, and their bytes, together.

    Raises `StorageError` for a disk without room, OSError with nothing left behind.
    """
    output_folder(path.parent)
    specs = specs_of(tensors)
    order = sorted(specs, key=lambda name: (-DTYPE_BYTES[specs[name].dtype], name))  # all lie as their numbers must
    header = _header({name: specs[name] for name in order}, metadata)
    require_free(path.parent, len(header) + sum(spec.bytes for spec in specs.values()), path.name)
    written: list[_HashingWriter] = []

    def content(file: BinaryIO) -> None:
        writer = _HashingWriter(file)
        written.append(writer)
        writer.write(memoryview(header))
        for name in order:
            # shared and strided storage is spelled out: the format has no views
            values = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            writer.write(values.numpy().data)

    write_atomic(path, content)
    return written[-1].result


def _header(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of https://github.com/huggingface/safetensors, README, "Format"; the tensors follow in order."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + spec.bytes
        entries[name] = {"dtype": _FORMAT_NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_pt(path: Path, state: Mapping[str, object]) -> Written:
    """Writes the state as torch.save does."""
    written: list[_HashingWriter] = []

    def content(file: BinaryIO) -> None:
        writer = _HashingWriter(file)
        written.append(writer)
        try:
            torch.save(state, cast("IO[bytes]", writer))  # it needs `write` and `flush` alone
        except RuntimeError as error:
            raise writer.failure or error from None

    write_atomic(path, content)
    return written[-1].result


class _HashingWriter:
    """Hashes and counts what is written, and keeps the OSError that torch replaces by a RuntimeError about
    positions.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._digest, self.bytes = hashlib.sha256(), 0
        self.failure: OSError | None = None
        self._file = file

    @property
    def result(self) -> Written:
        return Written(self._digest.hexdigest(), self.bytes)

    def write(self, data: memoryview) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self._digest.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()
