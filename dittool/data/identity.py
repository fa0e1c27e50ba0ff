"""The identity card: which encoders, buckets and crop rule made a set of features. Features of different identity never mix."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dittool.errors import BadDataError

CARD_VERSION = 1
CROP_RULE = "resize-to-cover, centre crop"
ENCODER_OF_STAGE = {"dinov3": "image", "vae": "vae", "t5": "text"}


def new_card(buckets: list[str], patch_storage: str) -> dict[str, Any]:
    """A card without encoders; each embed pass adds its own."""
    return {"version": CARD_VERSION, "crop": CROP_RULE, "buckets": buckets, "patch_storage": patch_storage, "encoders": {}}


def identity_hash(card: dict[str, Any]) -> str:
    """SHA-256 of the card's content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(card, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def differences(mine: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two cards differ: `encoders.image.id: 'a' here, 'b' there`."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = list(mine) + [key for key in theirs if key not in mine]
        return [line for key in keys for line in differences(mine.get(key), theirs.get(key), f"{path}.{key}" if path else key)]
    return [] if mine == theirs else [f"{path}: {mine!r} here, {theirs!r} there"]


def require_same_identity(mine: dict[str, Any], theirs: dict[str, Any], what: str, hint: str) -> None:
    """Raises `BadDataError` with each difference when two cards are not the same."""
    if found := differences(mine, theirs):
        raise BadDataError(f"{what}: another identity: {'; '.join(found)}", hint)
