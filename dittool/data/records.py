"""What one sample is: the single truth about its record, its features, and the names they go by.

`dit embed` decides once for each input image whether it is used; `records.jsonl` keeps that decision. Every feature of
a sample has one folder in the derived store, one member name in a shard, and one meaning for each axis; they stand here
only.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from dittool.data.embed_again import embed_again
from dittool.errors import BadDataError, UsageError
from dittool.nearest import did_you_mean
from dittool.shell import quoted
from dittool.storage import read_json_lines, write_atomic

T = TypeVar("T")
USED, REFUSED = "used", "refused"
UNKNOWN_WORDS = "unknown-words"  # the flag is UNKNOWN_WORDS:N, N the words that the text encoder's tokenizer lacks


@dataclass(frozen=True)
class Feature:
    """One array of a sample. `axes` names its dimensions; `stage` is the embed pass that makes it."""

    name: str  # folder in the derived store: data/derived/NAME/ID.npy
    member: str  # suffix in a shard: ID.MEMBER
    stage: str  # dinov3, vae or t5
    axes: tuple[str, ...]

    @property
    def ending(self) -> str:
        """Of its file's name in the derived store, behind the id: `.npy`, `.long.1.npy`."""
        return f".{self.member.partition('.')[2]}"


# C: width of the image encoder · N: patches, row-major over the grid · D: width of the text encoder · L: true number of
# text tokens
IMAGE_CLS = Feature("dinov3", "dinov3.npy", "dinov3", ("C",))
IMAGE_PATCHES = Feature("dinov3_patches", "dinov3_patches.npy", "dinov3", ("N", "C"))
LATENT = Feature("vae_latents", "vae.npy", "vae", ("channels", "h", "w"))
TEXT = Feature("t5_hidden", "t5h.npy", "t5", ("L", "D"))
FEATURES = (IMAGE_CLS, IMAGE_PATCHES, LATENT, TEXT)
STAGES = ("dinov3", "vae", "t5")
STAGES_OF_IMAGES = STAGES[:2]
_COPY_AGAIN = "copy the set again, or make it again with: dit shard"
TEXT_MASK_MEMBER = "t5m.npy"  # older sets: (512,) mask beside a padded t5h
RECORD_MEMBER = "json"
_OF_KIND = re.compile(r"t5h\.([a-z0-9_-]+)(?:\.([0-9]+))?\.npy")  # a caption's features, where a sample has several


@dataclass(frozen=True)
class Record:
    """One input image, in or out. Boxes are (left, top, right, bottom) in pixels of the upright image."""

    id: str  # safe key: file and member names
    name: str  # what the source calls it
    # path of the image: relative to the source's root, or absolute as a list gave it; "NAME.tar/KEY.jpg" lies in a tar
    # (a zip likewise), "NAME.parquet/COLUMN/ROW" in a table
    image: str
    status: str  # "used" or "refused"
    reason: str = ""  # why it was refused: a short code, for counting
    detail: str = ""  # the same in words, with numbers
    caption: str = ""
    image_sha256: str = ""  # of the file's bytes, or the tar member's
    width: int = 0  # upright
    height: int = 0
    bucket: str = ""  # "WIDTHxHEIGHT"
    crop: tuple[float, float, float, float] | None = None  # the part of the upright image that fills the bucket
    flags: tuple[str, ...] = field(default=())  # used, but worth knowing: "exif-rotated", "alpha-composited" …
    cls: str = ""  # the image's class, where the source has classes: the name of its folder
    # the second variant of an image: the bucketed image mirrored left to right, left and right swapped in the caption
    flipped: bool = False
    # of near copies: sha256 of the images whose bytes decide on which side of the hold-out it is; none: its own
    sides_with: tuple[str, ...] = field(default=())
    # (kind, text) of each caption, where a set keeps several of an image; `caption` is the first
    captions: tuple[tuple[str, str], ...] = field(default=())

    @property
    def used(self) -> bool:
        return self.status == USED

    @property
    def texts(self) -> tuple[str, ...]:
        """All captions that are encoded."""
        return tuple(text for _, text in self.captions) or (self.caption,)


def text_features(record: Record) -> tuple[Feature, ...]:
    """Those of the record's captions, in their order: `TEXT`, or where a set keeps several one for each kind and
    number.
    """
    met: Counter[str] = Counter()
    found = []
    for kind, _ in record.captions:
        number = f".{met[kind]}" if met[kind] else ""
        found.append(replace(TEXT, member=f"t5h.{kind}{number}.npy"))
        met[kind] += 1
    return tuple(found) or (TEXT,)


def features_of_record(features: Iterable[Feature], record: Record) -> list[Feature]:
    """What a set's samples have, of one of them: its own captions."""
    return [each for feature in features for each in (text_features(record) if feature is TEXT else (feature,))]


def text_members(members: Iterable[str]) -> dict[str, str]:
    """Of a sample's members those of captions, in their order → kind; "" for the one of a set that keeps one."""
    found = {}
    for member in members:
        if member == TEXT.member:
            found[member] = ""
        elif match := _OF_KIND.fullmatch(member):
            found[member] = match[1]
    return found


def first_text(arrays: Mapping[Feature, T]) -> T:
    """Of a sample's arrays that of its first caption."""
    return next(array for feature, array in arrays.items() if feature.name == TEXT.name)


