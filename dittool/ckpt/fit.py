"""What weights must be before a model takes them: exactly its tensors, and finite. Nothing is ever loaded in part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dittool.ckpt.load import non_finite_tensors
from dittool.errors import BadDataError

_SHOWN = 10


def require_fit(weights: Mapping[str, Tensor], model: Mapping[str, Tensor], source: str) -> None:
    """Raises `BadDataError` with counts and the first ten differences unless `weights` are exactly the tensors of
    the state dict `model`.
    """
    missing = [
        f"{name}: missing, the model has {_shape(tensor)}" for name, tensor in model.items() if name not in weights
    ]
    unexpected = [f"{name}: unexpected, {_shape(tensor)}" for name, tensor in weights.items() if name not in model]
    common = [name for name in model if name in weights and weights[name].shape != model[name].shape]
    reshaped = [f"{name}: {_shape(weights[name])}, the model has {_shape(model[name])}" for name in common]
    differences = reshaped + missing + unexpected
    if not differences:
        return
    more = f"\n  and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape"
    raise BadDataError(
        f"{source}: these weights belong to another architecture ({counts}):\n  "
        + "\n  ".join(differences[:_SHOWN])
        + more,
        "use the preset that they were trained with, or carry them over with: dit warmstart OLD --preset P --out"
        " INIT.safetensors",
    )


def require_finite(state: Mapping[str, Any], source: str) -> None:
    """Raises `BadDataError` naming the tensors with a NaN or an infinity."""
    if broken := non_finite_tensors(state):
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        names = ", ".join(broken[:_SHOWN]) + more
        raise BadDataError(
            f"{source}: {len(broken)} tensors hold NaN or infinity: {names}", "go back to an earlier checkpoint"
        )


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
