"""Sections of a configuration, and the kinds of values that they are made of."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from dittool.geometry import parse_size

PER_BUCKET = "per-bucket"  # of `flow.shift`
PLAIN_KIND = "caption"  # of captions that no column's name tells apart
_LONGEST_KIND, _MOST_COLUMNS = 32, 32


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _checked_size(text: str) -> str:
    parse_size(text)
    return text


def _checked_shift(value: float | str) -> float | str:
    if value == PER_BUCKET or (isinstance(value, float) and value > 0):
        return value
    raise ValueError(f"must be a number above 0 or '{PER_BUCKET}', not {value!r}")


def require(*rules: tuple[bool, str]) -> None:
    """Raises ValueError with the texts of all rules that do not hold."""
    if broken := "; ".join(text for holds, text in rules if not holds):
        raise ValueError(broken)


def _checked_columns(value: object) -> object:
    names = value if isinstance(value, list) else [value]
    if names and len(names) <= _MOST_COLUMNS and all(isinstance(name, str) and name for name in names):
        return value
    raise ValueError(f"must be a name, or a list of 1 to {_MOST_COLUMNS} names, not {value!r}")


def _checked_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"no regular expression: {error}") from error
    return text


def kind_named(column: str) -> str:
    """The kind of the captions in a column, as files are called by it: `Short caption` → `short_caption`."""
    plain = re.sub(r"[^a-z0-9-]+", "_", column.strip().lower()).strip("_")
    return plain[:_LONGEST_KIND] or PLAIN_KIND


def whole_number(value: object) -> object:
    """1e3 is TOML's 1000.0, and whoever writes it for a number of steps means 1000."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT else value


_EXACT = 2**53  # above it a float is no exact count
_LARGEST = 2**63 - 1  # of TOML, and of a tensor
Whole = Annotated[int, BeforeValidator(whole_number)]
Positive = Annotated[Whole, Field(gt=0, le=_LARGEST)]
Counted = Annotated[Whole, Field(ge=0, le=_LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Shift = Annotated[float | str, AfterValidator(_checked_shift)]
Columns = Annotated[str | list[str], BeforeValidator(_checked_columns)]
Pattern = Annotated[str, AfterValidator(_checked_pattern)]
Size = Annotated[str, AfterValidator(_checked_size)]
