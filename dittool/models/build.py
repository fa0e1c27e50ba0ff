"""From a configuration to its model, and that model's tensors without allocating them. Which network a configuration
needs, its family knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from dittool.models.dit import DiT, DiTConfig
from dittool.models.drift_dit import DriftDiT, DriftDiTConfig
from dittool.models.latent_mae import LatentMAE, LatentMAEConfig
from dittool.models.toy_generator import ToyGenerator

if TYPE_CHECKING:
    from dittool.config.drift_schema import DriftConfig, MaeConfig, ToyConfig
    from dittool.config.schema import Config


def build_model(config: Config, text_dim: int, image_dim: int, latent_channels: int, to_train: bool = False) -> DiT:
    """The model of a configuration, with what only training needs where it is built `to_train`. The three feature
    widths come from the data's identity card.
    """
    m = config.model
    return DiT(
        DiTConfig(
            depth=m.depth,
            width=m.width,
            heads=m.heads,
            mlp=m.mlp,
            mlp_ratio=m.mlp_ratio,
            patch_size=m.patch_size,
            norm=m.norm,
            qk_norm=m.qk_norm,
            positions=m.positions,
            shared_modulation=m.shared_modulation,
            patches=m.patches,
            patch_fusion=m.patch_fusion,
            patch_positions=m.patch_positions,
            context_norm=m.context_norm,
            context_balance=m.context_balance,
            time_init=m.time_init,
            gradient_checkpointing=m.gradient_checkpointing,
            routed_blocks=config.tread.blocks(m.depth),
            aligned_block=config.aligned_block if to_train else None,
            latent_channels=latent_channels,
            text_width=text_dim,
            image_width=image_dim,
        )
    )


def build_generator(config: DriftConfig) -> DriftDiT:
    """The one-step generator of a configuration, which says all of it."""
    same = {name: getattr(config.model, name) for name in DriftDiTConfig.__dataclass_fields__}
    return DriftDiT(DriftDiTConfig(**same))


def build_mae(config: MaeConfig) -> LatentMAE:
    """The feature encoder of a configuration, which says all of it."""
    m = config.model
    return LatentMAE(LatentMAEConfig(m.width, m.levels, m.depth, m.channels, m.classes))


def build_toy(config: ToyConfig) -> ToyGenerator:
    """The generator of points in the plane."""
    m = config.model
    return ToyGenerator(m.depth, m.width, m.noise, config.toy.start)


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
