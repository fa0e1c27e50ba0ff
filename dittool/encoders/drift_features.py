"""Frozen features of latents for the drifting objective: what "near" means for two samples.

The encoder is small, fixed and untrained: seeded convolutions. It tells textures and places apart better than raw values do, and it is no
stand-in for a trained one; the paper's authors report that ImageNet did not work without one.

B batch · C latent channels · h w cells · L feature vectors of a sample
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dittool.seeding import derive_seed

_WIDTHS = (32, 64)  # of the two maps, at full and at half resolution
_TINY = 1e-6  # under the root of a variance, whose gradient is unbounded at 0


class DriftFeatures(nn.Module):
    """Latents (B, C, h, w) → by kind of feature (B, L, channels). Gradient flows through; nothing is trained."""

    def __init__(self, kinds: Sequence[str], channels: int) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        sizes = (channels, *_WIDTHS)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(sizes[i], sizes[i + 1], 3, stride=1 + (i > 0), padding=1, bias=False) for i in range(len(_WIDTHS))
        )
        for index, convolution in enumerate(self.convolutions):
            generator = torch.Generator().manual_seed(derive_seed("drift features", index, channels))
            fan_in = convolution.weight[0].numel()
            convolution.weight.data.normal_(std=math.sqrt(2 / fan_in), generator=generator)
        self.requires_grad_(False)

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        features = {"raw": latents.flatten(1)[:, None]} if "raw" in self.kinds else {}
        if self.kinds == ("raw",):
            return features
        for level, feature_map in enumerate(self._maps(latents.float())):
            for kind, vectors in self._vectors(feature_map).items():
                if kind in self.kinds:
                    features[f"{kind}{level + 1}"] = vectors
        return features

    def _maps(self, x: Tensor) -> list[Tensor]:
        maps = []
        for convolution in self.convolutions:
            x = F.silu(convolution(x))
            maps.append(x)
        return maps

    @staticmethod
    def _vectors(x: Tensor) -> dict[str, Tensor]:
        """Of one map (B, c, h, w): each location; mean and deviation over all of it, over patches of 2×2 and of 4×4 locations."""
        vectors = {"locations": x.flatten(2).transpose(1, 2), "moments": _moments(x, x.shape[2], x.shape[3])}
        for size in (2, 4):
            if x.shape[2] % size == 0 and x.shape[3] % size == 0 and max(x.shape[2:]) > size:  # one patch over all is `moments`
                vectors[f"patches{size}"] = _moments(x, size, size)
        return vectors


def _moments(x: Tensor, rows: int, columns: int) -> Tensor:
    """Mean and standard deviation of each patch of rows × columns locations: (B, 2·patches, c)."""
    patches = x.unflatten(2, (-1, rows)).unflatten(4, (-1, columns))  # (B, c, h/r, r, w/s, s)
    mean = patches.mean(dim=(3, 5))
    deviation = (patches.var(dim=(3, 5), correction=0) + _TINY).sqrt()
    return torch.cat([mean.flatten(2), deviation.flatten(2)], dim=2).transpose(1, 2)