def record_to_json(record: Record) -> dict[str, object]:
    """Plain values; empty ones are left out, but for the image, which a lonely caption does not have and a record
    must.
    """
    return {key: value for key, value in asdict(record).items() if key == "image" or value not in ("", None, 0, ())}


def record_to_bytes(record: Record) -> bytes:
    """One line of JSON in UTF-8, without line end. File names that are no text keep their bytes as escapes, so that
    any name goes through.
    """
    return json.dumps(record_to_json(record), ensure_ascii=False).encode("utf-8", "backslashreplace")


def record_from_json(value: object, source: str, hint: str = _COPY_AGAIN) -> Record:
    """The record behind a JSON object; keys that we do not know are left out. Raises `BadDataError` naming `source`."""
    if not isinstance(value, dict):
        raise BadDataError(f"{source}: not a record but {type(value).__name__}", hint)
    known = {key: item for key, item in value.items() if key in Record.__dataclass_fields__}
    if missing := [key for key in ("id", "name", "image", "status") if key not in known]:
        raise BadDataError(f"{source}: not a record: {', '.join(missing)} missing", hint)
    if wrong := [key for key, item in known.items() if not _FITS.get(key, _is_text)(item)]:
        raise BadDataError(
            f"{source}: not a record: {', '.join(f'{key} = {ascii(known[key])[:60]}' for key in wrong)}", hint
        )
    fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in known.items()}
    if "captions" in fields:
        fields["captions"] = tuple((kind, text) for kind, text in fields["captions"])
    return Record(**fields)


def write_records(path: Path, records: list[Record]) -> None:
    """`records.jsonl`, one line each, atomically."""
    write_atomic(path, b"".join(record_to_bytes(record) + b"\n" for record in records))


def read_records(path: Path) -> list[Record]:
    """Raises `UsageError` when there is no such folder, `BadDataError` when the file is missing, a line is not a
    record, or two have the same id.
    """
    if not path.parent.is_dir():
        raise UsageError(
            f"{path.parent}: no such folder",
            did_you_mean(
                path.parent, f"check the path, or make one with: dit embed IMAGES --out {quoted(path.parent)}"
            ),
        )
    if not path.is_file():
        raise BadDataError(
            f"{path}: no such file, so this is not a derived folder",
            f"name the folder that dit embed made, or make one: dit embed IMAGES --out {quoted(path.parent)}",
        )
    hint = f"make it again, the features stay: {embed_again(path.parent)}"
    records = [
        record_from_json(value, f"{path}: record {index}", hint)
        for index, value in enumerate(read_json_lines(path), start=1)
    ]
    if repeated := [record_id for record_id, count in Counter(record.id for record in records).items() if count > 1]:
        raise BadDataError(
            f"{path}: {len(repeated)} ids stand there twice, the first is '{repeated[0]}'",
            hint,
        )
    return records


_KIND = re.compile("[a-z0-9_-]{1,32}")
_KEEP = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_LONGEST_KEY = 100
_LONGEST_STEM = 40


def safe_key(name: str) -> str:
    """The name itself when it can serve as a file name and a WebDataset key on every system, else what is readable of
    it and a hash.

    A key has no dot (WebDataset cuts keys at the first one), no slash, no space and no control character. Names that
    are the same text (Unicode NFC) give the same key. The real name stays in the record.
    """
    if is_safe_key(name):
        return name
    normal = unicodedata.normalize("NFC", name)
    digest = hashlib.sha256(normal.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    readable = "".join(
        letter if letter in _KEEP else "-"
        for letter in unicodedata.normalize("NFKD", name)
        if not unicodedata.combining(letter)
    )
    return "-".join(part for part in (*readable[:_LONGEST_STEM].split("-"), digest) if part)


def is_safe_key(text: str) -> bool:
    """Whether the text can serve as an id as it stands."""
    return 0 < len(text) <= _LONGEST_KEY and text[0] != "-" and _KEEP.issuperset(text)


def _is_text(item: object) -> bool:
    return isinstance(item, str)


def _is_texts(item: object) -> bool:
    return isinstance(item, list) and all(map(_is_text, item))


def is_kind(item: object) -> bool:
    """Whether a value names a kind of captions, as members of shards are called by it."""
    return isinstance(item, str) and _KIND.fullmatch(item) is not None


def _are_captions(item: object) -> bool:
    return isinstance(item, list) and all(
        isinstance(pair, list) and len(pair) == 2 and is_kind(pair[0]) and _is_text(pair[1]) for pair in item
    )


def _is_size(item: object) -> bool:
    return isinstance(item, int) and not isinstance(item, bool) and item >= 0


def _is_box(item: object) -> bool:
    return item is None or (
        isinstance(item, list) and len(item) == 4 and all(isinstance(edge, (int, float)) for edge in item)
    )


# What a value must be, where it is not just text. An id becomes a file's name, so one with a path in it is refused
# here.
_FITS: dict[str, Callable[[object], bool]] = {
    "id": lambda item: isinstance(item, str) and is_safe_key(item),
    "status": lambda item: item in (USED, REFUSED),
    "width": _is_size,
    "height": _is_size,
    "crop": _is_box,
    "flags": _is_texts,
    "sides_with": _is_texts,
    "captions": _are_captions,
    "flipped": lambda item: isinstance(item, bool),
}
