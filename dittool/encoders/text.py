"""Captions → text features: one vector a token, as many as the caption has. Padding is never stored.

L true number of tokens · D width
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dittool.console import SILENT, Talk
from dittool.encoders.builtin import OURS, THEIRS, WordVectors, built_in, plugin_encoder
from dittool.encoders.cards import TextCard
from dittool.encoders.interfaces import TextEncoder, TextFeatures
from dittool.encoders.pretrained import (
    frozen,
    in_fp32,
    load_pretrained,
    load_transformer,
    location_of,
    require_model_type,
    revision_of,
    to_cpu,
    to_device,
)
from dittool.encoders.text_kinds import TEXT_KINDS, most_tokens, text_width
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.errors import BadDataError, UsageError, WeightsMissingError

BUILT_IN: dict[str, Callable[[str, int], TextEncoder]] = {  # name → (name, max_tokens) → encoder
    "builtin:words": WordVectors,
}

# Padding included. Few on a CPU: its time goes with the tokens, and narrow groups of captions of like length have next
# to no padding (measured: half the time of batches of 16 in the order of the data). Many on a GPU, which small batches
# leave idle: sixteen captions of full length.
_TOKENS_AT_ONCE = {"cpu": 512, "cuda": 8192, "mps": 8192}
_PROBE = "a photo of a red bird"  # words that every tokenizer of the family knows


class T5Encoder:
    """The encoder half of a T5 model, or another one of `TEXT_KINDS`. fp16 overflows in T5, so it runs in bf16 or fp32.

    Args:
        layer: whose hidden states are the features: 0 the embeddings, −1 the last; None the model's own output.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        revision: str,
        dtype: str,
        max_tokens: int,
        talk: Talk = SILENT,
        layer: int | None = None,
    ) -> None:
        max_tokens = most_tokens(model.config, max_tokens)
        self._tokenizer, self._max_tokens, self._talk, self._layer = tokenizer, max_tokens, talk, layer
        self.width = text_width(model.config)
        _require_layer(model.config, layer, name)
        _require_words(tokenizer, int(model.config.vocab_size), name)
        # of CLIP the mark at the end, which every caption has
        self._unknown = None if tokenizer.unk_token_id == tokenizer.eos_token_id else tokenizer.unk_token_id
        network = frozen(model, dtype)
        self._model, self._device, self._dtype = network.model, network.device, network.dtype
        self.card = TextCard(name, revision, network.weights, dtype, self.width, max_tokens, layer)

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> list[TextFeatures]:
        """Any number of captions. Those of like length are computed together, so little is spent on padding.

        Raises `BadDataError` naming the caption when its features are not finite, in fp32 either.
        """
        tokens = [self._token_ids(caption) for caption in captions]
        hidden: list[Tensor] = [torch.empty(0)] * len(captions)
        for group in _groups([len(ids) for ids, _ in tokens], _TOKENS_AT_ONCE[self._device.type]):
            for index, row in zip(
                group,
                self._finite([tokens[index][0] for index in group], [captions[index] for index in group]),
                strict=True,
            ):
                hidden[index] = row
        return [
            TextFeatures(row, cut, 0 if self._unknown is None else ids.count(self._unknown))
            for row, (ids, cut) in zip(hidden, tokens, strict=True)
        ]

    def count_tokens(self, caption: str) -> int:
        return len(self._tokenizer(caption, verbose=False).input_ids)

    def _token_ids(self, caption: str) -> tuple[list[int], bool]:
        """The caption's tokens and whether they were cut. A cut caption keeps its last token where that is an end
        mark.
        """
        ids = self._tokenizer(caption, verbose=False).input_ids
        if len(ids) <= self._max_tokens:
            return ids, False
        if ids[-1] in self._tokenizer.all_special_ids:
            return [*ids[: self._max_tokens - 1], ids[-1]], True
        return ids[: self._max_tokens], True

    def _finite(self, tokens: list[list[int]], captions: list[str]) -> list[Tensor]:
        rows = self._forward(tokens)
        broken = [index for index, row in enumerate(rows) if not torch.isfinite(row).all()]
        if broken and self._dtype != torch.float32:
            self._talk.warn(
                f"{self.card.id}: features of {len(broken)} captions are not finite in {self.card.dtype};"
                " computed again in fp32"
            )
            with in_fp32(self._model, self._dtype):
                for index, row in zip(broken, self._forward([tokens[index] for index in broken]), strict=True):
                    rows[index] = row
        for index in broken:
            if not torch.isfinite(rows[index]).all():
                raise BadDataError(
                    f"{self.card.id}: features of the caption {ascii(captions[index])[:80]} are not finite, in fp32"
                    " either",
                    "the encoder's weights are damaged: fetch them again, or name another encoder with -s"
                    " encoders.text=NAME",
                )
        return rows

    def _forward(self, tokens: list[list[int]]) -> list[Tensor]:
        """Features (L, D) of each list of tokens, its true length."""
        ids = torch.full((len(tokens), max(map(len, tokens))), int(self._tokenizer.pad_token_id or 0))
        mask = torch.zeros_like(ids)
        for row, caption in enumerate(tokens):
            ids[row, : len(caption)] = torch.tensor(caption)
            mask[row, : len(caption)] = 1
        output = self._model(
            input_ids=to_device(ids, self._device),
            attention_mask=to_device(mask, self._device),
            output_hidden_states=self._layer is not None,
        )
        hidden = output.last_hidden_state if self._layer is None else output.hidden_states[self._layer]
        return [row[: len(caption)].clone() for row, caption in zip(to_cpu(hidden), tokens, strict=True)]


