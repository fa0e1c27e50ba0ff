"""The identity card: which encoders, buckets and crop rule made a set of features. Features of different identity
never mix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from dittool.data.patch_storage import NONE, STORAGES
from dittool.data.records import FEATURES, IMAGE_CLS, IMAGE_PATCHES, LATENT, STAGES, TEXT, Feature, is_kind
from dittool.encoders.cards import (
    CARDS,
    EncoderCard,
    FeatureWidths,
    ImageCard,
    TextCard,
    VaeCard,
    card_from_json,
    card_to_json,
    wrong_keys,
)
from dittool.errors import BadDataError
from dittool.geometry import parse_size

CARD_VERSION, SEVERAL_VERSION = 1, 2  # of a set that keeps one caption of an image, or several
CROP_RULE = "resize-to-cover, centre crop"
CARD_OF_STAGE: dict[str, type[EncoderCard]] = {"dinov3": ImageCard, "vae": VaeCard, "t5": TextCard}
IMAGE_STAGES = ("dinov3", "vae")
_KNOWN = ("version", "crop", "buckets", "patch_storage", "encoders", "claimed", "captions")
_RESTORE = (
    "restore the file from a copy; without one, nothing says which encoders made these features: embed the images again"
    " into another folder (dit embed IMAGES --out FOLDER), then dit shard FOLDER"
)

Card = TypeVar("Card", bound=EncoderCard)


@dataclass(frozen=True)
class IdentityCard:
    """What made a set of features."""

    buckets: tuple[str, ...]  # "WIDTHxHEIGHT"
    patch_storage: str  # one of patch_storage.STORAGES, or NONE
    encoders: tuple[EncoderCard, ...] = ()  # in the order of their first passes; a finished set has all three
    crop: str = CROP_RULE
    claimed: bool = False  # by `dit shard --index`, for features that another program made
    captions: tuple[str, ...] = ()  # kinds of the captions, where several of an image are kept
    unknown: Mapping[str, object] = field(default_factory=dict)  # keys of later versions, as they stood
    unknown_encoders: Mapping[str, object] = field(default_factory=dict)

    @staticmethod
    def from_json(value: object, source: str, complete: bool = False) -> IdentityCard:
        """The card behind a JSON value that may come from anywhere. Raises `BadDataError` naming `source` and each key
        that cannot be.

        Args:
            complete: all three encoders must stand in it, as in the index of shards; a derived folder has those whose
            pass was begun.
        """
        if not isinstance(value, dict):
            raise BadDataError(f"{source}: an identity card is an object, this is {type(value).__name__}", _RESTORE)
        if wrong := [*_wrong_settings(value), *_wrong_encoders(value.get("encoders"), complete)]:
            raise BadDataError(f"{source}: no identity card: {'; '.join(wrong)}", _RESTORE)
        encoders: dict[str, Any] = value["encoders"]
        return IdentityCard(
            tuple(value["buckets"]),
            value["patch_storage"],
            tuple(card_from_json(kind, item) for kind, item in encoders.items() if kind in CARDS),
            value["crop"],
            "claimed" in value,
            tuple(value.get("captions", ())),
            {key: item for key, item in value.items() if key not in _KNOWN},
            {kind: item for kind, item in encoders.items() if kind not in CARDS},
        )

    def to_json(self) -> dict[str, object]:
        """As identity.json, index.json and checkpoints hold it."""
        return {
            "version": SEVERAL_VERSION if self.captions else CARD_VERSION,
            "crop": self.crop,
            "buckets": list(self.buckets),
            "patch_storage": self.patch_storage,
            "encoders": {card.kind: card_to_json(card) for card in self.encoders} | dict(self.unknown_encoders),
            **({"claimed": True} if self.claimed else {}),
            **({"captions": list(self.captions)} if self.captions else {}),
            **self.unknown,
        }

    @property
    def features(self) -> tuple[Feature, ...]:
        """What each sample has; `TEXT` stands for all its captions (records.features_of_record)."""
        return features_of(self.patch_storage)

    @property
    def sha256(self) -> str:
        """Of the content, whatever the order of its keys."""
        return json_sha256(self.to_json())

    @property
    def image(self) -> ImageCard:
        """Raises `BadDataError` when the pass of this encoder was never begun; `text` and `vae` likewise."""
        return self._present(ImageCard)

    @property
    def text(self) -> TextCard:
        return self._present(TextCard)

    @property
    def vae(self) -> VaeCard:
        return self._present(VaeCard)

    def names_same_making(self, other: IdentityCard) -> bool:
        """Whether both cards say the same of how features were made, seen in one and claimed in the other perhaps."""
        return replace(self, claimed=other.claimed).sha256 == other.sha256

    def find(self, kind: type[Card]) -> Card | None:
        """The encoder's card; None while its pass was not begun."""
        return next((card for card in self.encoders if isinstance(card, kind)), None)

    def with_encoder(self, new: EncoderCard) -> IdentityCard:
        """The card with this encoder, in the place of one of its kind."""
        if any(card.kind == new.kind for card in self.encoders):
            return replace(self, encoders=tuple(new if card.kind == new.kind else card for card in self.encoders))
        return replace(self, encoders=(*self.encoders, new))

    def _present(self, kind: type[Card]) -> Card:
        if (card := self.find(kind)) is None:
            raise BadDataError(
                f"the identity card names no {kind.kind} encoder", "make its features with: dit embed --pass all"
            )
        return card


