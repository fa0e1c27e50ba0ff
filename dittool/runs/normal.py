"""Is this run normal? Reference curves of runs that were really made ship with a preset; a run of that preset on the
same data is held against them while it trains.

presets/NAME.curves.json      {"preset", "identity_hash", "order_hash", "steps", "batch_size", "seeds",
                               "figures": {"loss": {"steps": […], "low": […], "high": […]}, …}}

A figure is smoothed over some rows of the log and is outside when it stays beyond its band for several in a row. How
the bands were made, and which planted faults leave them: docs/training.md.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dittool.config.presets import preset_folder
from dittool.errors import DitError
from dittool.runs.chart import Band
from dittool.storage import read_json

SMOOTHED, IN_A_ROW = 5, 3  # rows of the log
_NAMES = {"loss": "the loss", "grad_norm": "the norm of the gradient", "ema_distance": "the distance of the average"}
_MEANT = {
    ("loss", "above"): "a learning rate too high or too low (train.lr, train.muon_lr), latents that are not scaled",
    ("loss", "below"): "easier samples (other shares of dropout), a higher learning rate, latents that are not scaled",
    ("grad_norm", "above"): "a learning rate too high, other shares of dropout, latents that are not scaled",
    ("grad_norm", "below"): "easier samples (other shares of dropout), weights that do not move",
    ("ema_distance", "above"): "an average that does not follow (ema.target, ema.warmup), a learning rate too high",
    ("ema_distance", "below"): "a learning rate too low, an average that follows at once",
}


@dataclass(frozen=True)
class Curves:
    """Between what the figures of some runs of a preset lay."""

    preset: str
    seeds: list[int]
    bands: dict[str, Band]


def curves_of(folder: Path, preset: str | None, steps: int, batch_size: int | None) -> Curves | None:
    """The curves that a run's folder can be held against: of its preset, on the same data, with a schedule and
    batches of the same size. None where there are none.
    """
    path = preset_folder() / f"{preset}.curves.json"
    try:
        found, run = read_json(path), read_json(folder / "run.json")
    except (DitError, OSError):
        return None
    here = {"identity_hash": run.get("identity_hash"), "order_hash": run.get("order_hash")}
    here |= {"steps": steps, "batch_size": batch_size}
    if any(found[key] != value for key, value in here.items()):
        return None
    bands = {name: Band(**band) for name, band in found["figures"].items()}
    return Curves(found["preset"], found["seeds"], bands)


def newly_outside(rows: Sequence[Mapping[str, Any]], curves: Curves) -> dict[str, str]:
    """Figures that the last row finds outside of their band, for the first time in this log, and what is to be said."""
    said: dict[str, str] = {}
    for name, band in curves.bands.items():
        recent = [row for row in rows[-4 * SMOOTHED :] if isinstance(row.get(name), (int, float))]
        if len(recent) < SMOOTHED + IN_A_ROW - 1 or recent[-1] is not rows[-1]:
            continue
        values = smoothed([row[name] for row in recent])[-IN_A_ROW:]
        sides = {_side(value, band, row["step"]) for value, row in zip(values, recent[-IN_A_ROW:], strict=True)}
        side = sides.pop() if len(sides) == 1 else None
        if side is not None and not any(row.get("outside_figure") == name for row in rows):
            low, high = _at(band, recent[-1]["step"]) or (math.nan, math.nan)
            said[name] = (
                f"{_NAMES[name]} is {values[-1]:.3g}, {side} what runs of {curves.preset} have at this step"
                f" ({low:.3g} to {high:.3g}, {len(curves.seeds)} seeds); that has meant: {_MEANT[name, side]}"
            )
    return said


def smoothed(values: Sequence[float]) -> list[float]:
    """Geometric means of so many neighbours that end at each value; the first ones are left out."""
    logs = [math.log(max(value, 1e-12)) if math.isfinite(value) else math.inf for value in values]
    return [math.exp(min(fmean(logs[i - SMOOTHED : i]), 700)) for i in range(SMOOTHED, len(logs) + 1)]


def _side(value: float, band: Band, step: int) -> str | None:
    bounds = _at(band, step)
    if bounds is None or bounds[0] <= value <= bounds[1]:
        return None
    return "above" if value > bounds[1] else "below"


def _at(band: Band, step: int) -> tuple[float, float] | None:
    """Low and high at a step, between the steps that the band has; None outside of these."""
    right = bisect_right(band.steps, step)
    if right == 0 or step > band.steps[-1]:
        return None
    left, right = right - 1, min(right, len(band.steps) - 1)
    width = band.steps[right] - band.steps[left]
    share = (step - band.steps[left]) / width if width else 0.0
    low, high = (line[left] + share * (line[right] - line[left]) for line in (band.low, band.high))
    return low, high
