"""The encoders that a model's data were made with, loaded by their cards when they are first needed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeVar

import torch

from dittool.encoders.cards import ImageCard, TextCard, VaeCard
from dittool.encoders.interfaces import ImageEncoder, LatentCodec, TextEncoder, same_weights
from dittool.export.loaded.published import published_codec, published_image_encoder, published_text_encoder

Moved = TypeVar("Moved", ImageEncoder, TextEncoder, LatentCodec)


class Encoders:
    """Each raises what loading raises, and `BadDataError` for other weights than in training.

    Args:
        cards: by kind, as JSON.
    """

    def __init__(self, cards: Mapping[str, Mapping[str, Any]]) -> None:
        self._cards = cards

    @cached_property
    def image(self) -> ImageEncoder:
        card = ImageCard(**self._cards["image"])
        return same_weights(card, published_image_encoder(card))

    @cached_property
    def text(self) -> TextEncoder:
        card = TextCard(**self._cards["text"])
        return same_weights(card, published_text_encoder(card))

    @cached_property
    def vae(self) -> LatentCodec:
        return loaded_codec(self._cards)


def loaded_codec(cards: Mapping[str, Mapping[str, Any]]) -> LatentCodec:
    """That of the data alone. Raises as `Encoders` does."""
    card = VaeCard(**cards["vae"])
    return same_weights(card, published_codec(card))


def moved(encoder: Moved, device: torch.device) -> Moved:
    """An encoder on a device; built-in ones of words and latents compute where they are."""
    model = getattr(encoder, "_model", None)
    if model is not None and getattr(encoder, "_device", device) != device:
        vars(encoder).update(_model=model.to(device), _device=device)
    return encoder
