"""What a listed source is made of: one item an input, and the rules by which files count as pictures or captions."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from dittool.config.features import Data

_READ_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
)
_READ_WITH_EXTRAS = frozenset((".heic", ".heif", ".hif", ".jxl"))
_UNREAD_SUFFIXES = frozenset((".jp2", ".svg", ".psd", ".tga", ".ico", ".eps", ".fits"))
IMAGE_SUFFIXES = (
    _READ_SUFFIXES | _READ_WITH_EXTRAS | _UNREAD_SUFFIXES
)  # a picture that we do not read is refused by name, not passed over
CAPTION_SUFFIXES = (".txt", ".caption")  # of the text beside an image
LONGEST_LINE = 1 << 20  # bytes of one line of a list


@dataclass(frozen=True)
class Pairing:
    """What pairs images with captions, as the configuration asks for it: `data.captions`, `.image_column`,
    `.caption_column`.
    """

    captions: str = "auto"
    image_column: str = ""  # of lists; "": the usual names
    caption_column: str = ""
    caption_columns: tuple[str, ...] = ()  # several: each holds a kind of caption
    several: str = "first"  # `data.several_captions`
    scores: tuple[tuple[str, float, float], ...] = ()  # of lists: column, least and most of `data.keep.scores`

    @classmethod
    def of(cls, data: Data) -> Pairing:
        column = data.caption_column or ""
        one, several = (column, ()) if isinstance(column, str) else ("", tuple(column))
        wanted = (data.keep.scores if data.keep is not None else None) or {}
        scores = tuple((name, least, most) for name, (least, most) in wanted.items())
        return cls(data.captions, data.image_column or "", one, several, data.several_captions, scores)

    @property
    def caption_key(self) -> str:
        """What a caption is filed under that its place says and no name."""
        return self.caption_column or "".join(self.caption_columns[:1]) or "caption"

    @property
    def keeps_several(self) -> bool:
        """Whether an image may keep more than one caption."""
        return bool(self.caption_columns) or self.several != "first"

    def reads(self, kind: str) -> bool:
        """Whether captions of this kind are looked at: "txt", "caption", "metadata", "coco"."""
        return self.captions in ("auto", kind)


AUTO = Pairing()


@dataclass(frozen=True)
class SourceItem:
    """One input. When `reason` is set it cannot be used, whatever else stands here."""

    name: str  # what the source calls it: path without suffix, image_id, or key in a tar
    # path of the image: relative to the source's root, or absolute as a list gave it; "NAME.tar/KEY.jpg" lies in a tar
    # (a zip likewise), "NAME.parquet/COLUMN/ROW" in a table
    image: str = ""
    # a Path or an ArchiveMember to read it from, or what stands in the list: text, or a list of texts; not checked yet
    caption: object = ""
    bucket_hint: str = ""  # "WIDTHxHEIGHT" as a list gave it
    cls: str = ""  # class, in a folder of class folders
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Source:
    """A listed source."""

    # "folder", "classes", "metadata", "coco", "manifest", "table"; of files that hold many samples "tar", "zip",
    # "parquet", "arrow", or "containers" for several kinds of them
    kind: str
    root: Path  # image paths are relative to it
    items: list[SourceItem]  # in the order of their names
    ignored: dict[str, int] = field(default_factory=dict)  # what else lies there: suffix or kind → how many
    # where the captions of a folder stand: ".txt", "metadata.jsonl" … → the images that have theirs there
    answered: dict[str, list[str]] = field(default_factory=dict)
    # lists whose paths lead nowhere, so that images are found by the ends of their paths → one of them, in words
    elsewhere: dict[str, str] = field(default_factory=dict)


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
