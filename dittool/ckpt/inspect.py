"""What is in a checkpoint, how two differ, and its weights as `.safetensors`; nothing in the file is ever run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dittool.ckpt.files import list_checkpoints, sidecar_path
from dittool.ckpt.load import content_of, load_checkpoint, named_tensors, non_finite_tensors
from dittool.ckpt.opened import PARTS, Opened, open_checkpoint
from dittool.ckpt.parts import at, entries_of, is_state_dict, state_dicts, tensors_of
from dittool.ckpt.safetensors_file import check_safetensors
from dittool.ckpt.weights import choose_part
from dittool.ckpt.write import write_safetensors
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError, DitError, listed
from dittool.untrusted.foreign_values import ForeignObject, plain_values, short
from dittool.untrusted.tensor_spec import TensorSpec

OURS, FOREIGN, WEIGHTS = "dit checkpoint", "foreign checkpoint", "state dict"
SAFETENSORS, SHARDED = "safetensors weights", "weights in several files"
_SETTINGS = ("config", "args", "hyper_parameters", "cfg", "opt")  # of a trainer, an object or a dict
_STEPS = ("step", "global_step", "train_steps", "steps", "iteration")
_LONGEST_VALUE = 60  # characters of a plain value in the tree
_MOST_DOTS = 64  # in a name that is shown as nested
_MOST_SETTINGS = 16  # objects of other programs that are shown with what is in them

Plain = TypeVar("Plain", int, str, dict[str, Any])


@dataclass(frozen=True)
class Inspection:
    """What one file holds. Keys that the file does not have are None or empty."""

    path: Path
    kind: str  # one of the five above
    bytes: int
    content: Any  # the file's value with a TensorSpec for each tensor
    weights: tuple[str, ...]  # keys that hold a model's tensors
    taken: str  # which of them sampling would take, in words
    beside: tuple[str, ...]  # what else of weights lies in the folder
    foreign: tuple[str, ...]  # classes and functions of other programs, never imported
    unknown_calls: tuple[str, ...]  # of such classes, made where the file is unpickled; never made here
    parameters: int  # elements of the weights that sampling would take
    dtypes: dict[str, int]  # elements of those weights by dtype
    format_version: int | None
    step: int | None
    samples_seen: int | None
    config: dict[str, Any] | None
    data_identity: str | None
    sidecar: str  # "verified", "none", or what is wrong
    non_finite: tuple[str, ...]  # names of tensors with NaN or infinity

    @property
    def tensors(self) -> dict[str, TensorSpec]:
        """Every tensor of the file by its dotted name."""
        return dict(named_tensors(self.content))

    def as_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        fields = (
            "kind",
            "bytes",
            "weights",
            "taken",
            "beside",
            "foreign",
            "unknown_calls",
            "parameters",
            "dtypes",
            "format_version",
            "step",
            "samples_seen",
            "config",
            "data_identity",
            "sidecar",
        )
        tensors = {name: {"dtype": spec.dtype, "shape": spec.shape} for name, spec in self.tensors.items()}
        return {
            "path": str(self.path),
            **{name: getattr(self, name) for name in fields},
            "non_finite": self.non_finite,
            "tensors": tensors,
        }


def inspect(path: Path) -> Inspection:
    """Reads the structure of a file, of an index's files or of a folder, then its values for NaN. Raises `BadDataError`
    and `UnsafeFileError`.
    """
    opened = open_checkpoint(path)
    content, named = opened.content, opened.entries
    if not opened.weights_only:
        ours = "format_version" in named and is_state_dict(named.get("model"))
        kind = OURS if ours else WEIGHTS if is_state_dict(content) else FOREIGN
    else:
        kind = SHARDED if opened.kind == PARTS else SAFETENSORS
    part, model = _main_weights(opened)
    data = named.get("data") if kind == OURS else None
    said = {key: opened.metadata.get(key, "") for key in ("step", "format_version")}
    numbers = {key: int(text) if text.isdecimal() else _plain(named.get(key), int) for key, text in said.items()}
    return Inspection(
        path=opened.path,
        kind=kind,
        bytes=opened.bytes,
        content=content,
        weights=tuple(".".join(keys) for keys in state_dicts(content) if keys),
        taken=part,
        beside=opened.beside,
        foreign=opened.foreign,
        unknown_calls=opened.unknown_calls,
        parameters=sum(spec.elements for spec in model.values()),
        dtypes=_elements_by_dtype(model),
        format_version=numbers["format_version"],
        step=next((step for key in _STEPS if (step := _plain(named.get(key), int)) is not None), numbers["step"]),
        samples_seen=_plain(named.get("samples_seen"), int),
        config=configuration(opened),
        data_identity=_plain(data.get("identity_hash"), str) if isinstance(data, dict) else None,
        sidecar=_sidecar_state(opened.path),
        non_finite=tuple(non_finite_tensors(opened.load(opened.entries or content))),
    )


def tree(content: object) -> str:
    """The keys of a file's content as indented text, with shapes and counts; numbered siblings that are alike are
    shown once.
    """
    top = dict(entries_of(content)) or content
    if isinstance(top, dict):
        settings = [key for key, value in top.items() if isinstance(value, ForeignObject) and value.entries]
        top |= {key: plain_values(top[key]) for key in settings[:_MOST_SETTINGS]}
    nested = _nested(top)
    if not isinstance(nested, dict):
        return _leaf_text(nested)
    lines: list[str] = []
    _add_lines(nested, 0, lines)
    return "\n".join(lines)


def export_safetensors(path: Path, out: Path, weights: str = "ema", talk: Talk = SILENT) -> None:
    """Writes the weights under `weights` of one of our checkpoints to `out`, with step and configuration in its
    metadata.

    Raises `BadDataError` when the file is no checkpoint of ours, or has no such weights.
    """
    needed = ("format_version", "config", "step")
    keys = choose_part(content_of(path), path, weights).keys
    state = load_checkpoint(path, require=needed, only=(*needed, "data", "classes", *keys[:1]), lazily=keys[:1])
    tensors = at(state, keys)
    if broken := non_finite_tensors(tensors):
        talk.warn(f"{path}: {len(broken)} tensors under '{weights}' hold NaN or infinity: {listed(broken)}")
    metadata = {
        "format": "pt",
        "format_version": str(state["format_version"]),
        "step": str(state["step"]),
        "weights": weights,
    }
    # what drawing needs beside the weights
    metadata |= {key: json.dumps(state[key]) for key in ("config", "data", "classes") if key in state}
    write_safetensors(out, tensors, metadata)
    talk.note(f"wrote {len(tensors)} tensors ('{weights}', step {state['step']}) to {out}")


def is_export(path: Path) -> bool:
    """Whether a file is one that `export_safetensors` wrote."""
    try:
        return {"format_version", "step", "config"} <= check_safetensors(path).metadata.keys()
    except DitError:
        return False


def _main_weights(opened: Opened) -> tuple[str, Mapping[str, TensorSpec]]:
    """Which part sampling would take, in words, and its tensors; of a file without a state dict, all."""
    try:
        part = choose_part(opened.content, opened.path)
    except BadDataError:
        return "no state dict", dict(named_tensors(opened.entries or opened.content))
    held: dict[str, TensorSpec] = {}
    for one in (part.raw, part):
        if one is not None:
            tensors = tensors_of(opened.content, one)
            held |= {short: tensors[name] for name, short in one.bare.items()}
    return str(part), held


def config_in(path: Path) -> dict[str, Any] | None:
    """The configuration that a checkpoint of ours or an exported file holds, unchecked; None where there is none."""
    return configuration(open_checkpoint(path))


def configuration(opened: Opened) -> dict[str, Any] | None:
    """The configuration in a checkpoint: ours under `config`, others' settings by whatever name they have."""
    if opened.weights_only:
        try:
            return _plain(json.loads(opened.metadata.get("config", "null")), dict)
        except (ValueError, RecursionError):
            return None  # somebody else's key of that name
    for key in _SETTINGS:
        if settings := entries_of(opened.entries.get(key)):
            return _plain(plain_values(settings), dict)
    return None


