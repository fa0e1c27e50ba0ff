"""Tables as sources: .csv (comma), .tsv (tab) and .parquet with a column of image paths and a column of captions.

Paths are relative to the table's folder, or absolute. A Parquet cell with a list of texts, and rows that repeat a path,
give an image several captions: the first is taken, the others are counted. Columns image_id and aspect_bucket are read
when they are there.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from dittool.data.source.item import LONGEST_LINE, Source, SourceItem, stem_of, with_caption_of
from dittool.errors import BadDataError, UsageError

PATH_COLUMNS = ("image_path", "file_name", "path", "image")  # the first that is there is read
CAPTION_COLUMNS = ("caption", "text")
_ID_COLUMN, _BUCKET_COLUMN = "image_id", "aspect_bucket"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST_FIELD = 1 << 17  # characters, twice what a caption may have
_ROWS_AT_ONCE = 1024
INSTALL_PARQUET = "pip install 'pyarrow>=23.0.1'"  # as in pyproject.toml

Row = dict[str, Any]  # column → value, or a `_BadRow` instead of it


@dataclass(frozen=True)
class _BadRow:
    why: str


def table_source(path: Path) -> Source:
    """The rows of a table. Raises `BadDataError` when it cannot be read or lacks a column, `UsageError` when
    Parquet support is not installed.
    """
    rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path)
    items: list[SourceItem] = []
    by_path: dict[str, int] = {}  # where no image_id tells rows apart: path → place in `items`
    for number, row in rows:
        item = _item(f"{path.name}:{number}", row)
        named = isinstance(row, dict) and _ID_COLUMN in row
        if item.image and not named and item.image in by_path:
            first = by_path[item.image]
            items[first] = _with_further_caption(items[first], item)
            continue
        by_path.setdefault(item.image, len(items))
        items.append(item)
    return Source("table", path.parent, items)


def _item(where: str, row: Row | _BadRow) -> SourceItem:
    if isinstance(row, _BadRow):
        return SourceItem(where, reason="bad-line", detail=row.why)
    path_column = next(column for column in PATH_COLUMNS if column in row)
    image, hint = row[path_column], row.get(_BUCKET_COLUMN)
    name = row.get(_ID_COLUMN, stem_of(image) if isinstance(image, str) else None)
    name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
    if not isinstance(name, str) or not name:
        missing = _ID_COLUMN if _ID_COLUMN in row else path_column
        return SourceItem(where, reason="bad-line", detail=f"{missing} is missing or not text")
    if not isinstance(image, str) or not image:
        return SourceItem(where, reason="bad-line", detail=f"{path_column} is missing or not text")
    return with_caption_of(SourceItem(name, image, bucket_hint=hint if isinstance(hint, str) else ""), row)


def _with_further_caption(first: SourceItem, again: SourceItem) -> SourceItem:
    """An image's item with the caption of one more row. A row without a caption adds none."""
    if again.reason:
        return first
    if first.reason:  # the first row had no caption
        return again
    texts = first.caption if isinstance(first.caption, list) else [first.caption]
    return replace(first, caption=[*texts, *(again.caption if isinstance(again.caption, list) else [again.caption])])


def _require_columns(path: Path, present: Sequence[str], hint: str) -> None:
    """Raises `BadDataError` when the path or the caption column is missing, or a name stands there twice."""
    listed = ", ".join(ascii(column)[1:-1] for column in present) or "none"
    for what, wanted in (("image paths", PATH_COLUMNS), ("captions", CAPTION_COLUMNS)):
        if not set(wanted) & set(present):
            raise BadDataError(
                f"{path}: no column of {what}: looked for {', '.join(wanted)}; its columns are {listed}", hint
            )
    if twice := [column for column in dict.fromkeys(present) if present.count(column) > 1]:
        raise BadDataError(
            f"{path}: column {', '.join(twice)} stands there twice: {listed}", "rename or remove one of them"
        )


# --- .csv and .tsv ---


