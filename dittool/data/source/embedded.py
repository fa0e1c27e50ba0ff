"""Tables that hold the pictures themselves: Parquet as the hub and img2dataset write it, Arrow files of `datasets`.

A picture is a cell of bytes, or of a struct with `bytes` as the hub has it. Its path is written FILE/COLUMN/ROW, the
row counted from 0: `train-0.parquet/image/00000017`. Pictures are read where they stand, a few rows at a time; nothing
is copied, and no row group or file is held whole.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from dittool.data.source.captions import CaptionRefused
from dittool.data.source.columns import PATH_COLUMNS, captions_in, columns_of, score_refusal, what_is_missing
from dittool.data.source.images import LARGEST_FILE, ImageRefused
from dittool.data.source.item import IMAGE_SUFFIXES, Pairing, Source, SourceItem, shown, suffix_of
from dittool.data.source.table import BadRow, arrow_errors_explained, rows_of_batches
from dittool.errors import BadDataError

PARQUET_SUFFIX, ARROW_SUFFIX = ".parquet", ".arrow"
EMBEDDED_SUFFIXES = (PARQUET_SUFFIX, ARROW_SUFFIX)
STATE = "state.json"  # of a folder that `datasets` saved: which files are its data
_KEYS = ("image_id", "key")  # columns whose values name the pictures, where they are there; key is img2dataset's
_ROWS_AT_ONCE, _BATCHES_KEPT = 4, 16  # rows of pictures that are held: threads ask for them in about their order
_LISTED_AT_ONCE = 1024  # rows without their pictures
_BUFFER = 1 << 20  # bytes of a Parquet column that are read at a time


def picture_column(path: Path, pairing: Pairing) -> str:
    """The column of a table that holds pictures; "" where none does. Raises `BadDataError`, `UsageError` as a table
    that is read.
    """
    with arrow_errors_explained(path):
        schema = _opened(path).schema
        there = [name for name in schema.names if _is_picture(schema.field(name).type)]
    if pairing.image_column:
        return pairing.image_column if pairing.image_column in there else ""
    usual = [*PATH_COLUMNS, *(suffix.removeprefix(".") for suffix in sorted(IMAGE_SUFFIXES))]  # img2dataset's: jpg
    found = [name for usual_name in usual for name in there if name.lower() == usual_name]
    found += [name for name in there if _is_struct(schema.field(name).type)]
    if not found and not columns_of(tuple(schema.names), pairing).path:
        found = there
    return "".join(found[:1])


def embedded_source(path: Path, pairing: Pairing) -> Source:
    """The rows of a table whose column `picture_column` is."""
    kind = "parquet" if suffix_of(path.name) == PARQUET_SUFFIX else "arrow"
    return Source(kind, path.parent, embedded_items(path, path.name, pairing))


def embedded_items(path: Path, shown_as: str, pairing: Pairing) -> list[SourceItem]:
    """One item a row, in order, images written `shown_as`/COLUMN/ROW. A row is called by its image_id or key, or its
    number. Raises `BadDataError` where the table cannot be read or has no captions.
    """
    picture = picture_column(path, pairing)
    with arrow_errors_explained(path):
        table = _opened(path)
        present = tuple(name for name in table.schema.names if name != picture)
        found = columns_of(present, pairing)
        captions = found.captions
        if not captions:
            missing, hint = what_is_missing(replace(found, path=picture), present, pairing)
            raise BadDataError(f"{path}: {missing}", hint)
        key = next((name for name in _KEYS if name in present), "")
        status = "status" if "status" in present and "error_message" in present else ""  # img2dataset's
        read = list(dict.fromkeys(name for name in (*captions, key, status, *found.scores) if name))
        items = []
        for number, row in enumerate(rows_of_batches(read, table.batches(read, _LISTED_AT_ONCE))):
            where = f"{shown_as}/{_escaped(picture)}/{number:08d}"
            name = row.get(key) if isinstance(row, dict) else None
            item = SourceItem(str(name) if name not in (None, "") else f"{number:08d}", where)
            items.append(_with_caption(item, row, captions, status, pairing))
    return items


def read_embedded_image(table: Path, place: str) -> bytes:
    """The picture at COLUMN/ROW of a table. Raises `ImageRefused`."""
    where = str(table / place)
    column, _, row = place.rpartition("/")
    try:
        status = table.stat()
        with arrow_errors_explained(table):
            data = _pictures(table, unquote(column), status.st_size, status.st_mtime_ns).picture(int(row))
    except (IndexError, KeyError, ValueError) as error:
        raise ImageRefused("no-image", "the table has no such column or row", where) from error
    except OSError as error:
        raise ImageRefused("unreadable", f"the table cannot be read: {error.strerror}", where) from error
    except BadDataError as error:  # it was whole when it was listed
        raise ImageRefused("unreadable", error.message, where) from error
    if data is None:
        raise ImageRefused("no-image", "the row holds no picture", where)
    if len(data) > LARGEST_FILE:
        raise ImageRefused("too-large", f"{len(data):,} bytes, an image file has at most {LARGEST_FILE:,}", where)
    return data


def data_files(folder: Path) -> list[str] | None:
    """The files that hold the data of a folder that `datasets` saved, by its state.json; None where it saved none.
    Raises `BadDataError` where one of them is missing.
    """
    try:
        state = json.loads((folder / STATE).read_bytes())
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise BadDataError(
            f"{folder}: {len(missing)} of {len(names)} data files that its {STATE} lists are missing, the first is"
            f" {shown(missing[0])}",
            "copy the folder again, or save the data set again with save_to_disk",
        )
    return names


def _with_caption(
    item: SourceItem, row: dict[str, Any] | BadRow, captions: tuple[str, ...], status: str, pairing: Pairing
) -> SourceItem:
    if isinstance(row, BadRow):
        return replace(item, reason="bad-line", detail=row.why)
    if status and row[status] not in ("success", None):
        return replace(item, reason="no-image", detail=f"it was not fetched: {shown(str(row[status]))[:80]}")
    reason, detail = score_refusal(row, pairing)
    if reason:
        return replace(item, reason=reason, detail=detail)
    try:
        return replace(item, caption=captions_in(row, captions, pairing))
    except CaptionRefused as refused:
        further = ": name the one that is meant with data.caption_column" if refused.reason == "two-captions" else ""
        return replace(item, reason=refused.reason, detail=refused.detail + further)


def _escaped(column: str) -> str:
    return quote(column, safe="").replace(".", "%2E")


# --- rows, where they stand ---


class _Parquet:
    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path, page_checksum_verification=True, buffer_size=_BUFFER)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self._starts = [0]
        for group in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def batches(self, columns: list[str], rows: int, first: int = 0) -> Iterator[Any]:
        """Batches of at most so many rows, from the row group of the first row on."""
        groups = list(range(self._group(first), len(self._starts) - 1))
        return self._file.iter_batches(batch_size=rows, row_groups=groups, columns=columns)

    def start(self, row: int) -> int:
        """From which row `batches` would begin."""
        return self._starts[self._group(row)]

    def _group(self, row: int) -> int:
        return max(bisect_right(self._starts, row) - 1, 0)


class _Arrow:
    """The stream that `datasets` writes, or a file with a footer, mapped into memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._source = pyarrow.memory_map(str(path))
        self._is_file = self._source.read(6) == b"ARROW1"
        self.schema = self._reader().schema
        self._length = -1

    def __len__(self) -> int:
        if self._length < 0:
            self._length = sum(batch.num_rows for batch in self._all())
        return self._length

    def batches(self, columns: list[str], rows: int, first: int = 0) -> Iterator[Any]:
        """Batches of at most so many rows, from the first one on."""
        for batch in self._all():
            some = batch.select([name.partition(".")[0] for name in columns])
            some.validate(full=True)  # offsets in a stranger's file may lead anywhere
            for begin in range(0, some.num_rows, rows):
                yield some.slice(begin, rows)

    def start(self, row: int) -> int:
        return 0

    def _reader(self) -> Any:
        from pyarrow import ipc

        self._source.seek(0)
        return ipc.open_file(self._source) if self._is_file else ipc.open_stream(self._source)

    def _all(self) -> Iterator[Any]:
        reader = self._reader()
        return (reader.get_batch(i) for i in range(reader.num_record_batches)) if self._is_file else iter(reader)


