"""What a file says about a tensor before any of it is loaded: dtype and shape, and which dtypes there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

MOST_DIMENSIONS = 64  # torch's own limit
LONGEST_DIMENSION = 2**62

DTYPE_BYTES = {  # torch's names; only dtypes of whole bytes
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e8m0fnu": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "complex128": 16,
    "complex64": 8,
    "complex32": 4,
    "bool": 1,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's values lie: in which storage of its archive, from which value on, how far apart."""

    storage: str
    offset: int  # in values
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """`dtype` by torch's name, without the `torch.`; a scalar has the shape (). `place` is set in a `.pt`."""

    dtype: str
    shape: tuple[int, ...]
    place: Place | None = field(default=None, compare=False, repr=False)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * DTYPE_BYTES[self.dtype]


def is_shape(value: object) -> TypeGuard[Sequence[int]]:
    """Whether a value read from a file can be a shape: whole non-negative numbers, few and small enough to multiply."""
    if not isinstance(value, (list, tuple)) or len(value) > MOST_DIMENSIONS:
        return False
    return all(type(length) is int and 0 <= length <= LONGEST_DIMENSION for length in value)
