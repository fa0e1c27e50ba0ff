"""Captions in the format of COCO: one JSON object with `images` (id, file_name) and `annotations` (image_id, caption).

The file does not say in which folder its images lie: by_name.py says which a `file_name` means. Of several captions of
an image the first is taken.
"""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dittool.data.source.by_name import ImagesByName
from dittool.data.source.item import SourceItem, shown, stem_of
from dittool.errors import BadDataError

COCO_SUFFIX = ".json"
_LARGEST = 1 << 30  # bytes; captions_train2017.json has 92 million
_HEAD = 1 << 16  # bytes in which a COCO file names one of its two lists
_BLOCK = 1 << 22


@dataclass(frozen=True)
class CocoCaptions:
    """What a file of captions says about the images of a source."""

    items: list[SourceItem]
    found: int = 0  # of its images, those that are in the source
    stray: int = 0  # captions of images that the file does not list
    absent: int = 0  # its images that are not in the source


def coco_captions(root: Path, path: str, images: ImagesByName) -> CocoCaptions | None:
    """The captions of the file at `path`, relative to the source's root; None when it is another kind of JSON.

    Raises `BadDataError` for a file that begins as COCO's do and is no JSON, or is too large.
    """
    try:
        value = _parsed(root / path) if _may_be_coco(root / path) else None
    except OSError as error:
        raise BadDataError(
            f"{root / path}: cannot be read: {error.strerror}", "check the path and its permissions"
        ) from error
    if not isinstance(value, dict) or not all(isinstance(value.get(key), list) for key in ("images", "annotations")):
        return None
    captions: dict[Any, list[Any]] = {}  # id of the image → its captions, in the file's order
    for note in value["annotations"]:
        if isinstance(note, dict) and "caption" in note and _is_id(note.get("image_id")):
            captions.setdefault(note["image_id"], []).append(note["caption"])
    if not captions:
        return None
    ids = Counter(row["id"] for row in value["images"] if isinstance(row, dict) and _is_id(row.get("id")))
    items, found = [], 0
    for number, row in enumerate(value["images"]):
        item, there = _item(f"{path}:images[{number}]", path, row, captions, images)
        if not item.reason and ids[row["id"]] > 1:
            item = replace(item, reason="bad-line", detail=f"{ids[row['id']]} images have the id {row['id']!r}")
        items.append(item)
        found += there
    stray = sum(len(texts) for image, texts in captions.items() if image not in ids)
    return CocoCaptions(items, found, stray, len(items) - found)


def _item(
    where: str, path: str, row: Any, captions: dict[Any, list[Any]], images: ImagesByName
) -> tuple[SourceItem, bool]:
    """(one entry of `images` as an item, whether its image is in the source)."""
    name = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(name, str) or not name or not _is_id(row.get("id")):
        return SourceItem(where, reason="bad-line", detail="id or file_name is missing or of the wrong kind"), False
    name = posixpath.normpath(name)
    if name.startswith("/") or ".." in name.split("/"):
        return SourceItem(where, reason="outside-source", detail="file_name leads out of the folder"), False
    meant = images.meant(path, name)
    if len(meant) > 1:
        both = f"{shown(meant[0])} and {shown(meant[1])}"
        return SourceItem(where, reason="two-images", detail=f"{shown(name)} may be {both}"), True
    image = meant[0] if meant else posixpath.join(posixpath.dirname(path), name)
    texts = captions.get(row["id"])
    item = SourceItem(stem_of(image), image, texts or "")
    if not texts:
        item = replace(item, reason="no-caption", detail=f"{shown(posixpath.basename(path))} has no caption of it")
    elif not meant:
        item = replace(item, reason="no-image", detail=f"no image of the source is called {shown(name)}")
    return item, bool(meant)


def _may_be_coco(path: Path) -> bool:
    """A look at the file's bytes: whether it is worth parsing. Files of boxes and masks, which are many times larger,
    hold no captions.
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = _ascii(file.read(_HEAD))
        if b'"images"' not in head and b'"annotations"' not in head:
            return False
        file.seek(0)
        before = b""
        while block := _ascii(file.read(_BLOCK)):
            if b'"caption"' in before + block:
                return True
            before = block[-10:]
    return False


def _ascii(raw: bytes) -> bytes:
    """Without the zeros that UTF-16 has between letters."""
    return raw.replace(b"\0", b"")


def _parsed(path: Path) -> Any:
    size = path.stat().st_size
    if size > _LARGEST:
        raise BadDataError(
            f"{path}: {size:,} bytes of COCO captions, at most {_LARGEST:,} are read",
            "split it, or write its captions as metadata.jsonl: file_name and text on each line",
        )
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        why = ascii(str(error))[1:-1][:200]
        raise BadDataError(
            f"{path}: begins as COCO captions do and cannot be read as JSON: {why}",
            "copy it again, or take it out of the source",
        ) from error


def _is_id(value: object) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)
