"""Encoders that need no files: their weights are made by this code."""

from __future__ import annotations

from dittool.encoders.builtin import BlockDCT, WordVectors, builtin_image_model
from dittool.encoders.cards import ImageCard, TextCard, VaeCard
from dittool.encoders.image import DinoEncoder
from dittool.encoders.interfaces import ImageEncoder, LatentCodec, TextEncoder


def built_in_image_encoder(card: ImageCard) -> ImageEncoder:
    return DinoEncoder(builtin_image_model(card.id), card.id, card.revision, card.dtype)


def built_in_text_encoder(card: TextCard) -> TextEncoder:
    return WordVectors(card.id, card.max_tokens)


def built_in_codec(card: VaeCard) -> LatentCodec:
    return BlockDCT(card.id)
