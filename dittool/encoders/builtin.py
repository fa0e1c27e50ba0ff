"""Stand-ins for gated or huge encoders, so that everything runs on a fresh machine without an account or a download.

They sit behind the same interfaces as the real ones and are named `builtin:…` in every identity card. They are not
trained: features of the image stand-in come from random weights, words are random vectors, and the codec is a fixed
transform.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dittool.encoders.cards import TextCard, VaeCard
from dittool.encoders.interfaces import TextFeatures, to_pixels, to_signed
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.errors import UsageError
from dittool.plugins import load_plugin, named_plugins
from dittool.seeding import derive_seed

Maker = TypeVar("Maker")


OURS, THEIRS = "builtin:", "plugin:"  # how the names begin that are neither a hub's nor a folder's
_PLUGIN_GROUPS = {"image": "dit.image_encoders", "text": "dit.text_encoders", "vae": "dit.codecs"}


def plugin_encoder(kind: str, name: str) -> Any:
    """What makes the encoder `plugin:NAME` of another package: the entry point NAME in the group of its kind. Raises
    `UsageError` for a name that is none.
    """
    plugins = named_plugins(_PLUGIN_GROUPS[kind])
    plugin = plugins.get(name.removeprefix(THEIRS))
    if plugin is None:
        known = ", ".join(f"{THEIRS}{other}" for other in sorted(plugins)) or "none"
        raise UsageError(
            f"encoders.{kind}: '{name}' is in no installed package; there is {known}",
            f"install the package that brings it, as an entry point in {_PLUGIN_GROUPS[kind]} (docs/plugins.md)",
        )
    return load_plugin(plugin, f"{kind} encoder")


def built_in(kind: str, name: str, makers: Mapping[str, Maker]) -> Maker:
    """What makes the built-in encoder of a name, from the table of its kind. Raises `UsageError` for any other name."""
    if name not in makers:
        raise UsageError(
            f"encoders.{kind}: '{name}' is not built in; there is {', '.join(makers)}",
            "correct the name, or name a hub id or a folder",
        )
    return makers[name]


def builtin_image_model(name: str) -> nn.Module:
    """The real `DINOv3ViTModel` class at a tiny size: patch 16, 4 registers, width 64, seeded weights."""
    ensure_torchvision()
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(
        patch_size=16,
        num_register_tokens=4,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    model = DINOv3ViTModel(config)
    with torch.no_grad():  # from one seed and the parameters' names, whatever initialisation the library's version has
        for parameter_name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(derive_seed(name, parameter_name))
            if parameter.dim() < 2:
                parameter.fill_(
                    1.0 if parameter_name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "lambda1")) else 0.0
                )
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
    return model


class WordVectors:
    """One fixed vector a word, drawn from N(0, 1) with the word as seed, so that a small model can learn words
    quickly.
    """

    width = 64

    def __init__(self, name: str, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        check = hashlib.sha256(_word_vector("check", self.width).numpy().tobytes()).hexdigest()
        self.card = TextCard(name, "1", check, "fp32", self.width, max_tokens)

    def count_tokens(self, caption: str) -> int:
        return len(_words(caption))

    def encode(self, captions: Sequence[str]) -> list[TextFeatures]:
        features = []
        for caption in captions:
            words = _words(caption)
            vectors = torch.stack([_word_vector(word, self.width) for word in words[: self._max_tokens]])
            features.append(TextFeatures(vectors, len(words) > self._max_tokens))
        return features


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower()) or [""]


@lru_cache(maxsize=65536)
def _word_vector(word: str, width: int) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(derive_seed("word", word)))


_BLOCK = 8
_LUMA_COEFFICIENTS, _CHROMA_COEFFICIENTS = 10, 3  # 10 + 2·3 = 16 channels
_TO_OPPONENT = (  # orthonormal: luma, red–blue, green–magenta
    (1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)),
    (1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)),
    (1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)),
)


class BlockDCT:
    """A fixed orthonormal 8×8 block DCT-II in an opponent colour space that keeps the 16 lowest coefficients.

    Encoding projects onto 16 orthonormal functions of a block, decoding is the transpose: encode(decode(z)) = z but for
    8-bit rounding. Latents are divided by 8, so that a flat block has its colour as its first coefficient.
    """

    channels, stride = 16, _BLOCK

    def __init__(self, name: str) -> None:
        self._basis = _dct_basis()  # (16, 3·8·8)
        weights = hashlib.sha256(self._basis.numpy().tobytes()).hexdigest()
        self.card = VaeCard(name, "1", weights, "fp32", self.channels, self.stride, scale=1.0, shift=0.0)

    def encode(self, pixels: np.ndarray) -> Tensor:
        x = to_signed(pixels)  # (B, 3, H, W)
        # (B, h, w, 192)
        blocks = x.unflatten(2, (-1, _BLOCK)).unflatten(4, (-1, _BLOCK)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        return (blocks @ self._basis.T / _BLOCK).permute(0, 3, 1, 2).contiguous()  # (B, 16, h, w)

    def decode(self, latents: Tensor) -> np.ndarray:
        blocks = latents.float().cpu().permute(0, 2, 3, 1) @ self._basis * _BLOCK  # (B, h, w, 192)
        x = blocks.unflatten(3, (3, _BLOCK, _BLOCK)).permute(0, 3, 1, 4, 2, 5)  # (B, 3, h, 8, w, 8)
        return to_pixels(x.flatten(4).flatten(2, 3))


def _dct_basis() -> Tensor:
    """(16, 192): rows are orthonormal functions of a (3, 8, 8) block, luma first, by rising frequency."""
    k, n = torch.arange(_BLOCK, dtype=torch.float64)[:, None], torch.arange(_BLOCK, dtype=torch.float64)[None]
    dct = torch.cos(math.pi * (n + 0.5) * k / _BLOCK) * math.sqrt(2 / _BLOCK)  # (frequency, place)
    dct[0] /= math.sqrt(2)
    by_frequency = sorted(
        ((u, v) for u in range(_BLOCK) for v in range(_BLOCK)), key=lambda uv: (uv[0] + uv[1], max(uv), uv)
    )
    colours = torch.tensor(_TO_OPPONENT, dtype=torch.float64)
    rows = [
        torch.einsum("c,y,x->cyx", colours[channel], dct[u], dct[v]).flatten()
        for channel, count in enumerate((_LUMA_COEFFICIENTS, _CHROMA_COEFFICIENTS, _CHROMA_COEFFICIENTS))
        for u, v in by_frequency[:count]
    ]
    return torch.stack(rows).float()
