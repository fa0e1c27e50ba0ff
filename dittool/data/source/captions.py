"""Captions: from the bytes of a text file or a value in a list to one clean line of text, or a reason why not.

A text file is one caption, however many lines it has; a list in JSON or Parquet is several. Where one is asked for,
the first of several is taken: `choose_caption` says how many others there are, and the record's flag
`further-captions:N` keeps the number. several.py keeps all.

A caption that was damaged on its way (wrong encoding, control characters) is refused, not repaired: guessing would
train on the guess. An empty caption is refused too: the sample would be an unconditional one, and how many of those
there are is for `[dropout]` to say.
"""

from __future__ import annotations

import re
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dittool.errors import BadDataError

LARGEST_CAPTION = 1 << 16  # bytes of UTF-8; 512 text tokens, all that an encoder reads, are about 2,500
LARGEST_JSON = 1 << 20  # bytes of a .json that holds a caption among other things
FURTHER = "further-captions"  # the flag is FURTHER:N, N the captions that were not taken
_SPACES = "\t\n\r"  # the control characters that a text may hold
# These reorder what is shown: the text that a person reads is not the one that is trained on. Plain marks (U+200E,
# U+200F) are part of ordinary Arabic and Hebrew and stay.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


@dataclass(frozen=True)
class KindedTexts:
    """What stands in the columns or fields that are named as several captions: (kind, value), not checked yet."""

    values: tuple[tuple[str, object], ...]


class CaptionRefused(BadDataError):
    """A caption that cannot be used: `reason` is a short code for counting, `detail` says the same in words."""

    def __init__(self, reason: str, detail: str, where: str = "") -> None:
        super().__init__(
            f"{where}: {detail}" if where else f"caption: {detail}",
            "correct the caption, or take the image out of the source",
        )
        self.reason, self.detail = reason, detail


def read_caption(raw: bytes) -> str:
    """The caption in the bytes of a `.txt` file: strict UTF-8, byte order mark dropped, lines joined. Raises
    `CaptionRefused`.
    """
    return check_caption(caption_text(raw))


def caption_text(raw: bytes) -> str:
    """The text of a `.txt` file as it stands there. Raises `CaptionRefused`."""
    if len(raw) > LARGEST_CAPTION:
        raise CaptionRefused("caption-too-long", f"{len(raw):,} bytes, a caption has at most {LARGEST_CAPTION:,}")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CaptionRefused("caption-not-utf8", "UTF-16 text; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionRefused(
            "caption-not-utf8", f"byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8"
        ) from error


def read_caption_file(path: Path) -> str:
    """`read_caption` of a file. Raises `CaptionRefused`."""
    return read_caption(read_text_bytes(path))


def read_text_bytes(path: Path) -> bytes:
    """The bytes of a caption's file, which is not read when it is too large or not a regular file. Raises
    `CaptionRefused`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CaptionRefused("caption-unreadable", "not a regular file", str(path))
        with path.open("rb") as file:
            raw = file.read(LARGEST_CAPTION + 1)
    except OSError as error:
        raise CaptionRefused(
            "caption-unreadable", f"the caption's file cannot be read: {error.strerror}", str(path)
        ) from error
    if len(raw) > LARGEST_CAPTION:
        raise CaptionRefused(
            "caption-too-long",
            f"{max(status.st_size, len(raw)):,} bytes, a caption has at most {LARGEST_CAPTION:,}",
            str(path),
        )
    return raw


def caption_in(row: Mapping[str, object], columns: Sequence[str] = ("caption", "text")) -> object:
    """What stands under one of the columns of a row, not checked yet. Raises `CaptionRefused`: under none of them does,
    or under several, and they differ.
    """
    found = [(column, row[column]) for column in columns if row.get(column) is not None]
    if not found:
        raise CaptionRefused("no-caption", f"nothing under {' or '.join(columns)} in it")
    first, value = found[0]
    for column, other in found[1:]:
        if other != value:
            raise CaptionRefused("two-captions", f"{first} and {column} differ")
    return value


def choose_caption(value: object) -> tuple[str, int]:
    """The caption that is taken of a value from a list, and how many others there are: of several the first. Raises
    `CaptionRefused`.
    """
    if not isinstance(value, list):
        return check_caption(value), 0
    if not value:
        raise CaptionRefused("empty-caption", "the list of captions is empty")
    if strange := [item for item in value if not isinstance(item, str)]:
        raise CaptionRefused(
            "caption-not-text", f"a list of captions holds texts only, this one {type(strange[0]).__name__} too"
        )
    return check_caption(value[0]), len(value) - 1


def are_labels(texts: Sequence[str]) -> bool:
    """Whether texts that nothing calls captions are names of classes or numbers: most are one word of ASCII. Other
    scripts have no spaces.
    """
    return 2 * sum(" " not in text.strip() and text.isascii() for text in texts) >= len(texts)


def caption_or_none(caption: object) -> str | None:
    """The caption as it would be used; None when it could not be."""
    if isinstance(caption, KindedTexts):
        return next((text for _, value in caption.values if (text := caption_or_none(value)) is not None), None)
    try:
        return read_caption_file(caption) if isinstance(caption, Path) else choose_caption(caption)[0]
    except CaptionRefused:
        return None


def check_caption(value: object) -> str:
    """The caption in a value from a list: NFC, white space collapsed to single spaces. Raises `CaptionRefused`.

    Refused: anything but text, control characters other than tab and line ends, lone surrogates, bidirectional
    overrides, text in which nothing can be seen.
    """
    if not isinstance(value, str):
        raise CaptionRefused("caption-not-text", f"a caption is text, not {type(value).__name__}")
    if 4 * len(value) > LARGEST_CAPTION and len(value.encode("utf-8", "surrogatepass")) > LARGEST_CAPTION:
        raise CaptionRefused(
            "caption-too-long", f"{len(value):,} characters, a caption has at most {LARGEST_CAPTION:,} bytes"
        )
    for position, letter in enumerate(value):
        category = unicodedata.category(letter)
        if category == "Cs" or letter in _REORDERING or (category == "Cc" and letter not in _SPACES):
            raise CaptionRefused(
                "caption-control", f"U+{ord(letter):04X} at character {position} has no place in a caption"
            )
    caption = " ".join(unicodedata.normalize("NFC", value).split())
    if not caption:
        raise CaptionRefused("empty-caption", "the caption is empty")
    if not any(map(_is_seen, caption)):
        kinds = ", ".join(sorted({f"U+{ord(letter):04X}" for letter in caption}))
        raise CaptionRefused("empty-caption", f"nothing in the caption can be seen: {kinds[:80]}")
    return caption


def _is_seen(letter: str) -> bool:
    """Whether a character leaves a mark of its own. Formatting and space do not, nor do `_BLANK`, which Unicode files
    under letters, signs and accents: fillers, the blank Braille cell, joiners and variation selectors.
    """
    return not (unicodedata.category(letter) in ("Cf", "Cc", "Zs", "Zl", "Zp") or _BLANK.fullmatch(letter))
