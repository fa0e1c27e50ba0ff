"""Rows of tables: .csv and .tsv, whose separator the first line shows, and .parquet.

A row that cannot be read is a `BadRow` with its number and the others stand; where the next row begins is not known
after broken quotes, so these are an error of the whole table.
"""

from __future__ import annotations

import ast
import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from dittool.data.source.columns import BadRow, Row, columns_of, what_is_missing
from dittool.data.source.item import LONGEST_LINE, Pairing
from dittool.data.source.text_files import opened_text
from dittool.errors import BadDataError, UsageError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_USUAL_SEPARATOR = {".csv": ",", ".tsv": "\t"}
_LONGEST_FIELD = 1 << 17  # characters, twice what a caption may have
_ROWS_AT_ONCE = 1024
_KINDS_OF_ARROW = {
    ".parquet": ("Parquet", "copy the file again, or write the table as .csv"),
    ".arrow": ("Arrow", "copy the file again, or save the data set again"),
}
INSTALL_PARQUET = "pip install 'pyarrow>=23.0.1'"  # as in pyproject.toml


def table_rows(path: Path, pairing: Pairing) -> Iterator[tuple[int, Row | BadRow]]:
    """(line or row number, row) of a table. Raises `BadDataError` when it cannot be read or lacks a column,
    `UsageError` when Parquet support is not installed.
    """
    return _parquet_rows(path, pairing) if path.suffix.lower() == ".parquet" else csv_rows(path, pairing)


def _require_columns(path: Path, present: Sequence[str], pairing: Pairing, remedy: str) -> None:
    """Raises `BadDataError` when the path or the caption column is missing, or a name stands there twice."""
    columns = columns_of(tuple(present), pairing)
    missing, hint = what_is_missing(columns, present, pairing)
    if missing:
        raise BadDataError(f"{path}: {missing}", f"{hint}; or {remedy}")
    if twice := [column for column in columns.read if present.count(column) > 1]:
        listed = ", ".join(ascii(column)[1:-1] for column in present)
        raise BadDataError(
            f"{path}: column {', '.join(twice)} stands there twice: {listed}", "rename or remove one of them"
        )


# --- .csv and .tsv ---


def csv_rows(path: Path, pairing: Pairing) -> Iterator[tuple[int, Row | BadRow]]:
    """(line number, row) for each row that is not empty; `BadRow` for those of another width or with bytes that are
    not UTF-8. Raises `BadDataError`.
    """
    try:
        with opened_text(path) as file:
            lines = _lines(path, file)
            first = next(lines, "")
            skipped = first.startswith("sep=") and len(first.strip()) <= 5  # a line for Excel: it names the separator
            first = next(lines, "") if skipped else first
            separator = _separator(first, path, pairing)
            reader = csv.reader(_chain(first, lines), delimiter=separator, strict=True)
            header = [name.strip() for name in next(reader, [])]
            remedy = f"give the columns their names in the first line, with {SEPARATORS[separator]} between them"
            _require_columns(path, header, pairing, remedy)
            for fields in reader:
                if fields:
                    yield reader.line_num + skipped, _csv_row(header, fields)
    except csv.Error as error:
        hint = (
            "a field with quotes, line ends or the delimiter in it stands in double quotes, and quotes inside it are"
            " doubled"
        )
        raise BadDataError(f"{path}: cannot be read as a table near line {reader.line_num}: {error}", hint) from error
    except UnicodeDecodeError as error:
        raise BadDataError(f"{path}: damaged {error.encoding} text: {error.reason}", "save it as UTF-8") from error
    except OSError as error:
        raise BadDataError(f"{path}: cannot be read: {error.strerror}", "check the path and its permissions") from error


def header_fields(line: str, separator: str) -> list[str]:
    """The names of the columns in the first line of a table, roughly: enough to choose the separator by."""
    return [name.strip().strip('"') for name in line.split(separator)]


def _separator(header: str, path: Path, pairing: Pairing) -> str:
    """What stands between the columns of the first line: what gives it a path and a caption; else what its suffix
    promises.
    """
    usual = _USUAL_SEPARATOR.get(path.suffix.lower(), ",")

    def known(separator: str) -> tuple[int, bool]:
        columns = columns_of(tuple(header_fields(header, separator)), pairing)
        return bool(columns.path) + bool(columns.captions), separator == usual

    return max(SEPARATORS, key=known)


