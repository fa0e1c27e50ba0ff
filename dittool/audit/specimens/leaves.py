"""A network's inputs as a tree: tensors in dictionaries, lists, tuples, dataclasses and plain objects, each by a name
such as `cond.text` or `states[1]`, and other values for them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dittool.audit.specimens.watching import Inputs

_DEEPEST = 6


def leaves(inputs: Inputs) -> dict[str, Tensor]:
    """Every tensor of the inputs by its name."""
    found: dict[str, Tensor] = {}

    def keep(name: str, tensor: Tensor) -> Tensor:
        found[name] = tensor
        return tensor

    for name, value in inputs.items():
        _mapped(value, name, keep)
    return found


def with_leaves(inputs: Inputs, others: Mapping[str, Tensor]) -> Inputs:
    """The inputs with other tensors under some names."""
    touched = {name.partition(".")[0].partition("[")[0] for name in others}
    return {
        name: _mapped(value, name, lambda leaf, tensor: others.get(leaf, tensor)) if name in touched else value
        for name, value in inputs.items()
    }


class _Elsewhere:
    """In the place of a tensor that was taken out."""


def taken_out(inputs: Inputs, leaf: str, key: str) -> Inputs:
    """The inputs with one of their tensors as an argument of its own, first under this key."""
    holder = re.split(r"[.\[]", leaf)[0]
    found = leaves(inputs)[leaf]
    rest = _mapped(inputs[holder], holder, lambda name, tensor: _Elsewhere() if name == leaf else tensor)
    return {key: found, **inputs, holder: rest}


def put_back(inputs: Inputs, key: str) -> Inputs:
    """The inputs with the tensor that was taken out where it was."""
    tensor = inputs[key]
    return {
        name: _mapped(value, name, lambda _name, _place: tensor, kind=_Elsewhere)
        for name, value in inputs.items()
        if name != key
    }


def _mapped(value: Any, name: str, change: Callable[[str, Any], Any], depth: int = 0, kind: type = Tensor) -> Any:
    """The value with each tensor in it, or whatever else is of a kind, changed; what holds none is the same object."""
    if isinstance(value, kind):
        return change(name, value)
    if isinstance(value, Tensor):
        return value
    if depth > _DEEPEST:
        return value

    def part(inner: Any, place: str) -> Any:
        return _mapped(inner, f"{name}{place}", change, depth + 1, kind)

    if isinstance(value, Mapping):
        changed = {key: part(inner, f".{key}") for key, inner in value.items()}
        return changed if type(value) is dict else _copied(value, changed)
    if isinstance(value, (list, tuple)):
        parts = [part(inner, f"[{i}]") for i, inner in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.init]
        return replace(value, **{field: part(getattr(value, field), f".{field}") for field in names})
    if type(value).__module__ != "builtins" and not callable(value) and hasattr(value, "__dict__"):
        other = copy.copy(value)
        vars(other).update({field: part(inner, f".{field}") for field, inner in vars(value).items()})
        return other
    return value


def _copied(mapping: Mapping[Any, Any], changed: dict[Any, Any]) -> Mapping[Any, Any]:
    """A mapping of the same kind, where it can be set."""
    other = copy.copy(mapping)
    if not isinstance(other, MutableMapping):
        return changed
    for key, value in changed.items():  # outputs of diffusers and transformers have no update()
        other[key] = value
    return other


def other_value(tensor: Tensor, seed: int = 99) -> Tensor:
    """Another tensor of the same kind and size of numbers."""
    if tensor.dtype == torch.bool:
        return ~tensor
    if not tensor.is_floating_point():
        return tensor if tensor.is_complex() else torch.where(tensor > 0, tensor - 1, tensor + 1).to(tensor.dtype)
    spread = tensor.float().std(correction=0).clamp_min(0.1) if tensor.numel() > 1 else tensor.float().abs() + 0.1
    drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    return (drawn * spread.cpu() + tensor.float().mean().cpu()).to(tensor)
