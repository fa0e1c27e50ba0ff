"""Checkpoints and weights as files: durable, with ordinary permissions, hashed while they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, BinaryIO, cast

import torch
from torch import Tensor

from dittool.storage import output_folder, require_free, write_atomic


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A `.safetensors` file, durable and with ordinary permissions; the library's own writer gives neither."""
    from safetensors.torch import save

    output_folder(path.parent)
    # Shared and strided storage is spelled out: the format has no views.
    content = save(
        {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        dict(metadata),
    )
    require_free(path.parent, len(content), path.name)
    write_atomic(path, content)


def write_pt(path: Path, state: Mapping[str, object]) -> tuple[str, int]:
    """Writes the state and returns sha256 and size of the bytes that were meant, so that a disk's fault shows later."""
    written: list[_HashingWriter] = []

    def content(file: BinaryIO) -> None:
        writer = _HashingWriter(file)
        written.append(writer)
        try:
            torch.save(state, cast("IO[bytes]", writer))  # it needs `write` and `flush` alone
        except RuntimeError as error:
            raise writer.failure or error from None

    write_atomic(path, content)
    return written[-1].digest.hexdigest(), written[-1].bytes


class _HashingWriter:
    """Hashes and counts what torch.save writes, and keeps the OSError that torch replaces by a RuntimeError about
    positions.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.digest, self.bytes = hashlib.sha256(), 0
        self.failure: OSError | None = None
        self._file = file

    def write(self, data: memoryview) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.digest.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()
