"""From a configuration to a model, and what it will weigh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dittool.models.dit import DiT, DiTConfig
from dittool.models.drift_dit import DriftDiT, DriftDiTConfig
from dittool.models.toy_generator import ToyGenerator

if TYPE_CHECKING:
    from dittool.config.drift_schema import AnyConfig, DriftConfig, ToyConfig
    from dittool.config.schema import Config


def build_model(config: Config, text_dim: int, image_dim: int, latent_channels: int) -> DiT:
    """The model of a configuration. The three feature widths come from the data's identity card."""
    m = config.model
    return DiT(
        DiTConfig(
            depth=m.depth,
            width=m.width,
            heads=m.heads,
            mlp_ratio=m.mlp_ratio,
            patch_size=m.patch_size,
            qk_norm=m.qk_norm,
            patches=m.patches,
            patch_positions=m.patch_positions,
            gradient_checkpointing=m.gradient_checkpointing,
            latent_channels=latent_channels,
            text_width=text_dim,
            image_width=image_dim,
        )
    )


def build_generator(config: DriftConfig | ToyConfig) -> DriftDiT | ToyGenerator:
    """The one-step generator of a configuration, which says all of it."""
    m = config.model
    if m.arch == "drift-toy":
        return ToyGenerator(m.depth, m.width, m.noise, config.toy.start)
    same = {name: getattr(m, name) for name in DriftDiTConfig.__dataclass_fields__}
    return DriftDiT(DriftDiTConfig(**same))


def build_any(config: AnyConfig, dims: dict[str, int]) -> nn.Module:
    """The network of a configuration of any family. `dims`: `text`, `image` and `latent_channels`, read by the
    first model alone.
    """
    if config.model.arch == "dit":
        return build_model(config, dims["text"], dims["image"], dims["latent_channels"])
    return build_generator(config)


def parameter_count(config: AnyConfig, text_dim: int, image_dim: int, latent_channels: int) -> int:
    """Parameters of the model as built, without allocating them."""
    with torch.device("meta"):
        model = build_any(config, {"text": text_dim, "image": image_dim, "latent_channels": latent_channels})
        return sum(parameter.numel() for parameter in model.parameters())
