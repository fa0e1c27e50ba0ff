"""Reading checkpoints and weights that somebody else may have made: first looked at, then loaded.

`check_pt` and `check_safetensors` decide from the bytes alone whether a file is safe; nothing is imported, called or
allocated for it. Then `ckpt.tensors` builds a `.pt`'s tensors from the bytes of its storages, and the safetensors
library reads its own. `torch.load(weights_only=True)` reads only checkpoints of ours, which hold tensors and plain
values alone (`check_own`). Both defences stand alone: `weights_only=True` by itself lets a file of 400 bytes allocate a
gigabyte (a bytearray; torch 2.13).

Exit codes: no such file is `UsageError` (2); not a checkpoint, or a damaged one, is `BadDataError` (3); one that could
do harm is `UnsafeFileError` (4).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dittool.ckpt.file_kind import open_regular, other_kind, require_bools
from dittool.ckpt.lazy_tensors import specs_of
from dittool.ckpt.sharded import is_sharded, open_sharded
from dittool.errors import BadDataError, listed
from dittool.untrusted.pickle_bounds import LARGEST_PICKLE
from dittool.untrusted.pickle_walk import OWN_PROTOCOL, PickleContent, read_pickle
from dittool.untrusted.refusal import unsafe, unsafe_global
from dittool.untrusted.tensor_spec import TensorSpec
from dittool.untrusted.torch_legacy import read_legacy
from dittool.untrusted.zip_archive import Member, ends_as_archive, read_archive

FORMAT_VERSION = 1

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_ENDINGS = (*CHECKPOINT_SUFFIXES, ".pth.tar", ".pt.tar", ".ckpt.tar")  # an old habit: no tar is in them
INDEX_ENDING = ".index.json"  # of what says which file holds which tensor of a model
_RECORDS = {"version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
_BLOCK = 1 << 20


def is_named_as_checkpoint(path: Path) -> bool:
    """Whether a file's name ends as names of checkpoints do."""
    return path.name.lower().endswith(_ENDINGS)


@dataclass(frozen=True)
class PtReport:
    """A `.pt` file that passed: its size in bytes and its content with a `TensorSpec` in place of every tensor and a
    `ForeignObject` in place of what is neither a tensor nor a plain value.
    """

    path: Path
    bytes: int
    content: Any
    members: dict[str, Member]  # where each storage lies, by its key
    foreign: tuple[str, ...]  # names of classes and functions that torch.load would import
    legacy: bool  # from before PyTorch 1.6, which has no archive
    protocol: int  # of its pickle
    unknown_calls: tuple[str, ...] = ()  # of other programs' classes that may be no enumerations


