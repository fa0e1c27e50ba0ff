"""From a configuration to its model. Which of them a configuration needs, its family knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dittool.models.dit import DiT, DiTConfig
from dittool.models.drift_dit import DriftDiT, DriftDiTConfig
from dittool.models.toy_generator import ToyGenerator

if TYPE_CHECKING:
    from dittool.config.drift_schema import DriftConfig, ToyConfig
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


def build_generator(config: DriftConfig) -> DriftDiT:
    """The one-step generator of a configuration, which says all of it."""
    same = {name: getattr(config.model, name) for name in DriftDiTConfig.__dataclass_fields__}
    return DriftDiT(DriftDiTConfig(**same))


def build_toy(config: ToyConfig) -> ToyGenerator:
    """The generator of points in the plane."""
    m = config.model
    return ToyGenerator(m.depth, m.width, m.noise, config.toy.start)
