"""What is in a checkpoint, how two differ, and its weights as `.safetensors`; nothing in the file is ever run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dittool.ckpt.files import list_checkpoints, sidecar_path, write_safetensors
from dittool.ckpt.load import (
    check_pt,
    check_safetensors,
    load_checkpoint,
    named_tensors,
    non_finite_tensors,
)
from dittool.ckpt.parts import at, entries_of, is_state_dict, state_dicts
from dittool.ckpt.tensors import load_mapped
from dittool.ckpt.weights import choose_part, load_weights
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError, DitError, listed
from dittool.untrusted.tensor_spec import TensorSpec

OURS, FOREIGN, WEIGHTS, SAFETENSORS = "dit checkpoint", "foreign checkpoint", "state dict", "safetensors weights"
_LONGEST_VALUE = 60  # characters of a plain value in the tree

Plain = TypeVar("Plain", int, str, dict[str, Any])


@dataclass(frozen=True)
class Inspection:
    """What one file holds. Keys that the file does not have are None or empty."""

    path: Path
    kind: str  # one of the four above
    bytes: int
    content: Any  # the file's value with a TensorSpec for each tensor
    weights: tuple[str, ...]  # keys that hold a model's tensors
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


@dataclass(frozen=True)
class TensorDifference:
    """How far a tensor moved: the largest |a − b|, and ‖a − b‖ over the larger of ‖a‖ and ‖b‖."""

    name: str
    largest: float
    relative: float


@dataclass(frozen=True)
class CheckpointDiff:
    """What distinguishes the weights and the configuration of b from those of a."""

    missing: tuple[str, ...]  # in a, not in b
    unexpected: tuple[str, ...]  # in b, not in a
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    changed: tuple[TensorDifference, ...]  # same shape, other values; largest relative change first
    equal: int  # tensors with the same values
    config: dict[str, tuple[object, object]]  # dotted key → both values, None where a side has none


def inspect(path: Path) -> Inspection:
    """Reads the file's structure, then its values for NaN. Raises `BadDataError` and `UnsafeFileError`."""
    if path.suffix.lower() == ".safetensors":
        return _inspect_safetensors(path)
    report = check_pt(path)
    content = report.content
    ours = isinstance(content, dict) and "format_version" in content and is_state_dict(content.get("model"))
    kind = OURS if ours else WEIGHTS if is_state_dict(content) else FOREIGN
    model = _main_weights(content, path)
    named = content if isinstance(content, dict) else {}
    data = named.get("data")
    identity = data.get("identity_hash") if isinstance(data, dict) else None
    return Inspection(
        path=path,
        kind=kind,
        bytes=report.bytes,
        content=content,
        weights=tuple(".".join(keys) for keys in state_dicts(content) if keys),
        parameters=sum(spec.elements for spec in model.values()),
        dtypes=_elements_by_dtype(model),
        format_version=_plain(named.get("format_version"), int),
        step=_plain(named.get("step"), int),
        samples_seen=_plain(named.get("samples_seen"), int),
        config=_plain(named.get("config"), dict),
        data_identity=_plain(identity, str),
        sidecar=_sidecar_state(path),
        non_finite=tuple(_non_finite_in(path)),
    )


def tree(content: object) -> str:
    """The keys of a file's content as indented text, with shapes and counts; numbered siblings that are alike are
    shown once.
    """
    nested = _nested(content)
    if not isinstance(nested, dict):
        return _leaf_text(nested)
    lines: list[str] = []
    _add_lines(nested, 0, lines)
    return "\n".join(lines)


