"""Lists of captions in a text file that belongs to no image: Flickr's captions.txt, a table with a first line that
names its columns, and Flickr8k.token.txt, one caption a line:

    1000268201_693b08cb0e.jpg#0<tab>A child in a pink dress is climbing up a set of stairs

Whether a text is a list is told from its first lines: what does not look like one stays a caption.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from dittool.data.source.captions import are_labels
from dittool.data.source.columns import BadRow, Row, columns_of
from dittool.data.source.item import IMAGE_SUFFIXES, Pairing, shown
from dittool.data.source.table import SEPARATORS, csv_rows, header_fields
from dittool.data.source.text_files import opened_text
from dittool.errors import BadDataError

TEXT_LIST_SUFFIXES = (".txt", ".token")
_HEAD = 1 << 16  # characters
_LINES_TRIED = 20
_SUFFIXES = "|".join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))
# NAME.jpg#0<tab>caption, with a bar for the tab, or the number as a column: NAME.jpg| 0| caption
_LINE = re.compile(rf"\s*([^\t|]+?(?:{_SUFFIXES}))(?:#\d+\s+|(?:#\d+)?\s*[\t|]\s*(?:\d+\s*[\t|]\s*)?)([^\t|]*)", re.I)


def text_list(path: Path, pairing: Pairing) -> Iterator[tuple[int, Row | BadRow]] | None:
    """(line number, row) of each line; None where the text is no list. Lemmas, which Flickr8k has beside its captions
    (Flickr8k.lemma.token.txt), are none. The iterator raises `BadDataError`.
    """
    if not path.is_file() or ".lemma." in path.name.lower():
        return None
    try:
        with opened_text(path) as file:
            lines = file.read(_HEAD).split("\n")[: _LINES_TRIED + 1]
    except (OSError, UnicodeDecodeError):
        return None
    if lines and _is_header(lines[0], pairing):
        return csv_rows(path, pairing)
    found = [_LINE.fullmatch(line.rstrip("\r")) for line in lines[:_LINES_TRIED] if line.strip()]
    captions = [match[2] for match in found if match is not None]
    return _lines(path) if found and len(captions) == len(found) and not are_labels(captions) else None


def _is_header(line: str, pairing: Pairing) -> bool:
    columns = [columns_of(tuple(header_fields(line, separator)), pairing) for separator in SEPARATORS]
    return any(found.path and found.captions for found in columns)


def _lines(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    try:
        with opened_text(path) as file:
            for number, line in enumerate(file, 1):
                if match := _LINE.fullmatch(line.rstrip("\r\n")):
                    yield number, {"image_path": match[1], "caption": match[2]}
                elif line.strip():
                    yield number, BadRow(f"not NAME.jpg, a tab and a caption: {shown(line.strip())[:60]}")
    except (OSError, UnicodeDecodeError) as error:
        raise BadDataError(f"{path}: cannot be read: {error}", "check the file, and save it as UTF-8") from error
