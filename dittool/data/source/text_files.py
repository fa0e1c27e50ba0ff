"""Opening the text of a list: UTF-8, or UTF-16 as spreadsheets and PowerShell write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO


def encoding_of(raw: bytes) -> str:
    """The encoding of a text that begins with these bytes, of which four are enough: UTF-8 unless a byte order mark or
    the zeros between ASCII letters say UTF-16 or UTF-32.
    """
    return json.detect_encoding(raw[:4])


def opened_text(path: Path, line_end: str = "") -> TextIO:
    """The file with its line ends as they are; `line_end` limits them to one kind. In UTF-8 a wrong byte becomes a lone
    surrogate, so that it spoils its own line and no other; where UTF-16 is damaged, reading raises
    `UnicodeDecodeError`. Raises OSError.
    """
    with path.open("rb") as file:
        encoding = encoding_of(file.read(4))
    utf8 = encoding.startswith("utf-8")
    errors = "surrogateescape" if utf8 else "strict"
    return path.open(encoding="utf-8-sig" if utf8 else encoding, errors=errors, newline=line_end)
