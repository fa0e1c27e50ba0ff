"""Lists that pair images with captions: .jsonl, .csv, .tsv, .parquet; as a source of their own, or as metadata in any
folder of a source.

Paths of a list that is the source are relative to its folder, or absolute; those of metadata are relative to the folder
that it lies in and stay inside it. Rows that repeat a path give an image several captions: the first is taken, the
others are counted. Columns image_id (of a list that is the source) and aspect_bucket are read when they are there.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from dittool.data.source.columns import BadRow, Row, columns_of, merged_rows, row_item
from dittool.data.source.item import AUTO, Pairing, Source, SourceItem, stem_of, suffix_of
from dittool.data.source.json_lines import json_rows
from dittool.data.source.table import table_rows

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
    return json_rows(path) if path.suffix.lower() == ".jsonl" else table_rows(path, pairing)


def _has_own_name(row: Row | BadRow, pairing: Pairing) -> bool:
    return isinstance(row, dict) and bool(columns_of(tuple(row), pairing).id)
