"""Latents between what the codec stores and what the model sees: model input = (z − shift)·scale, channel by
channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentNorm:
    """One shift and one scale a channel. Kept in the checkpoint: the model means nothing without it."""

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def apply(self, latents: Tensor) -> Tensor:
        """(…, C, h, w) as stored → as the model sees it."""
        return (latents - self._vector(self.shift, latents)) * self._vector(self.scale, latents)

    def invert(self, latents: Tensor) -> Tensor:
        """(…, C, h, w) as the model makes it → as the codec decodes it."""
        return latents / self._vector(self.scale, latents) + self._vector(self.shift, latents)

    def to_dict(self) -> dict[str, list[float]]:
        return {"shift": list(self.shift), "scale": list(self.scale)}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> LatentNorm:
        return LatentNorm(tuple(value["shift"]), tuple(value["scale"]))

    @staticmethod
    def _vector(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def latent_norm(scaling: str, codec_card: dict[str, Any], statistics: dict[str, Any]) -> LatentNorm:
    """The normalisation for a data set.

    Args:
        scaling: "card", the codec's published scale and shift; or "measured", from the set's own statistics: each
            channel is centred and divided by the mean of its own and the global standard deviation. Dividing by the
            channel's own alone would blow up channels that carry almost nothing.
        codec_card: the codec's part of the identity card.
        statistics: `latent_mean` and `latent_std`, one number a channel.
    """
    channels = int(codec_card["channels"])
    if scaling == "card":
        return LatentNorm((float(codec_card["shift"]),) * channels, (float(codec_card["scale"]),) * channels)
    std = torch.tensor(statistics["latent_std"], dtype=torch.float64)
    divisor = (std + std.square().mean().sqrt()) / 2
    return LatentNorm(tuple(statistics["latent_mean"]), tuple((1 / divisor).tolist()))
