"""JSON of a stranger, read within bounds: a size that no honest writer reaches, no name twice, a sane depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dittool.errors import BadDataError
from dittool.untrusted.refusal import unsafe


def read_bounded_json(path: Path, largest: int, again: str) -> tuple[Any, int]:
    """The value of an index and its size in bytes.

    Args:
        largest: bytes that it may have.
        again: what to do where it is no JSON.

    Raises `BadDataError` for what is no JSON, `UnsafeFileError` for what no writer makes.
    """
    with path.open("rb") as file:
        raw = file.read(largest + 1)
    if len(raw) > largest:
        raise unsafe(path, f"an index of more than {largest:,} bytes")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(named := dict(pairs)) < len(pairs):
            raise unsafe(path, "a name twice in one index")
        return named

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=once), len(raw)
    except RecursionError as error:
        raise unsafe(path, "an index that is not JSON of a sane depth") from error
    except ValueError as error:
        raise BadDataError(f"{path}: not JSON: {error}", again) from error
