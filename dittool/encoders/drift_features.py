"""Frozen features of latents for the drifting objective: what "near" means for two samples.

They come from the maps of an encoder. `SeededEncoder` is fixed and untrained; `LatentEncoder` is trained before the
generator, on the same latents: it fills in patches that were hidden from it and, where labels are wanted, names the
class; `models/latent_mae.py` comes from a run of its own.

B batch · C latent channels · h w cells · D channels of the first map · L feature vectors of a sample
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dittool.seeding import derive_seed

_SEEDED_WIDTH = 32
_TINY = 1e-6  # under the root of a variance, whose gradient is unbounded at 0


class Encoder(Protocol):
    """What features are made of: one map a depth."""

    def maps(self, latents: Tensor) -> list[Tensor]: ...


class SeededEncoder(nn.Module):
    """Seeded convolutions without biases: it tells textures and places apart better than raw values do, and knows
    nothing of what is drawn.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = (channels, _SEEDED_WIDTH, 2 * _SEEDED_WIDTH)
        convolutions: list[nn.Conv2d] = [  # without first weights, which would be drawn from the global generator
            nn.utils.skip_init(nn.Conv2d, sizes[i], sizes[i + 1], 3, stride=1 + (i > 0), padding=1, bias=False)
            for i in range(len(sizes) - 1)
        ]
        self.convolutions = nn.ModuleList(convolutions)
        for index, convolution in enumerate(convolutions):
            generator = torch.Generator().manual_seed(derive_seed("drift features", index, channels))
            fan_in = convolution.weight[0].numel()
            convolution.weight.data.normal_(std=math.sqrt(2 / fan_in), generator=generator)

    def maps(self, latents: Tensor) -> list[Tensor]:  # (B, C, h, w) → (B, D, h, w), (B, 2D, h/2, w/2)
        first = F.silu(self.convolutions[0](latents))
        return [first, F.silu(self.convolutions[1](first))]


class LatentEncoder(nn.Module):
    """Two levels of convolutions with a residual one each, and the heads that training needs."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.refine = nn.Conv2d(width, width, 3, padding=1)
        self.halve = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.refine_half = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.hidden = nn.Parameter(torch.zeros(channels, 1, 1))  # stands where a patch is hidden
        self.fill = nn.Conv2d(2 * width, 4 * channels, 1)
        self.classify = nn.Linear(2 * width, classes)

    def maps(self, latents: Tensor) -> list[Tensor]:  # (B, C, h, w) → (B, D, h, w), (B, 2D, h/2, w/2)
        x = F.silu(self.stem(latents))
        first = x + F.silu(self.refine(x))
        x = F.silu(self.halve(first))
        return [first, x + F.silu(self.refine_half(x))]

    def filled_in(self, latents: Tensor, hidden: Tensor) -> Tensor:
        """What it takes for the whole latent, (B, C, h, w), when it does not see the cells where `hidden` (B, 1, h,
        w) is true.
        """
        rows, columns = latents.shape[2:]
        seen = torch.where(hidden, self.hidden, latents)
        return F.pixel_shuffle(self.fill(self.maps(seen)[-1]), 2)[:, :, :rows, :columns]

    def class_logits(self, latents: Tensor) -> Tensor:
        """(B, classes), from the mean of the last map."""
        return self.classify(self.maps(latents)[-1].mean(dim=(2, 3)))


class DriftFeatures(nn.Module):
    """Latents (B, C, h, w) → by kind of feature (B, L, channels). Gradient flows through; nothing is trained."""

    def __init__(self, kinds: Sequence[str], encoder: Encoder) -> None:
        super().__init__()
        self.kinds, self.encoder = tuple(kinds), encoder
        self.eval().requires_grad_(False)

    def forward(self, latents: Tensor) -> dict[str, Tensor]:
        features = {"raw": latents.flatten(1)[:, None]} if "raw" in self.kinds else {}
        if self.kinds == ("raw",):
            return features
        for level, feature_map in enumerate(self.encoder.maps(latents.float())):
            for kind, vectors in self._vectors(feature_map).items():
                if kind in self.kinds:
                    features[f"{kind}{level + 1}"] = vectors
        return features

    @staticmethod
    def _vectors(x: Tensor) -> dict[str, Tensor]:
        """Of one map (B, c, h, w): each location; mean and deviation over all of it, over patches of 2×2 and of 4×4
        locations.
        """
        vectors = {"locations": x.flatten(2).transpose(1, 2), "moments": _moments(x, x.shape[2], x.shape[3])}
        for size in (2, 4):
            # one patch over all is `moments`
            if x.shape[2] % size == 0 and x.shape[3] % size == 0 and max(x.shape[2:]) > size:
                vectors[f"patches{size}"] = _moments(x, size, size)
        return vectors


def _moments(x: Tensor, rows: int, columns: int) -> Tensor:
    """Mean and standard deviation of each patch of rows × columns locations: (B, 2·patches, c)."""
    patches = x.unflatten(2, (-1, rows)).unflatten(4, (-1, columns))  # (B, c, h/r, r, w/s, s)
    mean = patches.mean(dim=(3, 5))
    deviation = (patches.var(dim=(3, 5), correction=0) + _TINY).sqrt()
    return torch.cat([mean.flatten(2), deviation.flatten(2)], dim=2).transpose(1, 2)
