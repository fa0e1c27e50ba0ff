"""A model's tensors one by one, as built, without allocating them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class ParameterTensor:
    """One learned tensor."""

    name: str
    shape: tuple[int, ...]
    parameters: int


def parameter_table(build: Callable[[], nn.Module]) -> list[ParameterTensor]:
    """Every learned tensor of the model that `build` makes, in the model's order."""
    with torch.device("meta"):
        model = build()
    return [ParameterTensor(name, tuple(tensor.shape), tensor.numel()) for name, tensor in model.named_parameters()]


def parameter_count(build: Callable[[], nn.Module]) -> int:
    """Learned parameters of the model that `build` makes."""
    return sum(tensor.parameters for tensor in parameter_table(build))


def totals_by_part(tensors: Iterable[ParameterTensor]) -> dict[str, tuple[int, int]]:
    """Number of tensors and of parameters by part of the model; the same part of all blocks counts together, as
    `blocks.*.mlp`.
    """
    totals: dict[str, tuple[int, int]] = {}
    for tensor in tensors:
        names = tensor.name.split(".")
        part = f"blocks.*.{names[2]}" if names[0] == "blocks" else names[0]
        count, parameters = totals.get(part, (0, 0))
        totals[part] = (count + 1, parameters + tensor.parameters)
    return totals
