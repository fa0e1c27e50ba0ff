"""Encoders from the hub or a folder, by the ids and revisions in their cards."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers
from transformers import AutoConfig, AutoTokenizer

from dittool.encoders.cards import EncoderCard, ImageCard, TextCard, VaeCard
from dittool.encoders.codec import PretrainedCodec
from dittool.encoders.image import DinoEncoder
from dittool.encoders.image_kinds import IMAGE_KINDS
from dittool.encoders.interfaces import ImageEncoder, LatentCodec, TextEncoder
from dittool.encoders.pretrained import DTYPES
from dittool.encoders.text import T5Encoder
from dittool.encoders.text_kinds import TEXT_KINDS


def published_image_encoder(card: ImageCard) -> ImageEncoder:
    kind = IMAGE_KINDS[AutoConfig.from_pretrained(card.id, **_pinned(card)).model_type]
    model = _class(kind.model_class).from_pretrained(card.id, dtype=DTYPES[card.dtype], **_pinned(card))
    return DinoEncoder(model, card.id, card.revision, card.dtype)


def published_text_encoder(card: TextCard) -> TextEncoder:
    kind = TEXT_KINDS[AutoConfig.from_pretrained(card.id, **_pinned(card)).model_type]
    model = _class(kind.model_class).from_pretrained(card.id, dtype=DTYPES[card.dtype], **_pinned(card))
    tokenizer = AutoTokenizer.from_pretrained(card.id, **_pinned(card))
    return T5Encoder(model, tokenizer, card.id, card.revision, card.dtype, card.max_tokens, layer=card.layer)


def published_codec(card: VaeCard) -> LatentCodec:
    """A pipeline's autoencoder in its folder vae/, or one of its own. Raises OSError where there is neither."""
    for place in ({"subfolder": "vae"}, {}):
        try:
            config = diffusers.AutoencoderKL.load_config(card.id, **place, **_pinned(card))
        except OSError:
            continue
        model = getattr(diffusers, config["_class_name"]).from_pretrained(card.id, **place, **_pinned(card))
        return PretrainedCodec(model, card.id, card.revision)
    raise OSError(f"{card.id}: no autoencoder of diffusers, neither in vae/ nor at the top")


def _class(name: str) -> Any:
    return getattr(transformers, name)


def _pinned(card: EncoderCard) -> dict[str, Any]:
    """The hub's commit of the training, where the card knows it."""
    return {"revision": card.revision} if len(card.revision) == 40 else {}
