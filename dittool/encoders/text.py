"""Captions → text features: one vector a token, as many as the caption has. Padding is never made here, nor stored.

L true number of tokens · D width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dittool.encoders.pretrained import DTYPES, device_of_choice, load_pretrained, weights_hash
from dittool.encoders.torchvision_remedy import ensure_torchvision


@dataclass(frozen=True)
class TextFeatures:
    hidden: Tensor  # (L, D) float32
    cut: bool  # the caption had more tokens than the encoder's limit


class TextEncoder(Protocol):
    """What embed and sample need of a text encoder."""

    card: dict[str, Any]
    width: int

    def encode(self, captions: Sequence[str]) -> list[TextFeatures]:
        """Features of each caption, in order."""
        ...


class T5Encoder:
    """The encoder half of a T5 model. fp16 overflows in it, so it runs in bf16 or fp32."""

    def __init__(self, model: Any, tokenizer: Any, name: str, revision: str, dtype: str, max_tokens: int) -> None:
        self._device = device_of_choice()
        self._model = model.to(self._device, DTYPES[dtype]).eval().requires_grad_(False)
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self.width = int(model.config.d_model)
        self.card = {"id": name, "revision": revision, "weights": weights_hash(model), "dtype": dtype, "width": self.width, "max_tokens": max_tokens}

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> list[TextFeatures]:
        full_lengths = [len(ids) for ids in self._tokenizer(list(captions)).input_ids]
        tokens = self._tokenizer(list(captions), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt").to(self._device)
        hidden = self._model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state.float().cpu()
        lengths = tokens.attention_mask.sum(dim=1).tolist()
        return [TextFeatures(row[:length].clone(), full > self._max_tokens) for row, length, full in zip(hidden, lengths, full_lengths, strict=True)]


def load_text_encoder(name: str, dtype: str, max_tokens: int) -> TextEncoder:
    """A built-in encoder, a hub id or a local folder. Raises `WeightsMissingError`."""
    if name.startswith("builtin:"):
        from dittool.encoders.builtin import WordVectors

        return WordVectors(name, max_tokens)
    ensure_torchvision()
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer = load_pretrained("text", name, lambda local: AutoTokenizer.from_pretrained(name, local_files_only=local))
    model = load_pretrained("text", name, lambda local: T5EncoderModel.from_pretrained(name, dtype=DTYPES[dtype], local_files_only=local))
    return T5Encoder(model, tokenizer, name, str(getattr(model.config, "_commit_hash", None) or "local"), dtype, max_tokens)
