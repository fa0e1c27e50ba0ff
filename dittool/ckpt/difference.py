"""How the weights and the configurations of two checkpoints differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dittool.ckpt.inspect import configuration
from dittool.ckpt.opened import open_checkpoint
from dittool.ckpt.pairing import Pair, pair_by_content
from dittool.ckpt.weights import weights_of
from dittool.console import SILENT, Talk


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
    paired: tuple[Pair, ...]  # the same values under other names
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    changed: tuple[TensorDifference, ...]  # same shape, other values; largest relative change first
    equal: int  # tensors with the same values
    rounded: int  # of these, in the coarser of the two sides' precisions
    config: dict[str, tuple[object, object]]  # dotted key → both values, None where a side has none


def diff(a: Path, b: Path, talk: Talk = SILENT) -> CheckpointDiff:
    """Compares the weights that sampling would take, and the configurations. Raises `BadDataError` and
    `UnsafeFileError`.
    """
    first, second = open_checkpoint(a), open_checkpoint(b)
    old, new = weights_of(first, talk=talk), weights_of(second, talk=talk)
    common = [name for name in old if name in new]
    reshaped = {
        name: (tuple(old[name].shape), tuple(new[name].shape)) for name in common if old[name].shape != new[name].shape
    }
    compared = [_difference(name, old[name], new[name]) for name in common if name not in reshaped]
    changed = [difference for difference in compared if difference.largest != 0]  # NaN is a difference
    equal = [difference.name for difference in compared if difference.largest == 0]
    flat_a, flat_b = _flat(configuration(first)), _flat(configuration(second))
    missing = {name: tensor for name, tensor in old.items() if name not in new}
    unexpected = {name: tensor for name, tensor in new.items() if name not in old}
    paired = pair_by_content(missing, unexpected)
    known = {name for pair in paired for name in (*pair.old, *pair.new)}
    return CheckpointDiff(
        missing=tuple(name for name in missing if name not in known),
        unexpected=tuple(name for name in unexpected if name not in known),
        paired=tuple(paired),
        reshaped=reshaped,
        changed=tuple(sorted(changed, key=lambda change: -change.relative)),
        equal=len(equal),
        rounded=sum(old[name].dtype != new[name].dtype for name in equal),
        config={
            key: (flat_a.get(key), flat_b.get(key))
            for key in sorted({*flat_a, *flat_b})
            if flat_a.get(key) != flat_b.get(key)
        },
    )


def _difference(name: str, old: Tensor, new: Tensor) -> TensorDifference:
    """In the coarser of two precisions, as one file is often the other one rounded."""
    if old.dtype != new.dtype and old.is_floating_point() and new.is_floating_point():
        coarser = min(old.dtype, new.dtype, key=lambda kind: torch.finfo(kind).bits)
        old, new = old.to(coarser), new.to(coarser)
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
