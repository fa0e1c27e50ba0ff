"""A chart of figures over steps, as the numbers that a template draws an SVG from: no pixels, so it follows the page's
width and its dark or light colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

WIDTH, HEIGHT = 340.0, 180.0  # of the drawing, in its own units
LEFT, RIGHT, TOP, BOTTOM = 44.0, 6.0, 8.0, 20.0  # margins for the labels
_MOST_POINTS = 300  # of a line; more of them are drawn as means of neighbours
_WIDEST_LINEAR = 8.0  # largest value over smallest that is drawn on a linear axis

FRAME = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}

Rows = Sequence[Mapping[str, object]]  # of log.jsonl


@dataclass(frozen=True)
class Line:
    """One figure."""

    label: str
    path: str  # of an SVG
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Tick:
    at: float  # along its axis
    text: str


@dataclass(frozen=True)
class Chart:
    """Lines in one frame."""

    title: str
    lines: list[Line]
    across: list[Tick]
    up: list[Tick]
    logarithmic: bool
    outline: str = ""  # of the band of reference runs, if there is one

    @property
    def data(self) -> list[tuple[list[int], list[float]]]:
        """Steps and values of each line."""
        return [(line.steps, line.values) for line in self.lines]


@dataclass(frozen=True)
class Band:
    """Between what figures lay at some steps."""

    steps: list[int]
    low: list[float]
    high: list[float]


def chart(title: str, rows: Rows, figures: Mapping[str, str], band: Band | None = None) -> Chart | None:
    """Some figures of the log over steps; None where no row has one. `figures`: their keys in the rows, and labels."""
    found = {label: points(rows, key) for key, label in figures.items()}
    found = {label: both for label, both in found.items() if both[0]}
    if not found:
        return None
    everything = [value for _, values in found.values() for value in values]
    everything += [*band.low, *band.high] if band else []
    first, last = min(steps[0] for steps, _ in found.values()), max(steps[-1] for steps, _ in found.values())
    scale = _Scale.of(everything)
    place = _Place(float(first), float(max(last, first + 1)), scale)
    lines = [
        Line(label, place.path(steps, values), [int(step) for step in steps], [float(f"{v:.4g}") for v in values])
        for label, (steps, values) in found.items()
    ]
    across = [Tick(place.x(step), f"{step:,.0f}") for step in _round_steps(place.first, place.last)]
    up = [Tick(place.y(value), f"{value:.3g}") for value in scale.ticks()]
    return Chart(title, lines, across, up, scale.logarithmic, place.outline(band) if band else "")


def points(rows: Rows, key: str, most: int = _MOST_POINTS) -> tuple[list[float], list[float]]:
    """Steps and finite values of a figure, at most `most` of each: means of neighbours where there are more."""
    steps, values = [], []
    for row in rows:
        step, value = row.get("step"), row.get(key)
        if isinstance(step, int) and isinstance(value, (int, float)) and math.isfinite(value):
            steps.append(float(step))
            values.append(float(value))
    width = math.ceil(len(steps) / most) or 1
    parts = [slice(start, start + width) for start in range(0, len(steps), width)]
    return [fmean(steps[part]) for part in parts], [fmean(values[part]) for part in parts]


@dataclass(frozen=True)
class _Scale:
    """The axis of values."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Sequence[float]) -> _Scale:
        low, high = min(values), max(values)
        if low > 0 and high / low > _WIDEST_LINEAR:
            return cls(low, high, True)
        if low == high:
            low, high = low - (abs(low) or 1.0) * 0.5, high + (abs(high) or 1.0) * 0.5
        return cls(min(low, 0.0) if low < (high - low) else low, high, False)

    def share(self, value: float) -> float:
        """0 at the bottom, 1 at the top."""
        if self.logarithmic:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return _round_steps(self.low, self.high, 4)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        between = [m * 10.0**p for p in powers for m in (1, 2, 5) if self.low <= m * 10.0**p <= self.high]
        tens = [value for value in between if math.isclose(value, 10 ** round(math.log10(value)))]
        return tens if len(tens) > 2 else between


@dataclass(frozen=True)
class _Place:
    """Where a step and a value lie in the drawing."""

    first: float
    last: float
    scale: _Scale

    def x(self, step: float) -> float:
        return round(LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        return round(HEIGHT - BOTTOM - self.scale.share(value) * (HEIGHT - TOP - BOTTOM), 1)

    def path(self, steps: Sequence[float], values: Sequence[float]) -> str:
        return "M" + " L".join(f"{self.x(s)} {self.y(v)}" for s, v in zip(steps, values, strict=True))

    def outline(self, band: Band) -> str:
        seen = [i for i, step in enumerate(band.steps) if self.first <= step <= self.last]
        if not seen:
            return ""
        above = self.path([band.steps[i] for i in seen], [band.high[i] for i in seen])
        below = self.path([band.steps[i] for i in reversed(seen)], [band.low[i] for i in reversed(seen)])
        return f"{above} L{below.removeprefix('M')} Z"


def _round_steps(low: float, high: float, wanted: int = 4) -> list[float]:
    """About so many round numbers between two."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= 0.8 * rough)
    return [round(k * width, 12) for k in range(math.ceil(low / width), math.floor(high / width) + 1)]
