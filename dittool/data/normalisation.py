"""Latents between what the codec stores and what the model sees: model input = (z − shift)·scale, channel by
channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dittool.encoders.cards import VaeCard
from dittool.errors import BadDataError


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

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Shift and scale (C, 1, 1) float32, of which `apply` makes (z − shift)·scale."""
        like = torch.empty(0)
        return self._vector(self.shift, like), self._vector(self.scale, like)

    def to_json(self) -> dict[str, list[float]]:
        return {"shift": list(self.shift), "scale": list(self.scale)}

    @staticmethod
    def from_json(value: Mapping[str, object], source: str) -> LatentNorm:
        """Raises `BadDataError` naming `source`."""
        shift, scale = value.get("shift"), value.get("scale")
        if not isinstance(shift, (list, tuple)) or not isinstance(scale, (list, tuple)) or len(shift) != len(scale):
            raise BadDataError(f"{source}: its normalisation has no shift and scale", "take another checkpoint")
        return LatentNorm(tuple(shift), tuple(scale))

    @staticmethod
    def _vector(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def latent_norm(scaling: str, codec: VaeCard, mean: Sequence[float], std: Sequence[float]) -> LatentNorm:
    """The normalisation for a data set.

    Args:
        scaling: "card", the codec's published scale and shift; or "measured", from the set's own statistics: each
            channel is centred and divided by the mean of its own and the global standard deviation. Dividing by the
            channel's own alone would blow up channels that carry almost nothing.
        codec: the autoencoder's card.
        mean, std: of the set's latents as stored, one number a channel.
    """
    if scaling == "card":
        return LatentNorm((float(codec.shift),) * codec.channels, (float(codec.scale),) * codec.channels)
    deviation = torch.tensor(std, dtype=torch.float64)  # (C,)
    divisor = (deviation + deviation.square().mean().sqrt()) / 2
    return LatentNorm(tuple(mean), tuple((1 / divisor).tolist()))
