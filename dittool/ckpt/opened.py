"""A checkpoint that anybody may have made, checked before anything in it is loaded: a `.pt` or the like, a
`.safetensors`, an index of several files, a folder, or one of ours in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dittool.ckpt.folders import weights_in
from dittool.ckpt.load import INDEX_ENDING, check_pt, keys_of, named_tensors
from dittool.ckpt.parts import entries_of, is_state_dict
from dittool.ckpt.safetensors_file import check_safetensors, load_safetensors
from dittool.ckpt.sharded import INDEX_NAME, is_sharded, open_sharded
from dittool.ckpt.tensors import load_mapped
from dittool.errors import BadDataError
from dittool.untrusted.refusal import unsafe
from dittool.untrusted.tensor_spec import TensorSpec
from dittool.untrusted.weight_index import read_index, require_beside

PT, SAFETENSORS, PARTS, SHARDED = "pt", "safetensors", "parts", "sharded"


@dataclass(frozen=True)
class Opened:
    """A checkpoint that passed. `content` holds a `TensorSpec` in place of every tensor."""

    path: Path  # of the file, or of the index
    bytes: int
    content: Any
    load: Callable[[Any], Any]  # a part of the content → the same with tensors on the CPU
    kind: str  # one of the four above
    metadata: Mapping[str, str]
    foreign: tuple[str, ...] = ()  # classes and functions that torch.load would import
    unknown_calls: tuple[str, ...] = ()  # of classes that torch.load would call, and that may be no enumerations
    beside: tuple[str, ...] = ()  # other weights in the folder

    @property
    def weights_only(self) -> bool:
        """Whether it is of a kind that holds tensors alone, and what is to be said of them as metadata."""
        return self.kind in (SAFETENSORS, PARTS)

    @property
    def entries(self) -> Mapping[Any, Any]:
        """The content by name; empty when it is no kind of dict."""
        return entries_of(self.content)


def is_weights_alone(path: Path) -> bool:
    """Whether a file is named as tensors without a training state, or as the index of several such files."""
    return path.name.lower().endswith((".safetensors", f".safetensors{INDEX_ENDING}"))


def open_checkpoint(path: Path) -> Opened:
    """Checks a file, the files of an index, or the weights in a folder. Raises `UsageError` (no such file),
    `BadDataError` and `UnsafeFileError`.
    """
    if is_sharded(path) or (path.name == INDEX_NAME and path.is_file()):
        sharded = open_sharded(path.parent if path.name == INDEX_NAME else path)
        return Opened(sharded.path, sharded.bytes, sharded.content, sharded.lazily, SHARDED, {})
    if path.is_dir():
        found = weights_in(path)
        if found is None:
            raise BadDataError(f"{path}: no weights in this folder", "name the file, or the folder that holds it")
        for part in found.parts or (found.path,):
            require_beside(part, part.parent)
        opened = _open_parts(found.path, {}, found.parts) if found.parts else open_checkpoint(found.path)
        return replace(opened, beside=found.beside)
    if path.name.endswith(INDEX_ENDING) and path.is_file():
        files = read_index(path)
        return _open_parts(path, files, [path.parent / name for name in sorted(set(files.values()))])
    if path.suffix.lower() == ".safetensors":
        header = check_safetensors(path)
        size = path.stat().st_size
        return Opened(path, size, header.tensors, partial(load_safetensors, path), SAFETENSORS, header.metadata)
    report = check_pt(path)
    load = partial(load_mapped, report)
    return Opened(path, report.bytes, report.content, load, PT, {}, report.foreign, report.unknown_calls)


def _open_parts(path: Path, index: Mapping[str, str], parts: Iterable[Path]) -> Opened:
    """One model in several files. A tensor belongs to the file that the index names; without an index, to the only one
    that has it.
    """
    opened, content = {}, {}
    for part in parts:
        if not require_beside(part, path.parent).exists():
            raise BadDataError(f"{path}: its part {part.name} is not there", "copy or download it too")
        one = open_checkpoint(part)
        if not is_state_dict(one.entries):
            raise BadDataError(f"{part}: no state dict, but it holds {keys_of(one.entries)}", "name the file itself")
        for name, spec in named_tensors(one.entries):
            if name in content or index.get(name, part.name) != part.name:
                raise unsafe(part, f"tensor {name!r:.100}, which is in another part too")
            if name in index or not index:
                content[name] = spec
        opened[part] = one
    if lacking := [name for name in index if name not in content]:
        raise BadDataError(
            f"{path}: {len(lacking)} tensors are in none of its parts, first {lacking[0]!r:.100}",
            "the index and its parts belong to different models: copy or download them again",
        )

    def load(wanted: Mapping[str, TensorSpec]) -> dict[str, Any]:
        loaded: dict[str, Any] = {}
        for one in opened.values():
            loaded |= one.load({name: wanted[name] for name in one.entries if name in wanted})
        return {name: loaded[name] for name in wanted}

    foreign = sorted({name for one in opened.values() for name in one.foreign})
    unknown = sorted({call for one in opened.values() for call in one.unknown_calls})
    size = sum(one.bytes for one in opened.values())
    said = [one.metadata for one in opened.values()]
    metadata = said[0] if said and all(one == said[0] for one in said) else {}  # of an export each part says all
    return Opened(path, size, content, load, PARTS, metadata, tuple(foreign), tuple(unknown))
