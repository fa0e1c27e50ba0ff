"""A text encoder that knows letters, one fixed one-hot vector for each: `encoders.text = "plugin:letters"`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from dittool.encoders.cards import TextCard
from dittool.encoders.interfaces import TextFeatures

_LETTERS = " abcdefghijklmnopqrstuvwxyz"


class LetterVectors:
    """L letters → (L, 27)."""

    width = len(_LETTERS)

    def __init__(self, name: str, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        weights = hashlib.sha256(_LETTERS.encode()).hexdigest()  # what the features depend on
        self.card = TextCard(name, "1", weights, "fp32", self.width, max_tokens)

    def count_tokens(self, caption: str) -> int:
        return len(caption)

    def encode(self, captions: Sequence[str]) -> list[TextFeatures]:
        return [self._features([_LETTERS.find(letter) for letter in caption.lower()] or [0]) for caption in captions]

    def _features(self, places: list[int]) -> TextFeatures:
        vectors = torch.eye(self.width)[places[: self._max_tokens]]  # (L, 27); what is no letter counts as z
        return TextFeatures(vectors, cut=len(places) > self._max_tokens)