def _csv_rows(path: Path) -> Iterator[tuple[int, Row | _BadRow]]:
    """(line number, row) for each row that is not empty; `_BadRow` for those of another width or with bytes that are
    not UTF-8.

    Broken quotes are an error of the whole table: where the next row begins is not known then. Raises `BadDataError`.
    """
    delimiter = _DELIMITERS[path.suffix.lower()]
    try:
        # surrogateescape: a wrong byte spoils its own row and not the table
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            named = {",": "commas", "\t": "tabs"}[delimiter]
            _require_columns(
                path,
                header,
                f"name the columns in the first line, with {named} between them in a {path.suffix.lower()} file",
            )
            for fields in reader:
                if fields:
                    yield reader.line_num, _csv_row(header, fields)
    except csv.Error as error:
        hint = (
            "a field with quotes, line ends or the delimiter in it stands in double quotes, and quotes inside it are"
            " doubled"
        )
        raise BadDataError(f"{path}: cannot be read as a table near line {reader.line_num}: {error}", hint) from error
    except OSError as error:
        raise BadDataError(f"{path}: cannot be read: {error.strerror}", "check the path and its permissions") from error


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if number == 1 and line.startswith(("\udcff\udcfe", "\udcfe\udcff")):
            raise BadDataError(f"{path}: UTF-16 text", "save it as UTF-8")
        if len(line) > LONGEST_LINE:
            raise BadDataError(
                f"{path}: line {number} is longer than {LONGEST_LINE:,} characters",
                "is it a table? If so, shorten the line",
            )
        yield line


def _csv_row(header: list[str], fields: list[str]) -> Row | _BadRow:
    if len(fields) != len(header):
        return _BadRow(f"{len(fields)} fields, the first line has {len(header)}")
    for column, text in zip(header, fields, strict=True):
        if strange := next((letter for letter in text if "\udc80" <= letter <= "\udcff"), None):
            return _BadRow(f"{column}: byte 0x{ord(strange) - 0xDC00:02x} is not UTF-8")
        if len(text) > _LONGEST_FIELD:
            return _BadRow(f"{column}: {len(text):,} characters, a field has at most {_LONGEST_FIELD:,}")
    return dict(zip(header, fields, strict=True))


# --- .parquet ---


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row | _BadRow]]:
    """(row number from 1, row). Only the columns that are used are read. Raises `BadDataError`, `UsageError`."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(
            f"{path}: reading Parquet needs pyarrow, which is not installed ({error})", f"install it: {INSTALL_PARQUET}"
        ) from error
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            _require_columns(path, schema.names, "rename the columns, or write a .csv with these names")
            columns = _used_columns(path, schema)
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
                for values in zip(*(_values(batch.column(column)) for column in columns), strict=True):
                    number += 1
                    yield number, _parquet_row(columns, values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name
        raise BadDataError(
            f"{path}: cannot be read as Parquet: {_first_line(error)}",
            "copy the file again, or write the table as .csv",
        ) from error


def _used_columns(path: Path, schema: Any) -> list[str]:
    """The columns to read. Raises `BadDataError` when the image column holds pictures instead of paths."""
    from pyarrow import types

    path_column = next(column for column in PATH_COLUMNS if column in schema.names)
    kind = schema.field(path_column).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        hint = "pictures inside a table are not read: write them to files, with their paths in the table"
        raise BadDataError(f"{path}: column {path_column} holds {kind}, not paths as text", hint)
    return [
        path_column,
        *(column for column in (*CAPTION_COLUMNS, _ID_COLUMN, _BUCKET_COLUMN) if column in schema.names),
    ]


def _values(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # Parquet does not check its texts: find out which
        return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return _BadRow(f"byte 0x{error.object[error.start]:02x} is not UTF-8")


def _parquet_row(columns: list[str], values: tuple[Any, ...]) -> Row | _BadRow:
    for column, value in zip(columns, values, strict=True):
        if isinstance(value, _BadRow):
            return _BadRow(f"{column}: {value.why}")
    return dict(zip(columns, values, strict=True))


def _first_line(error: Exception) -> str:
    return ascii(str(error).splitlines()[0] if str(error) else type(error).__name__)[1:-1][:200]
