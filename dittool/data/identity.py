"""The identity card: which encoders, buckets and crop rule made a set of features. Features of different identity never mix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from dittool.data.records import STAGES
from dittool.errors import BadDataError

CARD_VERSION = 1
CROP_RULE = "resize-to-cover, centre crop"
ENCODER_OF_STAGE = {"dinov3": "image", "vae": "vae", "t5": "text"}
IMAGE_STAGES = ("dinov3", "vae")


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
