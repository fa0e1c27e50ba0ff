"""Pictures side by side over two guidance scales, with their axes labelled."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dittool.errors import UsageError

AXES = {"cfg-text": "cfg_text", "cfg-dino": "cfg_dino"}  # name → field of `SampleSettings`
_MOST_CELLS = 100
_HINT = "for example: --grid cfg-text=1,2,3 cfg-dino=0,1,2"
_GAP = 4  # pixels between cells


@dataclass(frozen=True)
class Axis:
    """One scale and its values."""

    name: str
    values: tuple[float, ...]

    @property
    def field(self) -> str:
        return AXES[self.name]

    def __str__(self) -> str:  # as `parse_grid` reads it
        short = (f"{value:g}" for value in self.values)
        exact = (text if float(text) == value else repr(value) for text, value in zip(short, self.values, strict=True))
        return f"{self.name}={','.join(exact)}"


@dataclass(frozen=True)
class Grid:
    """Two axes: the first runs across, the second down."""

    across: Axis
    down: Axis

    def settings(self) -> list[list[dict[str, float]]]:
        """The fields of `SampleSettings` that each cell has of its own, row by row."""
        return [[{self.across.field: x, self.down.field: y} for x in self.across.values] for y in self.down.values]


def parse_grid(texts: Sequence[str]) -> Grid:
    """`("cfg-text=1,2,3", "cfg-dino=0,1,2")` as a grid. Raises `UsageError`."""
    across, down = (_axis(text) for text in texts)
    if across.name == down.name:
        raise UsageError(f"--grid: both axes are {across.name}", _HINT)
    if (cells := len(across.values) * len(down.values)) > _MOST_CELLS:
        raise UsageError(
            f"--grid: {cells} cells, at most {_MOST_CELLS} fit on a picture that can be read", "name fewer values"
        )
    return Grid(across, down)


def labelled(rows: list[list[np.ndarray]], grid: Grid) -> Image.Image:
    """Cells (h, w, 3) uint8, row by row, on white, with a label over each column and to the left of each row."""
    height, width = rows[0][0].shape[:2]
    font = ImageFont.load_default(size=max(12, min(width // 10, 28)))
    assert isinstance(font, ImageFont.FreeTypeFont), "a size was asked for, which only FreeType has"
    left = _GAP + max(math.ceil(font.getlength(text)) for text in _labels(grid.down)) + 2 * _GAP
    line = sum(font.getmetrics())
    top = line + 2 * _GAP
    column = max(width, *(math.ceil(font.getlength(text)) for text in _labels(grid.across))) + _GAP
    size = (left + column * len(rows[0]), top + (height + _GAP) * len(rows))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for index, text in enumerate(_labels(grid.across)):
        pen.text((left + column * index + width / 2, _GAP), text, "black", font, anchor="ma")
    for number, (text, row) in enumerate(zip(_labels(grid.down), rows, strict=True)):
        y = top + (height + _GAP) * number
        pen.text((left - 2 * _GAP, y + height / 2), text, "black", font, anchor="rm")
        for index, cell in enumerate(row):
            sheet.paste(Image.fromarray(cell), (left + column * index, y))
    return sheet


def _labels(axis: Axis) -> list[str]:
    return [f"{axis.name} {value:g}" for value in axis.values]


def _axis(text: str) -> Axis:
    name, equals, values = text.partition("=")
    if name not in AXES:
        close = difflib.get_close_matches(name, AXES, n=1)
        guess = f"did you mean '{close[0]}'? " if close else ""
        raise UsageError(f"--grid {text}: '{name}' is no axis; there are {' and '.join(AXES)}", f"{guess}{_HINT}")
    try:
        numbers = tuple(float(value) for value in values.split(","))
    except ValueError as error:
        raise UsageError(
            f"--grid {text}: '{values}' is not a list of numbers" if equals else f"--grid {text}: no values", _HINT
        ) from error
    if wrong := [number for number in numbers if not 0 <= number < math.inf]:
        raise UsageError(f"--grid {text}: {wrong[0]:g} is no guidance scale: it must be a number of at least 0", _HINT)
    return Axis(name, numbers)
