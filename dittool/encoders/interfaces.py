"""What the rest of the house asks of an encoder: three protocols, the features that they give, and how pixels become
numbers and numbers pixels.

An image is (H, W, 3) uint8 wherever it is not inside a network.

B batch · H W pixels · C channels · N patches · L tokens of a caption · D width of a token · h w = H/stride, W/stride
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from dittool.encoders.cards import EncoderCard, ImageCard, TextCard, VaeCard
from dittool.errors import BadDataError


@dataclass(frozen=True)
class ImageFeatures:
    """Of a batch of reference images."""

    cls: Tensor  # (B, C) float32
    patches: Tensor  # (B, N, C) float32, row-major


@dataclass(frozen=True)
class TextFeatures:
    """Of one caption."""

    hidden: Tensor  # (L, D) float32
    cut: bool  # the caption had more tokens than the encoder's limit
    unknown: int = 0  # runs of its letters that the tokenizer does not know, and that all look alike to the encoder


class ImageEncoder(Protocol):
    """Reference images → one CLS token and a grid of patch tokens."""

    card: ImageCard
    width: int  # C
    patch_size: int  # pixels along one side of a patch
    registers: int  # tokens between CLS and the patches, which are left out of the features

    def encode(self, pixels: np.ndarray) -> ImageFeatures:
        """Features of (B, H, W, 3) uint8, bucketed images of one size."""
        ...


class TextEncoder(Protocol):
    """Captions → one vector a token."""

    card: TextCard
    width: int  # D

    def count_tokens(self, caption: str) -> int:
        """Of the whole caption; `encode` cuts it at `card.max_tokens`."""

    def encode(self, captions: Sequence[str]) -> list[TextFeatures]:
        """Features of each caption, in order."""
        ...


class LatentCodec(Protocol):
    """Images ↔ latents, unscaled: scale and shift travel in the identity card."""

    card: VaeCard
    channels: int  # C
    stride: int  # pixels along one side of a latent cell

    def encode(self, pixels: np.ndarray) -> Tensor:
        """(B, H, W, 3) uint8 → (B, C, h, w) float32."""
        ...

    def decode(self, latents: Tensor) -> np.ndarray:
        """(B, C, h, w) → (B, H, W, 3) uint8."""
        ...


Encoder = TypeVar("Encoder", ImageEncoder, TextEncoder, LatentCodec)


def same_weights(trained: EncoderCard, encoder: Encoder) -> Encoder:
    """Refuses an encoder whose weights are not those that made the training features."""
    found = encoder.card
    if trained.weights != found.weights:
        raise BadDataError(
            f"encoder '{found.id}' has weights {found.weights[:12]}…, this checkpoint was trained with"
            f" {trained.weights[:12]}…",
            "restore the encoder's weights of that time, or embed and train again with these",
        )
    return encoder


def to_signed(pixels: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 → (B, 3, H, W) float32 in [−1, 1]."""
    return signed(torch.from_numpy(np.ascontiguousarray(pixels)))


def signed(pixels: Tensor) -> Tensor:
    """`to_signed` of a tensor, where it lies."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [−1, 1] → (B, H, W, 3) uint8, rounded and clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
