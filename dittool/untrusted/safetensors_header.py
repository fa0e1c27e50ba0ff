"""The header of a `.safetensors` file, parsed here because the library lets some faults pass.

The library accepts a name given twice (the second dtype wins), leading spaces, names like `../x` and the empty one. All
are refused here, with everything else that the format forbids. Source of the format:
https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from dittool.errors import BadDataError
from dittool.untrusted.refusal import unsafe
from dittool.untrusted.tensor_spec import TensorSpec, is_shape

# bytes; ten thousand tensors take about one megabyte, and parsing takes up to twenty-five times a header's size
_LARGEST_HEADER = 8 << 20
DTYPES = {  # the format's names → torch's
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "C64": "complex64",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class SafetensorsHeader:
    """What the header says. `offsets` are absolute: where each tensor's bytes begin in the file."""

    tensors: dict[str, TensorSpec]
    offsets: dict[str, int]
    metadata: dict[str, str]


def read_header(file: BinaryIO, path: Path) -> SafetensorsHeader:
    """Parses and checks the header of the open file; no tensor is read.

    Raises `BadDataError` when the file is cut short or uses an unknown dtype, `UnsafeFileError` for everything that no
    writer makes.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        says = f"its header should have {length:,} bytes" if size >= 8 else "the length of its header is missing"
        raise BadDataError(
            f"{path}: not a safetensors file, or cut short: {says}, the file has {size:,}", "copy or download it again"
        )
    if length > _LARGEST_HEADER:
        raise unsafe(path, f"a header of {length:,} bytes, the limit is {_LARGEST_HEADER:,}")
    entries = _parse(file.read(length), path)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise unsafe(path, "metadata that is not text by name")
    tensors, ranges = {}, []
    for name, entry in entries.items():
        tensors[name], begin, end = _tensor(name, entry, path)
        ranges.append((begin, end, name))
    _require_tiling(ranges, size - 8 - length, path)
    return SafetensorsHeader(tensors, {name: 8 + length + begin for begin, _, name in ranges}, metadata)


def _parse(raw: bytes, path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for name, value in pairs:
            if name in named:
                raise unsafe(path, f"the name {name!r:.200} twice in one header")
            named[name] = value
        return named

    if not raw.startswith(b"{"):
        raise unsafe(path, "a header that does not begin with '{'")
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise unsafe(path, "a header that is not JSON of a sane depth") from error
    if not isinstance(entries, dict):
        raise unsafe(path, "a header that is not a JSON object")
    return entries


def _tensor(name: str, entry: object, path: Path) -> tuple[TensorSpec, int, int]:
    """The tensor's spec, and where its bytes begin and end behind the header."""
    if not name or not name.isprintable() or name.startswith("/") or "\\" in name or ".." in name.split("/"):
        raise unsafe(path, f"a tensor with the name {name!r:.200}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise unsafe(path, f"tensor {name!r:.200} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadDataError(
            f"{path}: tensor {name!r:.200} has the unknown dtype {dtype!r:.40}", f"known are {', '.join(DTYPES)}"
        )
    if not is_shape(shape) or not is_shape(offsets) or len(offsets) != 2:
        raise unsafe(path, f"tensor {name!r:.200} with the shape {shape!r:.100} at {offsets!r:.100}")
    spec, (begin, end) = TensorSpec(DTYPES[dtype], tuple(shape)), offsets
    if end - begin != spec.bytes:
        raise unsafe(path, f"tensor {name!r:.200} needs {spec.bytes:,} bytes and is given {end - begin:,}")
    return spec, begin, end


def _require_tiling(ranges: list[tuple[int, int, str]], size: int, path: Path) -> None:
    """The tensors' bytes must follow one another from the header's end to the file's, without gap or overlap."""
    reached = 0
    for begin, end, name in sorted(ranges):
        if begin != reached:
            raise unsafe(
                path, f"tensor {name!r:.200} begins at byte {begin:,} where the one before ends at {reached:,}"
            )
        reached = end
    if reached > size:
        raise BadDataError(
            f"{path}: cut short: the tensors take {reached:,} bytes, the file has {size:,} for them",
            "copy or download it again",
        )
    if reached < size:
        raise unsafe(path, f"{size - reached:,} bytes behind the last tensor")