class _Pictures:
    """Pictures of one column, by row: reads on from where the last one stood, and keeps the last few."""

    def __init__(self, path: Path, column: str) -> None:
        self._table, self._column, self._lock = _opened(path), column, threading.Lock()
        kind = self._table.schema.field(column).type
        self._leaf = f"{column}.bytes" if _is_struct(kind) else column
        self._kept: deque[tuple[int, Any]] = deque(maxlen=_BATCHES_KEPT)  # first row, cells
        self._rest: Iterator[Any] = iter(())
        self._next = len(self._table)  # row that `_rest` begins with

    def picture(self, row: int) -> bytes | None:
        """Raises IndexError for a row that is not there."""
        if not 0 <= row < len(self._table):
            raise IndexError(row)
        with self._lock:
            for first, cells in self._kept:
                if first <= row < first + len(cells):
                    return self._bytes(cells[row - first])
            if row < self._next or self._table.start(row) > self._next:
                self._next = self._table.start(row)
                self._rest = self._table.batches([self._leaf], _ROWS_AT_ONCE, self._next)
            while self._next <= row:
                cells = next(self._rest).column(0)
                self._kept.append((self._next, cells))
                self._next += len(cells)
            first, cells = self._kept[-1]
            return self._bytes(cells[row - first])

    def _bytes(self, cell: Any) -> bytes | None:
        value = cell.as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        return value if isinstance(value, bytes) else None


def _opened(path: Path) -> _Parquet | _Arrow:
    return _Parquet(path) if suffix_of(path.name) == PARQUET_SUFFIX else _Arrow(path)


@lru_cache(maxsize=16)
def _pictures(path: Path, column: str, size: int, modified: int) -> _Pictures:
    """`size` and `modified` tell a table that was replaced from the one that was read before."""
    return _Pictures(path, column)


def _is_struct(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_struct(kind))


def _is_picture(kind: Any) -> bool:
    """Whether a column of this type may hold pictures: bytes, or a struct of them as the hub has it."""
    from pyarrow import types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_picture(kind.field("bytes").type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))
