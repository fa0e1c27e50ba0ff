"""Rows of lists in JSON lines: metadata.jsonl in a folder, and manifests. A line that is no object is a `BadRow` with
its number, and the others stand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from dittool.data.source.columns import BadRow, Row
from dittool.data.source.item import LONGEST_LINE
from dittool.errors import BadDataError


def json_rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
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
