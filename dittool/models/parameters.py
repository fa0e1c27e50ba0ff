"""A model's tensors one by one, as built, without allocating them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dittool.models.build import build_any

if TYPE_CHECKING:
    from dittool.config.drift_schema import AnyConfig


@dataclass(frozen=True)
class ParameterTensor:
    """One learned tensor."""

    name: str
    shape: tuple[int, ...]
    parameters: int


def parameter_table(config: AnyConfig, text_dim: int, image_dim: int, latent_channels: int) -> list[ParameterTensor]:
    """Every learned tensor of a configuration's model, in the model's order. The widths are read by the first model
    alone.
    """
    with torch.device("meta"):
        model = build_any(config, {"text": text_dim, "image": image_dim, "latent_channels": latent_channels})
    return [ParameterTensor(name, tuple(one.shape), one.numel()) for name, one in model.named_parameters()]


def family_totals(tensors: Iterable[ParameterTensor]) -> dict[str, tuple[int, int]]:
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