def check_pt(path: Path) -> PtReport:
    """Whether nothing in a `.pt` file could run code or exhaust the machine, found out without loading it.

    Raises `UnsafeFileError` naming what could do harm and `BadDataError` for what is no PyTorch checkpoint at all.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if legacy := not _is_zip(file, size, path):
            content, members = read_legacy(file, path)
        else:
            content, members = _read_zip(file, size, path)
        for key, storage in content.storages.items():
            if storage.dtype == "bool":
                require_bools(file, members[key].offset, members[key].size, f"storage {key!r}", path)
    return PtReport(
        path, size, content.value, members, content.foreign, legacy, content.protocol, content.unknown_calls
    )


def content_of(path: Path) -> Any:
    """The content of a `.pt` or of a folder of parts, with a `TensorSpec` in place of every tensor. Raises as
    `check_pt`.
    """
    return open_sharded(path).content if is_sharded(path) else check_pt(path).content


def check_own(path: Path) -> PtReport:
    """`check_pt` of a file that `torch.load` is to read: tensors and plain values only. Raises as it does."""
    report = check_pt(path)
    if report.foreign:
        module, _, name = report.foreign[0].rpartition(".")
        raise unsafe_global(path, module, name)
    if report.legacy or report.protocol != OWN_PROTOCOL:
        kind = "a bare pickle, as PyTorch wrote before 1.6" if report.legacy else "a pickle that is not of protocol 2"
        raise unsafe(
            path,
            kind,
            "look at it with dit inspect-ckpt; to go on from it, convert it where that does no harm:"
            " torch.save(torch.load(OLD, weights_only=True), NEW)",
        )
    return report


def _read_zip(file: BinaryIO, size: int, path: Path) -> tuple[PickleContent, dict[str, Member]]:
    """The content of an archive, and where each storage lies."""
    members = read_archive(file, size, path)
    if "constants.pkl" in members or any(name.startswith("code/") for name in members):
        raise unsafe(path, "a TorchScript archive, which holds program code")
    if "data.pkl" not in members:
        raise BadDataError(
            f"{path}: a zip archive without data.pkl, so not a PyTorch checkpoint",
            "name a file that torch.save wrote",
        )
    storages = {name.removeprefix("data/"): member for name, member in members.items() if name.startswith("data/")}
    if foreign := members.keys() - _RECORDS - {"data.pkl"} - {f"data/{key}" for key in storages}:
        raise unsafe(path, f"a member {min(foreign)!r}, which torch.save never writes")
    order = members.get("byteorder")
    if order is not None and (order.size > _BLOCK or _bytes_of(file, order) != b"little"):
        raise unsafe(path, "numbers in the order of a big-endian machine, or of none")
    program = members["data.pkl"]
    if program.size > LARGEST_PICKLE:
        raise unsafe(path, f"a pickle of {program.size:,} bytes, the limit is {LARGEST_PICKLE:,}")
    content = read_pickle(_bytes_of(file, program), {key: member.size for key, member in storages.items()}, path)
    return content, storages


def _bytes_of(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def load_checkpoint(
    path: Path,
    map_location: str | torch.device = "cpu",
    require: Sequence[str] = (),
    only: Sequence[str] | None = None,
    lazily: Sequence[str] = (),
) -> dict[str, Any]:
    """The dict in a `.pt` file, after `check_pt`, or in a folder of parts.

    Args:
        require: keys that must be there.
        only: what is read of a folder of parts, by default all keys; a `.pt` is read whole.
        lazily: keys whose dicts of tensors may be `LazyTensors`, which a folder of parts has.

    Raises `UnsafeFileError`, and `BadDataError` when the file is damaged, of a newer format, or lacks a required key.
    """
    if path.suffix.lower() == ".safetensors":
        raise BadDataError(
            f"{path}: weights alone, not a checkpoint with its training state", "name a .pt file that dit train wrote"
        )
    state: Any
    if is_sharded(path):
        opened = open_sharded(path)
        wanted = {key: opened.content[key] for key in opened.content if only is None or key in only}
        state = {key: opened.lazily(value) if key in lazily else opened.load(value) for key, value in wanted.items()}
    else:
        check_own(path)
        state = _torch_load(path, map_location)
    if not isinstance(state, dict):
        raise BadDataError(
            f"{path}: holds a {type(state).__name__}, not a dict", "name a checkpoint written by: dit train"
        )
    version = state.get("format_version")
    if version is not None and version != FORMAT_VERSION:
        raise BadDataError(
            f"{path}: checkpoint format {version!r}, this dit reads format {FORMAT_VERSION}",
            "use the dit that wrote it",
        )
    if missing := [key for key in require if key not in state]:
        raise BadDataError(
            f"{path}: lacks {', '.join(missing)}; it has {keys_of(state)}", "name a checkpoint written by: dit train"
        )
    return state


def non_finite_tensors(state: object) -> list[str]:
    """Dotted names of the tensors with a NaN or an infinity, anywhere in nested dicts, lists and tuples."""
    return [name for name, tensor in _walked(state, "") if not _is_finite(tensor)]


def require_fit(weights: Mapping[str, Tensor], model: Mapping[str, Tensor], source: str) -> None:
    """Raises `BadDataError` with counts and the first ten differences unless `weights` are exactly the tensors of
    the state dict `model`.
    """
    given, wanted = specs_of(weights), specs_of(model)
    missing = [f"{name}: missing, the model has {_shape(spec)}" for name, spec in wanted.items() if name not in given]
    unexpected = [f"{name}: unexpected, {_shape(spec)}" for name, spec in given.items() if name not in wanted]
    common = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    reshaped = [f"{name}: {_shape(given[name])}, the model has {_shape(wanted[name])}" for name in common]
    differences = reshaped + missing + unexpected
    if not differences:
        return
    counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape"
    raise BadDataError(
        f"{source}: these weights belong to another architecture ({counts}):\n  "
        + listed(differences, separator="\n  "),
        "use the preset that they were trained with, or carry them over with: dit warmstart OLD --preset P --out"
        " INIT.safetensors",
    )


def require_finite(state: Mapping[str, object], source: str) -> None:
    """Raises `BadDataError` naming the tensors with a NaN or an infinity."""
    if broken := non_finite_tensors(state):
        raise BadDataError(
            f"{source}: {len(broken)} tensors hold NaN or infinity: {listed(broken)}",
            "go back to an earlier checkpoint",
        )


def named_tensors(state: object, prefix: str = "") -> list[tuple[str, Any]]:
    """All tensors (or their specs) of nested dicts, lists and tuples with their dotted names, in the order of the
    file.
    """
    return list(_walked(state, prefix))


def _walked(state: object, prefix: str) -> Iterator[tuple[str, Any]]:
    """One at a time, so that of lazily read ones no second is in memory."""
    if isinstance(state, (Tensor, TensorSpec)):
        yield prefix, state
        return
    items = (
        state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    )
    for key, value in items:
        yield from _walked(value, f"{prefix}.{key}" if prefix else str(key))


def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(torch.isfinite(tensor.float() if tensor.element_size() == 1 else tensor).all())


def _torch_load(path: Path, map_location: str | torch.device) -> Any:
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except OSError:
        raise
    # torch raises RuntimeError, ValueError, KeyError, UnpicklingError, AssertionError … for damaged files
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadDataError(
            f"{path}: PyTorch cannot read it: {first_line}", "the file is damaged; use another checkpoint"
        ) from error


def keys_of(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return listed([str(key) for key in content]) or "nothing"


def _shape(spec: TensorSpec) -> str:
    return "×".join(map(str, spec.shape)) or "scalar"


def _is_zip(file: BinaryIO, size: int, path: Path) -> bool:
    """Whether it is an archive; False for a pickle. Raises for every other kind of file."""
    head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return True
    if not head:
        raise BadDataError(f"{path}: an empty file (0 bytes), not a PyTorch checkpoint", "copy or download it again")
    if ends_as_archive(file, size):
        raise unsafe(path, "a zip archive behind something else, two files in one")
    if other := other_kind(head):
        raise BadDataError(f"{path}: {other}, not a PyTorch checkpoint", "name another file, or fetch this one again")
    if head[257:262] == b"ustar":
        raise unsafe(
            path,
            "a tar archive, as PyTorch wrote before 0.1.10, whose content cannot be checked",
            "if you trust its maker, convert it where that does no harm: torch.save(torch.load(OLD), NEW)",
        )
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return False
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        raise BadDataError(
            f"{path}: a safetensors file under another name, not a PyTorch checkpoint",
            "rename it to end in .safetensors",
        )
    raise BadDataError(
        f"{path}: not a PyTorch checkpoint: it begins with {head[:8]!r}", "name a file that torch.save wrote"
    )
