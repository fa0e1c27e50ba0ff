"""Lists that pair images with captions: .jsonl, .csv, .tsv, .parquet; as a source of their own, or as metadata in any
folder of a source.

Paths of a list that is the source are relative to its folder, or absolute; those of metadata are relative to the folder
that it lies in and stay inside it. Rows that repeat a path give an image several captions: the first is taken, the
others are counted. Columns image_id (of a list that is the source) and aspect_bucket are read when they are there.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from pathlib import Path

from dittool.data.source.columns import BadRow, Row, columns_of, merged_rows, row_item
from dittool.data.source.item import AUTO, LONGEST_LINE, Pairing, Source, SourceItem, stem_of, suffix_of
from dittool.data.source.table import table_rows
from dittool.errors import BadDataError

LIST_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
_METADATA_STEMS = ("metadata", "captions")


def is_metadata(path: str) -> bool:
    """Whether a file is a list for the folder that it lies in, by its name: metadata.jsonl, captions.csv …"""
    return suffix_of(path) in LIST_SUFFIXES and stem_of(posixpath.basename(path)).lower() in _METADATA_STEMS


def list_as_source(path: Path, pairing: Pairing = AUTO) -> Source:
    """The rows of a list. Raises `BadDataError` when it cannot be read or lacks a column, `UsageError` when Parquet
    support is not installed.
    """
    items = [
        (row_item(f"{path.name}:{number}", row, pairing), _has_own_name(row, pairing))
        for number, row in _rows(path, pairing)
    ]
    return Source("manifest" if path.suffix.lower() == ".jsonl" else "table", path.parent, merged_rows(items))


def metadata_items(root: Path, path: str, pairing: Pairing) -> list[SourceItem]:
    """The rows of metadata at `path`, relative to the source's root. Raises as `list_as_source` does."""
    folder = posixpath.dirname(path)
    return merged_rows(
        [(row_item(f"{path}:{number}", row, pairing, folder), False) for number, row in _rows(root / path, pairing)]
    )


def _rows(path: Path, pairing: Pairing) -> Iterator[tuple[int, Row | BadRow]]:
    return _json_rows(path) if path.suffix.lower() == ".jsonl" else table_rows(path, pairing)


def _has_own_name(row: Row | BadRow, pairing: Pairing) -> bool:
    return isinstance(row, dict) and bool(columns_of(tuple(row), pairing).id)


def _json_rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    """(line number, object) for each line that is not blank; `BadRow` for those that are not a JSON object."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(LONGEST_LINE)
                    yield number, BadRow(f"longer than {LONGEST_LINE:,} bytes")
                elif line.strip():
                    yield number, _json_object(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
    except OSError as error:
        raise BadDataError(f"{path}: cannot be read: {error.strerror}", "check the path and its permissions") from error


def _json_object(line: bytes) -> Row | BadRow:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(f"byte 0x{line[error.start]:02x} at offset {error.start} is not UTF-8")
    except (ValueError, RecursionError) as error:
        return BadRow(f"not valid JSON: {error}")
    return value if isinstance(value, dict) else BadRow(f"not a JSON object but {type(value).__name__}")