def _chain(first: str, lines: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from lines


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise BadDataError(
                f"{path}: line {number} is longer than {LONGEST_LINE:,} characters",
                "is it a table? If so, shorten the line",
            )
        yield line


def _csv_row(header: list[str], fields: list[str]) -> Row | BadRow:
    if len(fields) != len(header):
        return BadRow(f"{len(fields)} fields, the first line has {len(header)}")
    for column, text in zip(header, fields, strict=True):
        if strange := next((letter for letter in text if "\udc80" <= letter <= "\udcff"), None):
            return BadRow(f"{column}: byte 0x{ord(strange) - 0xDC00:02x} is not UTF-8")
        if len(text) > _LONGEST_FIELD:
            return BadRow(f"{column}: {len(text):,} characters, a field has at most {_LONGEST_FIELD:,}")
    return {column: _list_in_cell(text) for column, text in zip(header, fields, strict=True)}


def _list_in_cell(text: str) -> str | list[str]:
    """The texts of a list that was written into a cell, as JSON or as Python shows it; any other text as it is."""
    if not (text.startswith("[") and text.endswith("]")):
        return text
    try:
        found = ast.literal_eval(text)  # JSON's lists of texts are Python's
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return found if isinstance(found, list) and found and all(isinstance(item, str) for item in found) else text


# --- .parquet ---


@contextmanager
def arrow_errors_explained(path: Path) -> Iterator[None]:
    """Turns what pyarrow says of a file into `BadDataError`, and its absence into `UsageError`."""
    try:
        import pyarrow
    except ImportError as error:
        raise UsageError(
            f"{path}: reading {path.suffix} needs pyarrow, which is not installed ({error})",
            f"install it: {INSTALL_PARQUET}",
        ) from error
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name
        kind, remedy = _KINDS_OF_ARROW[path.suffix.lower()]
        raise BadDataError(f"{path}: cannot be read as {kind}: {_first_line(error)}", remedy) from error


def rows_of_batches(columns: list[str], batches: Iterable[Any]) -> Iterator[Row | BadRow]:
    """The rows of pyarrow's record batches with these columns. Texts that are not UTF-8 spoil their row alone."""
    for batch in batches:
        for values in zip(*(_values(batch.column(column)) for column in columns), strict=True):
            yield _parquet_row(columns, values)


def _parquet_rows(path: Path, pairing: Pairing) -> Iterator[tuple[int, Row | BadRow]]:
    """(row number from 1, row). Only the columns that are used are read. Raises `BadDataError`, `UsageError`."""
    with arrow_errors_explained(path):
        from pyarrow import parquet

        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            _require_columns(path, schema.names, pairing, "rename the columns")
            columns = _used_columns(path, schema, pairing)
            batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns)
            yield from enumerate(rows_of_batches(columns, batches), 1)


def _used_columns(path: Path, schema: Any, pairing: Pairing) -> list[str]:
    """The columns to read. Raises `BadDataError` when the image column holds pictures instead of paths."""
    from pyarrow import types

    columns = columns_of(tuple(schema.names), pairing)
    kind = schema.field(columns.path).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer)  # numbers name files, too
    if not any(is_kind(kind) for is_kind in texts):
        hint = "pictures inside a table are read where the table is the SOURCE, or no picture lies beside it"
        raise BadDataError(f"{path}: column {columns.path} holds {kind}, not paths as text", hint)
    return columns.read


def _values(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:  # Parquet does not check its texts: find out which
        return [_value(cell) for cell in column]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError as error:
        return BadRow(f"byte 0x{error.object[error.start]:02x} is not UTF-8")


def _parquet_row(columns: list[str], values: tuple[Any, ...]) -> Row | BadRow:
    for column, value in zip(columns, values, strict=True):
        if isinstance(value, BadRow):
            return BadRow(f"{column}: {value.why}")
    return dict(zip(columns, values, strict=True))


def _first_line(error: Exception) -> str:
    return ascii(str(error).splitlines()[0] if str(error) else type(error).__name__)[1:-1][:200]