def features_of(patch_storage: str) -> tuple[Feature, ...]:
    """Of samples whose patches are stored so."""
    return tuple(feature for feature in FEATURES if feature is not IMAGE_PATCHES or patch_storage != NONE)


def json_sha256(value: object) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def differences(mine: object, theirs: object, path: str = "") -> list[str]:
    """Where two JSON values differ: `encoders.image.id: 'a' here, 'b' there`."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = list(mine) + [key for key in theirs if key not in mine]
        return [
            line
            for key in keys
            for line in differences(mine.get(key), theirs.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if mine == theirs else [f"{path}: {mine!r} here, {theirs!r} there"]


def stages_made_stale(mine: IdentityCard, theirs: IdentityCard) -> tuple[str, ...]:
    """The passes that do not make the same features under two cards whose encoders are the same."""
    stale = set(IMAGE_STAGES) if (mine.crop, mine.buckets) != (theirs.crop, theirs.buckets) else set()
    if mine.patch_storage != theirs.patch_storage:
        stale.add("dinov3")
    if mine.captions != theirs.captions:
        stale.add("t5")
    return tuple(stage for stage in STAGES if stage in stale)


def stages_of_other_widths(one: FeatureWidths, other: FeatureWidths) -> list[str]:
    """The passes that made features of different widths."""
    differs = {
        IMAGE_CLS.stage: one.image != other.image,
        LATENT.stage: one.latent_channels != other.latent_channels,
        TEXT.stage: one.text != other.text,
    }
    return [stage for stage, is_other in differs.items() if is_other]


def rebuild_command(stages: Iterable[str]) -> str:
    """`dit embed --pass dinov3 --rebuild`"""
    return "dit embed " + " ".join(f"--pass {stage}" for stage in stages) + " --rebuild"


def require_same_identity(mine: dict[str, Any], theirs: dict[str, Any], what: str, hint: str) -> None:
    """Raises `BadDataError` with each difference when two cards, or parts of them in JSON, are not the same."""
    if found := differences(mine, theirs):
        raise BadDataError(f"{what}: another identity: {'; '.join(found)}", hint)


def _wrong_settings(card: dict[str, Any]) -> list[str]:
    version, kinds = card.get("version"), card.get("captions")
    if version == SEVERAL_VERSION:
        wrong = [] if isinstance(kinds, list) and kinds and all(map(is_kind, kinds)) else [f"captions = {kinds!r}"]
    elif version == CARD_VERSION:
        wrong = [] if kinds is None else [f"captions = {kinds!r} in a card of version {version}"]
    else:
        wrong = [f"version {version!r}, this program reads {CARD_VERSION} and {SEVERAL_VERSION}"]
    buckets, claimed = card.get("buckets"), card.get("claimed", True)
    wrong += [] if isinstance(card.get("crop"), str) else [f"crop = {card.get('crop')!r}"]
    wrong += [] if isinstance(buckets, list) and buckets and all(map(_is_size, buckets)) else [f"buckets = {buckets!r}"]
    storage = card.get("patch_storage")
    wrong += [] if storage in (*STORAGES, NONE) else [f"patch_storage = {storage!r}"]
    return wrong + ([] if claimed is True else [f"claimed = {claimed!r}"])


def _wrong_encoders(encoders: object, complete: bool) -> list[str]:
    if not isinstance(encoders, dict):
        return [f"encoders = {encoders!r}"]
    wrong = [f"encoders.{kind} is missing" for kind in CARDS if complete and kind not in encoders]
    for kind, encoder in encoders.items():
        if not isinstance(encoder, dict):
            wrong.append(f"encoders.{kind} = {encoder!r}")
        elif kind in CARDS:
            wrong += [f"encoders.{kind}.{key} = {encoder.get(key)!r}" for key in wrong_keys(kind, encoder)]
    return wrong


def _is_size(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(parse_size(value))
    except ValueError:
        return False
