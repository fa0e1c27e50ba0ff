"""A checkpoint in parts, as several processes write it, each what it holds (FSDP2): nothing is gathered.

    checkpoint_step0001000/state.index.json                   all plain values, and of each tensor name, dtype and shape
    checkpoint_step0001000/part-00000-of-00002.safetensors    rows of the tensors that are split, and all of the others
    checkpoint_step0001000/part-00001-of-00002.safetensors    the rows that follow
    checkpoint_step0001000.json                               its sidecar, as for a single file; the hash is the index's

A tensor is its rows in all parts that have its name, in the order of the parts. The index holds size and hash of each
part. torch.distributed.checkpoint is not used: its own metadata is a pickle, and its writer for Hugging Face's format
leaves no index, keeps no plain values, and neither hashes nor syncs.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dittool.ckpt.lazy_tensors import LazyTensors
from dittool.ckpt.safetensors_file import check_safetensors, safetensors_errors_explained
from dittool.ckpt.write import Written, write_safetensors
from dittool.errors import BadDataError
from dittool.storage import file_sha256, write_atomic
from dittool.untrusted.bounded_json import read_bounded_json
from dittool.untrusted.refusal import unsafe
from dittool.untrusted.tensor_spec import DTYPE_BYTES, Place, TensorSpec, is_shape
from dittool.untrusted.weight_index import require_beside

INDEX_NAME = "state.index.json"
_VERSION = 1
_LARGEST_INDEX = 64 << 20  # bytes; ten thousand tensors take about two megabytes
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TENSOR, _TUPLE, _ENTRIES, _FLOAT = "$tensor", "$tuple", "$entries", "$float"  # what JSON has no word for


@dataclass(frozen=True)
class Part:
    """What the index says of one file."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Sharded:
    """A checkpoint in parts that passed. `content` holds a `TensorSpec` in place of every tensor."""

    path: Path  # of the folder
    bytes: int
    content: Any
    _files: Mapping[str, tuple[Path, ...]]  # where the rows of a tensor are, by its name
    _open: dict[Path, Any] = field(default_factory=dict, repr=False)

    def load(self, value: Any) -> Any:
        """The content, or a part of it, with a tensor on the CPU for each `TensorSpec`."""
        if isinstance(value, TensorSpec):
            return self._tensor(value)
        if isinstance(value, Mapping):
            return {key: self.load(inner) for key, inner in value.items()}
        return type(value)(map(self.load, value)) if isinstance(value, (list, tuple)) else value

    def lazily(self, value: Any) -> Any:
        """The same, dicts of tensors as `LazyTensors`."""
        if isinstance(value, Mapping):
            if any(isinstance(inner, TensorSpec) for inner in value.values()):
                return LazyTensors(value, self.lazily)
            return {key: self.lazily(inner) for key, inner in value.items()}
        return self.load(value)

    def _tensor(self, spec: TensorSpec) -> Tensor:
        assert spec.place is not None
        name = spec.place.storage
        rows = [self._rows(path, name) for path in self._files[name]]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _rows(self, path: Path, name: str) -> Tensor:
        with safetensors_errors_explained(path):
            if path not in self._open:
                self._open[path] = safe_open(path, framework="pt")
            return self._open[path].get_tensor(name)


def is_sharded(path: Path) -> bool:
    """Whether a path is the folder of a checkpoint in parts."""
    return (path / INDEX_NAME).is_file()


def checkpoint_sha256(path: Path) -> str:
    """As the sidecar says it: of the file, or of the index of the parts, in which their hashes are."""
    return file_sha256(path / INDEX_NAME if is_sharded(path) else path)


# Writing


def part_name(number: int, count: int) -> str:
    """`part-00000-of-00002.safetensors`."""
    return f"part-{number:05d}-of-{count:05d}.safetensors"


def write_part(folder: Path, number: int, count: int, tensors: Mapping[str, Tensor]) -> Part:
    """What one of `count` processes holds of the tensors, by their names in the index. Raises OSError."""
    name = part_name(number, count)
    written = write_safetensors(folder / name, tensors, {"format": "pt"})
    return Part(name, written.bytes, written.sha256)


def write_index(folder: Path, content: Mapping[str, Any], parts: list[Part]) -> Written:
    """The index of parts that are there, read back once. Returns its hash, and the bytes of all files.

    Args:
        content: with a `TensorSpec` in place of every tensor.

    Raises TypeError for a value that is not plain.
    """
    index = {"version": _VERSION, "parts": [asdict(part) for part in parts], "content": _encoded(content, "")}
    raw = json.dumps(index, indent=1, allow_nan=False).encode()
    write_atomic(folder / INDEX_NAME, raw)
    open_sharded(folder)
    return Written(hashlib.sha256(raw).hexdigest(), len(raw) + sum(part.bytes for part in parts))


def _encoded(value: Any, name: str) -> Any:
    """A value as JSON; `name`: the dotted keys that lead to it."""
    if type(value) in (str, int, bool, type(None)) or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is float:
        return {_FLOAT: repr(value)}
    if type(value) is TensorSpec:
        return {_TENSOR: name, "dtype": value.dtype, "shape": value.shape}
    if type(value) in (list, tuple):
        items = [_encoded(inner, f"{name}.{place}") for place, inner in enumerate(value)]
        return items if type(value) is list else {_TUPLE: items}
    if type(value) not in (dict, OrderedDict) or any(type(key) not in (str, int) for key in value):
        raise TypeError(f"{name or 'state'}: {type(value).__name__} is neither a tensor nor a plain value")
    pairs = [(key, _encoded(inner, f"{name}.{key}" if name else str(key))) for key, inner in value.items()]
    simple = all(type(key) is str and not key.startswith("$") for key, _ in pairs)
    return dict(pairs) if simple else {_ENTRIES: pairs}


