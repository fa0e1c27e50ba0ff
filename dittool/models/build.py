"""From a configuration to a model, and what it will weigh."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dittool.models.dit import DiT, DiTConfig

if TYPE_CHECKING:
    from dittool.config.schema import Config


def build_model(config: Config, text_dim: int, image_dim: int, latent_channels: int) -> DiT:
    """The model of a configuration. The three feature widths come from the data's identity card."""
    m = config.model
    return DiT(DiTConfig(
        depth=m.depth, width=m.width, heads=m.heads, mlp_ratio=m.mlp_ratio, patch_size=m.patch_size, qk_norm=m.qk_norm, patches=m.patches,
        patch_positions=m.patch_positions, gradient_checkpointing=m.gradient_checkpointing,
        latent_channels=latent_channels, text_width=text_dim, image_width=image_dim,
    ))  # fmt: skip


def parameter_count(config: Config, text_dim: int, image_dim: int, latent_channels: int) -> int:
    """Parameters of the model as built, without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config, text_dim, image_dim, latent_channels).parameters())
