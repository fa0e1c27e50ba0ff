"""What a listed source is made of: one item an input, and the rules by which files count as pictures or captions."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dittool.data.source.captions import CaptionRefused, caption_field

_READ_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff")
)
_UNREAD_SUFFIXES = frozenset(
    (".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".psd", ".tga", ".ico", ".eps", ".fits")
)
IMAGE_SUFFIXES = _READ_SUFFIXES | _UNREAD_SUFFIXES  # a picture that we do not read is refused by name, not passed over
CAPTION_SUFFIX = ".txt"
LONGEST_LINE = 1 << 20  # bytes of one line of a list


@dataclass(frozen=True)
class SourceItem:
    """One input. When `reason` is set it cannot be used, whatever else stands here."""

    name: str  # what the source calls it: path without suffix, image_id, or key in a tar
    # path of the image: relative to the source's root, or absolute as a list gave it; "NAME.tar/KEY.jpg" lies in a tar
    image: str = ""
    # a Path or a TarMember to read it from, or what stands in the list: text, or a list of texts; not checked yet
    caption: object = ""
    bucket_hint: str = ""  # "WIDTHxHEIGHT" as a list gave it
    cls: str = ""  # class, in a folder of class folders
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Source:
    """A listed source."""

    kind: str  # "folder", "classes", "metadata", "manifest", "table" or "tar"
    root: Path  # image paths are relative to it
    items: list[SourceItem]  # in the order of their names
    ignored: dict[str, int] = field(default_factory=dict)  # what else lies there: suffix or kind → how many


def with_caption_of(item: SourceItem, row: Mapping[str, object]) -> SourceItem:
    """The item with the caption of its row in a list, or refused for what is wrong with it."""
    try:
        return replace(item, caption=caption_field(row))
    except CaptionRefused as refused:
        return replace(item, reason=refused.reason, detail=refused.detail)


def suffix_of(path: str) -> str:
    """The last suffix in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()


def stem_of(path: str) -> str:
    """The path without its last suffix."""
    return os.path.splitext(path)[0]


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def shown(path: str) -> str:
    """For messages: control characters and bytes that are no text are escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in path)