# Reading


def open_sharded(folder: Path) -> Sharded:
    """Checks index and parts; no tensor is read. Raises `BadDataError` for what is not there or does not fit together,
    `UnsafeFileError` for what no writer makes.
    """
    index, size = _read_index(folder)
    specs: dict[str, TensorSpec] = {}
    path = folder / INDEX_NAME
    try:
        content = _decoded(index["content"], specs, path)
    except RecursionError as error:
        raise unsafe(path, "an index that is not JSON of a sane depth") from error
    pieces: dict[str, list[tuple[Path, TensorSpec]]] = {name: [] for name in specs}
    for part in _parts(index, path):
        if not require_beside(folder / part.file, folder).exists():
            raise BadDataError(f"{folder}: its part {part.file} is not there", "copy it too")
        size += (folder / part.file).stat().st_size
        for name, spec in check_safetensors(folder / part.file).tensors.items():
            if name not in pieces:
                raise unsafe(folder / part.file, f"tensor {name!r:.100}, of which the index knows nothing")
            pieces[name].append((folder / part.file, spec))
    for name, spec in specs.items():
        if not _is_tiled(spec, [one for _, one in pieces[name]]):
            raise BadDataError(
                f"{folder}: tensor {name!r:.100} should be {spec.dtype} of shape {list(spec.shape)}, its parts have"
                f" {', '.join(f'{one.dtype} {list(one.shape)}' for _, one in pieces[name]) or 'nothing of it'}",
                "index and parts belong to different checkpoints: copy the folder again",
            )
    return Sharded(folder, size, content, {name: tuple(file for file, _ in rows) for name, rows in pieces.items()})


def parts_of(folder: Path) -> list[Part]:
    """What the index says of the parts. Raises as `open_sharded`."""
    return _parts(_read_index(folder)[0], folder / INDEX_NAME)


def differs_from_index(folder: Path) -> str | None:
    """None when each part is what the index says, else the reason in a few words. Reads all parts."""
    for part in parts_of(folder):
        if not (path := folder / part.file).is_file():
            return f"its part {part.file} is not there"
        if (size := path.stat().st_size) != part.bytes:
            return f"{part.file}: {size:,} bytes, the index says {part.bytes:,}"
        if file_sha256(path) != part.sha256:
            return f"{part.file}: sha256 differs from the index's"
    return None


def _is_tiled(spec: TensorSpec, pieces: list[TensorSpec]) -> bool:
    """Whether the pieces, one below the other, are a tensor like this."""
    if len(pieces) == 1:
        return pieces[0] == spec
    alike = all(one.dtype == spec.dtype and one.shape and one.shape[1:] == spec.shape[1:] for one in pieces)
    return bool(pieces and spec.shape) and alike and sum(one.shape[0] for one in pieces) == spec.shape[0]


def _read_index(folder: Path) -> tuple[dict[str, Any], int]:
    """The index and its size in bytes."""
    path = folder / INDEX_NAME
    index, size = read_bounded_json(require_beside(path, folder), _LARGEST_INDEX, "copy the folder again")
    if not isinstance(index, dict) or not {"version", "parts", "content"} <= index.keys():
        raise BadDataError(f"{path}: no index of a checkpoint", "name a checkpoint that dit train wrote")
    if index["version"] != _VERSION:
        raise BadDataError(
            f"{path}: version {index['version']!r:.20}, read here is version {_VERSION}",
            "use the version of dit that wrote it",
        )
    return index, size


def _parts(index: Mapping[str, Any], path: Path) -> list[Part]:
    listed = index["parts"] if isinstance(index["parts"], list) else []
    parts = []
    for number, said in enumerate(listed):
        known = isinstance(said, dict) and said.keys() == {"file", "bytes", "sha256"}
        if not known or said["file"] != part_name(number, len(listed)) or type(said["bytes"]) is not int:
            raise unsafe(path, f"a part {said!r:.100}")
        if not isinstance(said["sha256"], str) or not _SHA256.fullmatch(said["sha256"]):
            raise unsafe(path, f"a part {said!r:.100}")
        parts.append(Part(**said))
    if not parts:
        raise BadDataError(f"{path}: no parts", "copy the folder again")
    return parts


def _decoded(value: Any, specs: dict[str, TensorSpec], path: Path) -> Any:
    """What `_encoded` was given. Adds its tensors to `specs`."""
    if isinstance(value, list):
        return [_decoded(inner, specs, path) for inner in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        name, dtype, shape = value[_TENSOR], value.get("dtype"), value.get("shape")
        if not isinstance(name, str) or name in specs or dtype not in tuple(DTYPE_BYTES) or not is_shape(shape):
            raise unsafe(path, f"a tensor {value!r:.200}")
        specs[name] = TensorSpec(dtype, tuple(shape), Place(name, 0, ()))
        return specs[name]
    if len(value) == 1:
        ((kind, inner),) = value.items()
        if kind == _TUPLE and isinstance(inner, list):
            return tuple(_decoded(one, specs, path) for one in inner)
        if kind == _FLOAT and inner in ("nan", "inf", "-inf"):
            return float(inner)
        if kind == _ENTRIES and isinstance(inner, list):
            if not all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int) for pair in inner):
                raise unsafe(path, f"entries {inner!r:.100}")
            return {key: _decoded(one, specs, path) for key, one in inner}
    if strange := next((key for key in value if key.startswith("$")), ""):
        raise unsafe(path, f"a value of the unknown kind {strange!r:.40}")
    return {key: _decoded(inner, specs, path) for key, inner in value.items()}