def diff(a: Path, b: Path, talk: Talk = SILENT) -> CheckpointDiff:
    """Compares the weights that sampling would take, and the configurations. Raises `BadDataError` and
    `UnsafeFileError`.
    """
    old, new = load_weights(a, talk=talk), load_weights(b, talk=talk)
    common = [name for name in old if name in new]
    reshaped = {
        name: (tuple(old[name].shape), tuple(new[name].shape)) for name in common if old[name].shape != new[name].shape
    }
    compared = [_difference(name, old[name], new[name]) for name in common if name not in reshaped]
    changed = [difference for difference in compared if difference.largest != 0]  # NaN is a difference
    flat_a, flat_b = _flat(config_in(a)), _flat(config_in(b))
    return CheckpointDiff(
        missing=tuple(name for name in old if name not in new),
        unexpected=tuple(name for name in new if name not in old),
        reshaped=reshaped,
        changed=tuple(sorted(changed, key=lambda change: -change.relative)),
        equal=len(compared) - len(changed),
        config={
            key: (flat_a.get(key), flat_b.get(key))
            for key in sorted({*flat_a, *flat_b})
            if flat_a.get(key) != flat_b.get(key)
        },
    )


def export_safetensors(path: Path, out: Path, weights: str = "ema", talk: Talk = SILENT) -> None:
    """Writes the weights under `weights` of one of our checkpoints to `out`, with step and configuration in its
    metadata.

    Raises `BadDataError` when the file is no checkpoint of ours, or has no such weights.
    """
    state = load_checkpoint(path, require=("format_version", "config", "step"))
    tensors = at(state, choose_part(state, path, weights).keys)
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


def _inspect_safetensors(path: Path) -> Inspection:
    header = check_safetensors(path)
    step = header.metadata.get("step", "")
    version = header.metadata.get("format_version", "")
    return Inspection(
        path=path,
        kind=SAFETENSORS,
        bytes=path.stat().st_size,
        content=header.tensors,
        weights=(),
        parameters=sum(spec.elements for spec in header.tensors.values()),
        dtypes=_elements_by_dtype(header.tensors),
        format_version=int(version) if version.isdecimal() else None,
        step=int(step) if step.isdecimal() else None,
        samples_seen=None,
        config=config_in(path),
        data_identity=None,
        sidecar="none",
        non_finite=tuple(_non_finite_in(path)),
    )


def _main_weights(content: Any, path: Path) -> Mapping[str, TensorSpec]:
    """The tensors that sampling would take; of a file without a state dict, all."""
    try:
        part = choose_part(content, path)
    except BadDataError:
        return dict(named_tensors(content))
    state = entries_of(at(content, part.keys))
    return {short: state[name] for name, short in part.bare.items()}


def config_in(path: Path) -> dict[str, Any] | None:
    """The configuration that a checkpoint of ours or an exported file holds, unchecked; None where there is none."""
    if path.suffix.lower() == ".safetensors":
        try:
            config = json.loads(check_safetensors(path).metadata.get("config", "null"))
        except (ValueError, RecursionError):
            return None  # somebody else's key of that name
        return _plain(config, dict)
    content = check_pt(path).content
    return _plain(content.get("config"), dict) if isinstance(content, dict) else None


def _non_finite_in(path: Path) -> list[str]:
    if path.suffix.lower() == ".safetensors":
        return non_finite_tensors(load_weights(path))
    return non_finite_tensors(load_mapped(check_pt(path)))


def _sidecar_state(path: Path) -> str:
    if not sidecar_path(path).exists():
        return "none"
    found = [file for file in list_checkpoints(path.parent) if file.path.name == path.name]
    return (found[0].verify() or "verified") if found else "none"


def _difference(name: str, old: Tensor, new: Tensor) -> TensorDifference:
    wide = torch.complex128 if old.is_complex() or new.is_complex() else torch.float64
    old, new = old.to(wide), new.to(wide)
    if torch.equal(old, new):
        return TensorDifference(name, 0.0, 0.0)
    step = new - old
    return TensorDifference(name, step.abs().max().item(), (step.norm() / torch.maximum(old.norm(), new.norm())).item())


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {prefix: value} if prefix else {}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


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
        *folders, leaf = str(key).split(".")
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
    if isinstance(value, (list, tuple)) and len(repr(value)) > _LONGEST_VALUE:
        return f"{type(value).__name__} of {_counted(len(value), 'value')}"
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