def _groups(lengths: Sequence[int], tokens_at_once: int) -> Iterator[list[int]]:
    """Indices of captions to compute together: sorted by length, each group at most so many tokens with its
    padding, or one caption.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if group and (len(group) + 1) * lengths[index] > tokens_at_once:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def token_counter(name: str) -> Callable[[str], int] | None:
    """Counts the tokens of a caption as the encoder would, without its weights. None when its tokenizer is not on this
    disk.
    """
    if name.startswith((OURS, THEIRS)):
        return lambda caption: len(re.findall(r"\w+", caption))
    ensure_torchvision()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location_of(name), local_files_only=True)
    except Exception:  # whatever the library raises for files that are not there
        return None
    return lambda caption: len(tokenizer(caption, verbose=False).input_ids)


def _require_layer(config: Any, layer: int | None, name: str) -> None:
    layers = int(config.num_hidden_layers)
    if layer is not None and not -layers - 1 <= layer <= layers:
        raise UsageError(
            f"encoders.text_layer = {layer}: '{name}' has {layers} layers",
            f"give a layer from 0, the embeddings, to {layers}, the last; or counted from behind, from -1",
        )


def _require_words(tokenizer: Any, vocabulary: int, name: str) -> None:
    """Without its own files the library makes up a tokenizer to which every word is unknown."""
    ids = tokenizer(_PROBE).input_ids
    unknown = tokenizer.unk_token_id in ids and tokenizer.unk_token_id != tokenizer.eos_token_id
    if unknown or max(ids) >= vocabulary:
        fault = "does not know plain words" if unknown else f"gives token {max(ids)}, the model knows {vocabulary}"
        raise WeightsMissingError(
            f"encoders.text: '{name}': its tokenizer {fault}: its files are missing or belong to another model",
            "put tokenizer.json (or spiece.model) and tokenizer_config.json of the same model beside config.json",
        )


def _about_sentencepiece(name: str, error: WeightsMissingError) -> WeightsMissingError:
    """Google's T5 checkpoints bring their words as `spiece.model` alone; without the package for it the library
    asks for another one.
    """
    if importlib.util.find_spec("sentencepiece") or not (
        "tiktoken" in error.message or "sentencepiece" in error.message
    ):
        return error
    return WeightsMissingError(
        f"encoders.text: the tokenizer of '{name}' is a SentencePiece model, and the package that reads it is not"
        " installed",
        "install it: pip install sentencepiece",
    )


def load_text_encoder(
    name: str, dtype: str, max_tokens: int, talk: Talk = SILENT, layer: int | None = None
) -> TextEncoder:
    """A built-in encoder, a plugin's (made from name and max_tokens), or a hub id or a local folder of one in
    `TEXT_KINDS`. `talk` is told when captions had to be computed again in fp32. `layer`: as `T5Encoder` takes it.

    Raises `WeightsMissingError`, `UsageError` for any other architecture, `BadDataError` for damaged weights.
    """
    if name.startswith((OURS, THEIRS)) and layer is not None:
        raise UsageError(f"encoders.text_layer = {layer}: '{name}' has no layers", "take text_layer out")
    if name.startswith(OURS):
        return built_in("text", name, BUILT_IN)(name, max_tokens)
    if name.startswith(THEIRS):
        theirs: TextEncoder = plugin_encoder("text", name)(name, max_tokens)
        return theirs
    model_type = require_model_type("text", name, {kind: TEXT_KINDS[kind].called for kind in TEXT_KINDS})
    import transformers
    from transformers import AutoTokenizer

    try:
        tokenizer = load_pretrained(
            "text", name, lambda local: AutoTokenizer.from_pretrained(location_of(name), local_files_only=local)
        )
    except WeightsMissingError as error:
        raise _about_sentencepiece(name, error) from error
    model = load_transformer("text", name, dtype, getattr(transformers, TEXT_KINDS[model_type].model_class))
    return T5Encoder(model, tokenizer, name, revision_of(name), dtype, max_tokens, talk, layer)
