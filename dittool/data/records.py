"""What one sample is: the single truth about its record, its features, and the names they go by.

`dit embed` decides once for each input image whether it is used; `records.jsonl` keeps that decision. Every feature of a
sample has one folder in the derived store, one member name in a shard, and one meaning for each axis; they stand here only.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dittool.errors import BadDataError
from dittool.storage import read_json_lines, write_atomic

USED, REFUSED = "used", "refused"


@dataclass(frozen=True)
class Feature:
    """One array of a sample. `axes` names its dimensions; `stage` is the embed pass that makes it."""

    name: str  # folder in the derived store: data/derived/NAME/ID.npy
    member: str  # suffix in a shard: ID.MEMBER
    stage: str  # dinov3, vae or t5
    axes: tuple[str, ...]


# C: width of the image encoder · N: patches, row-major over the grid · D: width of the text encoder · L: true number of text tokens
IMAGE_CLS = Feature("dinov3", "dinov3.npy", "dinov3", ("C",))
IMAGE_PATCHES = Feature("dinov3_patches", "dinov3_patches.npy", "dinov3", ("N", "C"))
LATENT = Feature("vae_latents", "vae.npy", "vae", ("channels", "h", "w"))
TEXT = Feature("t5_hidden", "t5h.npy", "t5", ("L", "D"))
FEATURES = (IMAGE_CLS, IMAGE_PATCHES, LATENT, TEXT)
STAGES = ("dinov3", "vae", "t5")
TEXT_MASK_MEMBER = "t5m.npy"  # older sets: (512,) mask beside a padded t5h
RECORD_MEMBER = "json"


@dataclass(frozen=True)
class Record:
    """One input image, in or out. Boxes are (left, top, right, bottom) in pixels of the upright image."""

    id: str  # safe key: file and member names
    name: str  # what the source calls it
    image: str  # path of the image, relative to the source folder
    status: str  # "used" or "refused"
    reason: str = ""  # why it was refused: a short code, for counting
    detail: str = ""  # the same in words, with numbers
    caption: str = ""
    image_sha256: str = ""  # of the file's bytes
    width: int = 0  # upright
    height: int = 0
    bucket: str = ""  # "WIDTHxHEIGHT"
    crop: tuple[float, float, float, float] | None = None  # the part of the upright image that fills the bucket
    flags: tuple[str, ...] = field(default=())  # used, but worth knowing: "exif-rotated", "alpha-composited" …

    @property
    def used(self) -> bool:
        return self.status == USED


def record_to_json(record: Record) -> dict[str, Any]:
    """Plain values; empty ones are left out."""
    return {key: value for key, value in asdict(record).items() if value not in ("", None, 0, ())}


def record_from_json(value: Any, source: str) -> Record:
    """The record behind a JSON object. Raises `BadDataError` naming `source`."""
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("id", "name", "image", "status")):
        raise BadDataError(f"{source}: not a record: id, name, image and status are missing or not text", "make it again with: dit embed")
    known = {key: value[key] for key in value if key in Record.__dataclass_fields__}
    known["flags"] = tuple(known.get("flags", ()))
    known["crop"] = tuple(known["crop"]) if known.get("crop") else None
    return Record(**known)


def write_records(path: Path, records: list[Record]) -> None:
    """`records.jsonl`, one line each, atomically."""
    lines = (json.dumps(record_to_json(record), ensure_ascii=False) for record in records)
    write_atomic(path, "".join(line + "\n" for line in lines).encode("utf-8", "backslashreplace"))


def read_records(path: Path) -> list[Record]:
    """Raises `BadDataError` when the file is missing or a line is not a record."""
    if not path.is_file():
        raise BadDataError(f"{path}: no such file, so this is not a derived folder", "make one with: dit embed IMAGES --out FOLDER")
    return [record_from_json(value, f"{path}: record {index}") for index, value in enumerate(read_json_lines(path), start=1)]


_KEEP = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_LONGEST_KEY = 100


def safe_key(name: str) -> str:
    """The name itself when it can serve as a file name and a WebDataset key on every system, else a hash of it.

    A key has no dot (WebDataset cuts keys at the first one), no upper/lower ambiguity problem beyond the name's own, no slash
    and no control character. The real name stays in the record.
    """
    if name and len(name) <= _LONGEST_KEY and all(letter in _KEEP for letter in name) and not name.startswith("-"):
        return name
    normal = unicodedata.normalize("NFC", name)
    return "h" + hashlib.sha256(normal.encode("utf-8", "surrogatepass")).hexdigest()[:24]
