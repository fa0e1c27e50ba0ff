"""The feature encoder of the drifting objective: a masked autoencoder on latents (arXiv 2111.06377), convolutional, so
that each depth has a map of its own.

B batch · C latent channels · H W cells · D width · L levels, each of half the resolution of the one before
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 8  # of a norm, at most


@dataclass(frozen=True)
class LatentMAEConfig:
    """The architecture; the keys are explained in config/drift_schema.py."""

    width: int
    levels: int
    blocks: int
    channels: int
    classes: int


class ResidualBlock(nn.Module):
    """Two normed convolutions beside the identity; the second begins at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = next(count for count in range(_GROUPS, 0, -1) if width % count == 0)
        self.norm, self.norm_out = nn.GroupNorm(groups, width), nn.GroupNorm(groups, width)
        self.convolution = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:  # (B, D, H, W) → (B, D, H, W)
        return x + self.out(F.silu(self.norm_out(self.convolution(F.silu(self.norm(x))))))


class Level(nn.Module):
    """Residual blocks at one resolution, behind the convolution that leads to it."""

    def __init__(self, channels: int, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, stride, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:  # (B, ·, H, W) → (B, D, H/stride, W/stride)
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return x


class LatentMAE(nn.Module):
    """Fills in patches of a latent that it does not see, and names its class."""

    def __init__(self, config: LatentMAEConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.hidden = nn.Parameter(torch.zeros(config.channels, 1, 1))  # stands where a patch is hidden
        self.levels = nn.ModuleList(
            Level(width if depth else config.channels, width, config.blocks, 2 if depth else 1)
            for depth in range(config.levels)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(config.levels))
        self.fill = nn.Conv2d(width, config.channels, 3, padding=1)
        self.classify = nn.Linear(width, config.classes)

    def maps(self, latents: Tensor) -> list[Tensor]:
        """Of each depth, (B, D, H/2^l, W/2^l)."""
        found: list[Tensor] = []
        for level in self.levels:
            found.append(level(found[-1] if found else latents))
        return found

    def forward(self, latents: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """latents: (B, C, H, W); hidden: (B, 1, H, W) bool, the cells that it does not see. Returns the whole latent
        as it takes it to be, (B, C, H, W), and logits of the class, (B, classes), from the mean of the deepest map.
        """
        maps = self.maps(torch.where(hidden, self.hidden, latents))
        laterals = cast("list[nn.Conv2d]", list(self.lateral))
        x = laterals[-1](maps[-1])
        for lateral, shallower in zip(reversed(laterals[:-1]), reversed(maps[:-1]), strict=True):
            x = F.silu(F.interpolate(x, size=shallower.shape[2:]) + lateral(shallower))
        return self.fill(x), self.classify(maps[-1].mean(dim=(2, 3)))
