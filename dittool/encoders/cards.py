"""What an encoder says of itself: the facts on which the meaning of its features depends, a class for each kind.

In JSON the keys are the names of the fields, in their order. Keys that this version does not know are kept, so that a
card of a later one stays what it was. All cards of a data set stand in its identity card (dittool.data.identity).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from dittool.errors import BadDataError


@dataclass(frozen=True)
class _Card:
    """What every encoder says, before what its kind adds."""

    id: str  # hub id, folder or "builtin:…", as the configuration names it
    revision: str  # commit on the hub; "local" for a folder
    weights: str  # SHA-256 of the parameters
    dtype: str  # in which the features were computed


@dataclass(frozen=True)
class ImageCard(_Card):
    """Of an image encoder."""

    kind: ClassVar[str] = "image"
    width: int  # channels of CLS and patches
    patch_size: int  # pixels
    registers: int  # tokens between CLS and the patches
    unknown: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class TextCard(_Card):
    """Of a text encoder."""

    kind: ClassVar[str] = "text"
    width: int  # channels of a token
    max_tokens: int  # longer captions were cut
    layer: int | None = None  # whose hidden states are the features; None: the model's own output
    unknown: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class VaeCard(_Card):
    """Of an autoencoder. Model input by its own numbers: (z − shift)·scale."""

    kind: ClassVar[str] = "vae"
    channels: int
    stride: int  # pixels along one side of a latent cell
    scale: float
    shift: float
    unknown: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureWidths:
    """Channels of the features that a model is built for; all 0 for one that reads none."""

    text: int = 0
    image: int = 0
    latent_channels: int = 0

    def __str__(self) -> str:
        return f"text {self.text}, image {self.image}, latent channels {self.latent_channels}"

    @staticmethod
    def from_json(value: object, source: str) -> FeatureWidths:
        """Of an index or a checkpoint that may come from anywhere. Raises `BadDataError` naming `source`."""
        if value == {}:
            return FeatureWidths()
        names = [item.name for item in fields(FeatureWidths)]
        if not isinstance(value, dict) or sorted(value) != sorted(names) or not all(map(_is_count, value.values())):
            raise BadDataError(f"{source}: {value!r} are no widths of features", f"it needs {', '.join(names)}")
        return FeatureWidths(**value)

    def to_json(self) -> dict[str, int]:
        return {} if self == FeatureWidths() else asdict(self)


EncoderCard = ImageCard | TextCard | VaeCard
CARDS: dict[str, type[EncoderCard]] = {card.kind: card for card in (ImageCard, TextCard, VaeCard)}


def card_to_json(card: EncoderCard) -> dict[str, object]:
    """The card as identity.json holds it."""
    known = {name: getattr(card, name) for name in _names(type(card))}
    return {name: value for name, value in known.items() if value is not None} | dict(card.unknown)


def card_from_json(kind: str, value: Mapping[str, Any]) -> EncoderCard:
    """The card behind a JSON object in which `wrong_keys` finds nothing wrong."""
    known = {name: value[name] for name in _names(CARDS[kind]) if name in value}
    return CARDS[kind](**known, unknown={key: item for key, item in value.items() if key not in known})


def wrong_keys(kind: str, value: Mapping[str, Any]) -> list[str]:
    """Keys of a JSON object from anywhere that are missing or cannot be, for a card of this kind."""
    names = [name for name in _names(CARDS[kind]) if name in value or name not in _LATER]
    return [name for name in names if not _FITS.get(name, _is_text)(value.get(name))]


_LATER = ("layer",)  # what cards of before do not have


def _names(card: type[EncoderCard]) -> list[str]:
    return [item.name for item in fields(card) if item.name != "unknown"]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object, least: int = 1) -> bool:
    return type(value) is int and least <= value < 1 << 31


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_FITS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("width", "patch_size", "max_tokens", "channels", "stride"), _is_count),
    "registers": lambda value: _is_count(value, least=0),
    "layer": lambda value: type(value) is int and abs(value) < 1 << 15,
    "scale": _is_number,
    "shift": _is_number,
}
