"""Lists that pair images with captions: .jsonl, .csv, .tsv, .parquet, lists in JSON and in texts; as a source of their
own, or as metadata in any folder of a source.

Paths of a list that is the source are relative to its folder, or absolute; those of metadata are relative to the folder
that it lies in and stay inside it. Where none of them leads to an image, by_name.py says what they mean. Rows that
repeat a path give an image several captions: the first is taken, the others are counted. Columns image_id (of a list
that is the source) and aspect_bucket are read when they are there.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from dittool.data.source.by_name import ImagesByName, Placed, placed
from dittool.data.source.columns import BadRow, Row, columns_of, merged_rows, row_item
from dittool.data.source.folder import walk
from dittool.data.source.item import (
    AUTO,
    IMAGE_SUFFIXES,
    LONGEST_LINE,
    Pairing,
    Source,
    stem_of,
    suffix_of,
)
from dittool.data.source.json_lists import json_list
from dittool.data.source.table import table_rows
from dittool.data.source.text_files import opened_text
from dittool.data.source.text_lists import TEXT_LIST_SUFFIXES, text_list
from dittool.errors import BadDataError

_ROWS_TRIED = 1000  # of a list that is the source, before its images are looked for elsewhere
LIST_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
_METADATA_STEMS = ("metadata", "captions")


def is_metadata(path: str) -> bool:
    """Whether a file is a list for the folder that it lies in, by its name: metadata.jsonl, captions.csv …"""
    return suffix_of(path) in LIST_SUFFIXES and stem_of(posixpath.basename(path)).lower() in _METADATA_STEMS


def list_as_source(path: Path, pairing: Pairing = AUTO) -> Source:
    """The rows of a list. Where none of the first paths is there, they are looked for below the list's folder. Raises
    `BadDataError` when it cannot be read or lacks a column, `UsageError` when Parquet support is not installed.
    """
    items = [
        (row_item(f"{path.name}:{number}", row, pairing), _has_own_name(row, pairing))
        for number, row in _rows(path, pairing)
    ]
    elsewhere: dict[str, str] = {}
    first = [item.image for item, _ in items[:_ROWS_TRIED] if item.image]
    if first and not any((path.parent / image).exists() for image in first):
        images = ImagesByName(walk(path.parent).having(*IMAGE_SUFFIXES))
        found = placed([item for item, _ in items], path.name, images)
        items = [(item, alone) for item, (_, alone) in zip(found.items, items, strict=True)]
        elsewhere = {path.name: found.example} if found.example else {}
    kind = "manifest" if path.suffix.lower() == ".jsonl" else "table"
    return Source(kind, path.parent, merged_rows(items), elsewhere=elsewhere)


def metadata_items(root: Path, path: str, pairing: Pairing, images: ImagesByName) -> Placed:
    """The rows of a list at `path`, relative to the source's root; none where a JSON or a text is no list. Raises as
    `list_as_source` does.
    """
    folder = posixpath.dirname(path)
    items = [row_item(f"{path}:{number}", row, pairing, folder) for number, row in _rows(root / path, pairing)]
    found = placed(items, path, images)
    return replace(found, items=merged_rows([(item, False) for item in found.items]))


def _rows(path: Path, pairing: Pairing) -> Iterable[tuple[int, Row | BadRow]]:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return enumerate(json_list(path, pairing) or (), 1)
    if suffix in TEXT_LIST_SUFFIXES:
        return text_list(path, pairing) or ()
    return _json_rows(path) if suffix == ".jsonl" else table_rows(path, pairing)


def _has_own_name(row: Row | BadRow, pairing: Pairing) -> bool:
    return isinstance(row, dict) and bool(columns_of(tuple(row), pairing).id)


def _json_rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    """(line number, object) for each line that is not blank; `BadRow` for those that are not a JSON object."""
    try:
        with opened_text(path, line_end="\n") as file:
            number = 0
            while line := _utf8(file.readline(LONGEST_LINE + 1)):
                number += 1
                if len(line) > LONGEST_LINE:
                    while line and not line.endswith(b"\n"):
                        line = _utf8(file.readline(LONGEST_LINE))
                    yield number, BadRow(f"longer than {LONGEST_LINE:,} bytes")
                elif line.strip():
                    yield number, _json_object(line)
    except UnicodeDecodeError as error:
        raise BadDataError(f"{path}: damaged {error.encoding} text: {error.reason}", "save it as UTF-8") from error
    except OSError as error:
        raise BadDataError(f"{path}: cannot be read: {error.strerror}", "check the path and its permissions") from error


def _utf8(line: str) -> bytes:
    return line.encode("utf-8", "surrogateescape")


def _json_object(line: bytes) -> Row | BadRow:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(f"byte 0x{line[error.start]:02x} at offset {error.start} is not UTF-8")
    except (ValueError, RecursionError) as error:
        return BadRow(f"not valid JSON: {error}")
    return value if isinstance(value, dict) else BadRow(f"not a JSON object but {type(value).__name__}")
