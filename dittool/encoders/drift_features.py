"""Frozen features of latents for the drifting objective: what "near" means for two samples.

B batch · C latent channels · h w cells · L feature vectors of a sample
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dittool.encoders.latent_encoder import LatentEncoder, SeededEncoder

_TINY = 1e-6  # under the root of a variance, whose gradient is unbounded at 0


class DriftFeatures(nn.Module):
    """Latents (B, C, h, w) → by kind of feature (B, L, channels). Gradient flows through; nothing is trained."""

    def __init__(self, kinds: Sequence[str], encoder: SeededEncoder | LatentEncoder) -> None:
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
