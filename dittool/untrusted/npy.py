"""`.npy` files from strangers: the header is read by hand and must describe exactly the bytes that follow.

Nothing is unpickled, and nothing is allocated that the file does not contain.
"""

from __future__ import annotations

import ast
import io
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from dittool.errors import BadDataError

_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 4096
_DTYPES = frozenset({"<f2", "<f4", "<f8", "|i1", "|u1", "|b1", "<i4", "<i8", "<u2"})
_HEADER = re.compile(r"\{'descr': '([^']{2,4})', 'fortran_order': (False|True), 'shape': (\([\d, ]*\)), \}\s*")


def npy_bytes(array: np.ndarray) -> bytes:
    """The array as the bytes of an `.npy` file, version 1.0, C order."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def parse_npy(data: bytes | memoryview, source: str) -> np.ndarray:
    """The array in the bytes of an `.npy` file: a view, nothing is copied. Raises `BadDataError` naming `source` for
    anything else.

    Bytes before or after, object or structured dtypes, and shapes that do not fit the file's size are refused.
    """
    if bytes(data[: len(_MAGIC)]) != _MAGIC or len(data) < 12:
        raise _refusal(source, f"does not start as a .npy file does ({bytes(data[:6])!r})" if len(data) else "is empty")
    major = data[6]
    if major not in (1, 2, 3):
        raise _refusal(source, f"has .npy version {major}, known are 1 to 3")
    start = 10 if major == 1 else 12
    length = int.from_bytes(data[8:start], "little")
    if length > _LONGEST_HEADER or start + length > len(data):
        raise _refusal(source, f"claims a header of {length:,} bytes in a file of {len(data):,}")
    header = bytes(data[start : start + length])
    parsed = _parse_header(header)
    if parsed is None:
        raise _refusal(source, f"has a header that is not a plain array of numbers: {header[:80]!r}")
    dtype, order, shape = parsed
    expected, present = math.prod(shape) * dtype.itemsize, len(data) - start - length
    if expected != present:
        raise _refusal(source, f"says shape {shape} of {dtype}, {expected:,} bytes, but holds {present:,}")
    return np.frombuffer(data, dtype, offset=start + length).reshape(shape, order=order)


@lru_cache(maxsize=4096)  # few shapes occur, and reading one costs more than reading a small array
def _parse_header(header: bytes) -> tuple[np.dtype, Literal["C", "F"], tuple[int, ...]] | None:
    """dtype, order ("C" or "F") and shape that a header names; None when it is not the header of a plain array of
    numbers.
    """
    match = _HEADER.fullmatch(header.decode("latin-1"))
    if not match or match[1] not in _DTYPES:
        return None
    try:
        shape = ast.literal_eval(match[3])
    except (SyntaxError, ValueError):  # such as (1,,2), a leading zero, or a number of thousands of digits
        return None
    return (np.dtype(match[1]), "F" if match[2] == "True" else "C", shape) if isinstance(shape, tuple) else None


def read_npy(path: Path) -> np.ndarray:
    """`parse_npy` of a file. Raises `BadDataError`."""
    return parse_npy(read_npy_bytes(path), str(path))


def read_npy_bytes(path: Path) -> bytes:
    """The bytes of a feature's file. Raises `BadDataError` when it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadDataError(f"{path}: no such file", "make it again with: dit embed") from error


def _refusal(source: str, why: str) -> BadDataError:
    return BadDataError(
        f"{source}: {why}", "the file is damaged or not a feature: make it again with dit embed, then dit shard"
    )
