"""Averages whose tensors have lost their names, or the dots in them.

- A list in the order of `model.parameters()`: `shadow_params` of diffusers' EMAModel and of torch_ema. Its names are
  those of the model beside it in the file, in the order of its state dict, where count and shapes agree.
- Names without dots: LitEma of latent diffusion keeps `diffusion_model.blocks.0.weight` as a buffer of its own,
  `model_ema.diffusion_modelblocks0weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dittool.untrusted.tensor_spec import TensorSpec

_BUFFER = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")  # of torch's own layers
_MOST_OUTER = 4  # modules above the one that LitEma wraps
_SHOWN = 60  # characters of a name in a sentence


def is_tensor_list(value: object) -> bool:
    """Whether a value is a list of tensors (or their specs) alone, at least one."""
    return (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(one, (Tensor, TensorSpec)) for one in value)
    )


def pair_by_order(tensors: Sequence[Any], model: Mapping[str, Any]) -> tuple[list[str], str]:
    """A name of the model for each tensor of a list in the order of its parameters, or why there is none.

    `model` holds parameters and buffers by name, in the order of its state dict. Buffers, frozen parameters and weights
    that are tied to earlier ones are in no such list. Without these the counts agree in most files; where they do not,
    the shapes must fit the names in one way alone.
    """
    names = _untied(model)
    shapes = [tuple(one.shape) for one in tensors]
    if len(shapes) == len(names) and all(
        tuple(model[name].shape) == shape for name, shape in zip(names, shapes, strict=True)
    ):
        return names, ""
    first = _leftmost(shapes, [tuple(model[name].shape) for name in names])
    last = _leftmost(shapes[::-1], [tuple(model[name].shape) for name in names[::-1]])
    counts = f"{len(shapes)} tensors in order, the model beside them has {len(names)}"
    if len(first) < len(shapes):
        where = len(first)
        return [], f"{counts}, and none of them is where tensor {where} of shape {shapes[where]} should be"
    if first != [len(names) - 1 - place for place in reversed(last)]:
        place = next(i for i, (a, b) in enumerate(zip(first, reversed(last), strict=True)) if a != len(names) - 1 - b)
        return [], f"{counts}, and shapes alone do not tell which tensor is {names[first[place]]:.{_SHOWN}}"
    return [names[place] for place in first], ""


def _untied(model: Mapping[str, Any]) -> list[str]:
    """Names of numbers that an optimizer can move, of tied weights the first."""
    names, seen = [], set()
    for name, value in model.items():
        place = value.place if isinstance(value, TensorSpec) else value.data_ptr() or id(value)
        floating = "float" in str(value.dtype)
        if floating and not _BUFFER.search(name) and (place is None or place not in seen):
            names.append(name)
            seen.add(place)
    return names


def _leftmost(shapes: Sequence[tuple[int, ...]], places: Sequence[tuple[int, ...]]) -> list[int]:
    """For each shape in order the first place behind the one before that has it; ends where there is none."""
    found: list[int] = []
    for place, shape in enumerate(places):
        if len(found) < len(shapes) and shapes[len(found)] == shape:
            found.append(place)
    return found


def with_dots(names: Sequence[str], averages: Sequence[str]) -> dict[str, str]:
    """Names below these groups (`model_ema.`) that have lost their dots → with the dots of the raw name beside them.

    What fits two raw names stays as it is.
    """
    dotted: dict[str, str | None] = {}
    for name in names:
        if not name.startswith(tuple(averages)):
            parts = name.split(".")
            for outer in range(min(len(parts), _MOST_OUTER)):
                inner = ".".join(parts[outer:])
                plain = inner.replace(".", "")
                dotted[plain] = inner if dotted.get(plain, inner) == inner else None
    renamed: dict[str, str] = {}
    for group in averages:
        below = [name for name in names if name.startswith(group)]
        if below and not any("." in name.removeprefix(group) for name in below):
            found = {name: dotted.get(name.removeprefix(group)) for name in below}
            renamed |= {name: f"{group}{inner}" for name, inner in found.items() if inner is not None}
    return renamed