def _sidecar_state(path: Path) -> str:
    if not sidecar_path(path).exists():
        return "none"
    found = [file for file in list_checkpoints(path.parent) if file.path.name == path.name]
    return (found[0].verify() or "verified") if found else "none"


def _elements_by_dtype(tensors: Mapping[str, TensorSpec]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for spec in tensors.values():
        counts[spec.dtype] = counts.get(spec.dtype, 0) + spec.elements
    return counts


def _plain(value: object, kind: type[Plain]) -> Plain | None:
    return value if isinstance(value, kind) and not (kind is int and isinstance(value, bool)) else None


# The tree


def _nested(value: Any) -> Any:
    """Dicts keyed by the parts of dotted names; lists that hold more than plain values become dicts by index."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, TensorSpec)) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return value
    nested: dict[str, Any] = {}
    for key, inner in value.items():
        *folders, leaf = str(key).split(".") if str(key).count(".") <= _MOST_DOTS else [str(key)]
        node = nested
        for folder in folders:
            if not isinstance(node.setdefault(folder, {}), dict):  # "a" is a tensor, and there is an "a.b"
                node, leaf = nested, str(key)
                break
            node = node[folder]
        node[leaf if leaf not in node else f"{key} (itself)"] = _nested(inner)
    return nested


def _add_lines(node: dict[str, Any], depth: int, lines: list[str]) -> None:
    keys, position = sorted(node, key=int) if all(key.isdecimal() for key in node) else list(node), 0
    while position < len(keys):
        alike = 1
        if keys[position].isdecimal():
            form = _form(node[keys[position]])
            while (
                position + alike < len(keys)
                and keys[position + alike].isdecimal()
                and _form(node[keys[position + alike]]) == form
            ):
                alike += 1
        first, inner = keys[position], node[keys[position]]
        label = first if alike == 1 else f"{first} … {keys[position + alike - 1]} ({alike} alike, each)"
        if isinstance(inner, dict):
            specs = [spec for _, spec in named_tensors(inner)]
            elements = sum(spec.elements for spec in specs)
            count = (
                f"{_counted(len(specs), 'tensor')}, {_counted(elements, 'element')}"
                if specs
                else _counted(len(inner), "value")
            )
            lines.append(f"{'  ' * depth}{label}  [{count}]")
            _add_lines(inner, depth + 1, lines)
        else:
            lines.append(f"{'  ' * depth}{label}  {_leaf_text(inner)}")
        position += alike


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _form(node: object) -> object:
    if isinstance(node, dict):
        return tuple((key, _form(inner)) for key, inner in node.items())
    return node if isinstance(node, TensorSpec) else type(node)


def _leaf_text(value: object) -> str:
    if isinstance(value, TensorSpec):
        return f"{value.dtype} {'×'.join(map(str, value.shape)) or 'scalar'}"
    if isinstance(value, (list, tuple)):
        text = f"[{', '.join(map(short, value[:_LONGEST_VALUE]))}]"  # each is short, whatever it refers to
        if len(value) > _LONGEST_VALUE or len(text) > _LONGEST_VALUE:
            return f"{type(value).__name__} of {_counted(len(value), 'value')}"
        return text if isinstance(value, list) else f"({text[1:-1]}{',' if len(value) == 1 else ''})"
    text = repr(value[: 2 * _LONGEST_VALUE] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
