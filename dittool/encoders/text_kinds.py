"""The text encoders that are read, by the `model_type` of their configs: how each is loaded, and how many tokens it can
take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextKind:
    """One architecture."""

    called: str
    model_class: str  # of transformers


_CLIP = TextKind("a CLIP", "CLIPTextModel")
TEXT_KINDS: dict[str, TextKind] = {  # by model_type
    "t5": TextKind("a T5", "T5EncoderModel"),
    "mt5": TextKind("an mT5", "T5EncoderModel"),
    "umt5": TextKind("a umT5", "UMT5EncoderModel"),
    # decoders, whose hidden states at a layer are the features
    "gemma": TextKind("a Gemma", "GemmaModel"),
    "gemma2": TextKind("a Gemma", "Gemma2Model"),
    "gemma3_text": TextKind("a Gemma", "Gemma3TextModel"),
    "qwen2": TextKind("a Qwen", "Qwen2Model"),
    "qwen3": TextKind("a Qwen", "Qwen3Model"),
    "clip": _CLIP,
    "clip_text_model": _CLIP,
}


def text_width(config: Any) -> int:
    """D of a config."""
    return int(config.d_model if hasattr(config, "d_model") else config.hidden_size)


def most_tokens(config: Any, asked: int) -> int:
    """Of a caption: as many as are asked for, and no more than the encoder has learned positions for. T5's are
    relative.
    """
    positions = getattr(config, "max_position_embeddings", None)
    return asked if positions is None else min(asked, int(positions))
