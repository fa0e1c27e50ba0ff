"""Tensors of a `.pt` that `check_pt` has passed, built from the bytes of its storages: nothing is unpickled.

Values are mapped from the file, privately: they are read when they are used, and writing to them changes no file.
"""

from __future__ import annotations

import mmap
from io import BufferedReader
from typing import Any

import torch
from torch import Tensor

from dittool.ckpt.load import PtReport
from dittool.untrusted.tensor_spec import DTYPE_BYTES, TensorSpec

_TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_BYTES}

_ALIGNED = 16  # bytes of the widest number


def load_mapped(report: PtReport, part: Any) -> Any:
    """The content of the file, or a part of it, with a tensor on the CPU for each `TensorSpec`; tensors that share a
    storage share it here too.
    """
    with open(report.path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _Builder(report, file, mapped).built(part)


class _Builder:
    def __init__(self, report: PtReport, file: BufferedReader, mapped: mmap.mmap) -> None:
        self._members, self._file, self._mapped = report.members, file, mapped
        self._storages: dict[str, Tensor] = {}

    def built(self, value: Any) -> Any:
        if isinstance(value, TensorSpec):
            return self._tensor(value)
        if isinstance(value, dict):
            return {key: self.built(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.built(inner) for inner in value)
        return value

    def _tensor(self, spec: TensorSpec) -> Tensor:
        place, dtype = spec.place, _TORCH_DTYPES[spec.dtype]
        if place is None or not spec.elements:
            return torch.empty(spec.shape, dtype=dtype)
        held = self._bytes(place.storage)
        values = held[: len(held) // dtype.itemsize * dtype.itemsize].view(dtype)
        return values.as_strided(spec.shape, place.stride, place.offset)

    def _bytes(self, key: str) -> Tensor:
        """A storage's bytes, (n,) uint8; copied where they do not lie as numbers must, as in a legacy file."""
        if key not in self._storages:
            begin, size = self._members[key].offset, self._members[key].size
            if begin % _ALIGNED:
                copied = bytearray(size)
                self._file.seek(begin)
                self._file.readinto(copied)
                self._storages[key] = torch.frombuffer(copied, dtype=torch.uint8)
            else:
                self._storages[key] = torch.frombuffer(self._mapped, dtype=torch.uint8, count=size, offset=begin)
        return self._storages[key]
