"""The identity card: which encoders, buckets and crop rule made a set of features. Features of different identity
never mix.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from typing import Any

from dittool.data.patch_storage import STORAGES
from dittool.data.records import STAGES
from dittool.errors import BadDataError
from dittool.geometry import parse_size

CARD_VERSION = 1
CROP_RULE = "resize-to-cover, centre crop"
ENCODER_OF_STAGE = {"dinov3": "image", "vae": "vae", "t5": "text"}
IMAGE_STAGES = ("dinov3", "vae")
# of each encoder, above zero
_COUNTS = {"image": ("width", "patch_size"), "text": ("width", "max_tokens"), "vae": ("channels", "stride")}
_NUMBERS = {"vae": ("scale", "shift")}
_RESTORE = "restore the file from a copy; or remove it and what it describes, and run dit embed and dit shard again"


def new_card(buckets: list[str], patch_storage: str) -> dict[str, Any]:
    """A card without encoders; each embed pass adds its own."""
    return {
        "version": CARD_VERSION,
        "crop": CROP_RULE,
        "buckets": buckets,
        "patch_storage": patch_storage,
        "encoders": {},
    }


def require_card(value: Any, source: str, complete: bool = False) -> dict[str, Any]:
    """The card behind a JSON value that may come from anywhere. Raises `BadDataError` naming `source` and each key that
    cannot be.

    Args:
        complete: all three encoders must stand in it, as in the index of shards; a derived folder has those whose pass
        was begun.
    """
    if not isinstance(value, dict):
        raise BadDataError(f"{source}: an identity card is an object, this is {type(value).__name__}", _RESTORE)
    if wrong := [*_wrong_settings(value), *_wrong_encoders(value.get("encoders"), complete)]:
        raise BadDataError(f"{source}: no identity card: {'; '.join(wrong)}", _RESTORE)
    return value


def identity_hash(card: dict[str, Any]) -> str:
    """SHA-256 of the card's content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(card, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def differences(mine: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two cards differ: `encoders.image.id: 'a' here, 'b' there`."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = list(mine) + [key for key in theirs if key not in mine]
        return [
            line
            for key in keys
            for line in differences(mine.get(key), theirs.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if mine == theirs else [f"{path}: {mine!r} here, {theirs!r} there"]


def stages_made_stale(mine: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, ...]:
    """The passes that do not make the same features under two cards whose encoders are the same."""
    differing = {key for key in new_card([], "") if mine.get(key) != theirs.get(key)}
    stale = set(IMAGE_STAGES) if differing & {"version", "crop", "buckets"} else set()
    if "patch_storage" in differing:
        stale.add("dinov3")
    return tuple(stage for stage in STAGES if stage in stale)


def rebuild_command(stages: Iterable[str]) -> str:
    """`dit embed --pass dinov3 --rebuild`"""
    return "dit embed " + " ".join(f"--pass {stage}" for stage in stages) + " --rebuild"


def require_same_identity(mine: dict[str, Any], theirs: dict[str, Any], what: str, hint: str) -> None:
    """Raises `BadDataError` with each difference when two cards are not the same."""
    if found := differences(mine, theirs):
        raise BadDataError(f"{what}: another identity: {'; '.join(found)}", hint)


def _wrong_settings(card: dict[str, Any]) -> list[str]:
    wrong = (
        [f"version {card.get('version')!r}, this program reads {CARD_VERSION}"]
        if card.get("version") != CARD_VERSION
        else []
    )
    wrong += [] if isinstance(card.get("crop"), str) else [f"crop = {card.get('crop')!r}"]
    buckets = card.get("buckets")
    wrong += [] if isinstance(buckets, list) and buckets and all(map(_is_size, buckets)) else [f"buckets = {buckets!r}"]
    return wrong + ([] if card.get("patch_storage") in STORAGES else [f"patch_storage = {card.get('patch_storage')!r}"])


def _wrong_encoders(encoders: Any, complete: bool) -> list[str]:
    if not isinstance(encoders, dict):
        return [f"encoders = {encoders!r}"]
    wrong = [f"encoders.{name} is missing" for name in _COUNTS if complete and name not in encoders]
    for name, encoder in encoders.items():
        if not isinstance(encoder, dict):
            wrong.append(f"encoders.{name} = {encoder!r}")
            continue
        wrong += [
            f"encoders.{name}.{key} = {encoder.get(key)!r}"
            for key in _COUNTS.get(name, ())
            if not _is_count(encoder.get(key))
        ]
        wrong += [
            f"encoders.{name}.{key} = {encoder.get(key)!r}"
            for key in _NUMBERS.get(name, ())
            if not _is_number(encoder.get(key))
        ]
    return wrong


def _is_size(value: Any) -> bool:
    try:
        return bool(parse_size(value))
    except (TypeError, ValueError):
        return False


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
