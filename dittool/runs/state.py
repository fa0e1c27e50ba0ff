"""How far runs are, read from their folders."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dittool.ckpt.files import list_checkpoints
from dittool.ckpt.run_log import read_log
from dittool.config.load import read_toml
from dittool.errors import DitError
from dittool.storage import in_use, read_json

State = Literal["training", "finished", "stopped", "not begun"]
_RESOLVED = "resolved.toml"


@dataclass(frozen=True)
class RunState:
    """One run."""

    name: str
    folder: Path
    state: State
    step: int
    steps: int | None  # None: the configuration cannot be read
    loss: float | None  # of the last row of the log
    eval_loss: float | None
    verdict: str | None  # of the newest validation
    seconds_left: float | None  # None: not training, or too early to say

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "folder": str(self.folder)}


def runs_under(folder: Path) -> list[RunState]:
    """The runs in a folder, or the folder itself where it is one; those that changed last come first."""
    found = [folder] if is_run(folder) else [place for place in sorted(folder.iterdir()) if is_run(place)]
    return [state_of(run) for run in sorted(found, key=_changed, reverse=True)]


def is_run(folder: Path) -> bool:
    return (folder / _RESOLVED).is_file()


def state_of(folder: Path, rows: list[dict[str, Any]] | None = None, ended: bool = False) -> RunState:
    """A run, by its files. `rows` are those of its log, where the caller has them; `ended`: it ends now, though its
    folder is still held.
    """
    rows = _rows(folder) if rows is None else rows
    checkpoints = list_checkpoints(folder / "checkpoints")
    step = max([int(rows[-1]["step"]) if rows else 0, *(found.step or 0 for found in checkpoints)])
    steps = _steps(folder)
    state: State = "stopped" if step else "not begun"
    if not ended and in_use(folder):
        state = "training"
    elif any(found.final for found in checkpoints):
        state = "finished"
    rate = _last(rows, "steps_per_second")
    left = (steps - step) / rate if state == "training" and steps and rate else None
    name = folder.resolve().name
    losses = _last(rows, "loss"), _last(rows, "eval_loss")
    return RunState(name, folder, state, step, steps, *losses, newest_verdict(folder), left)


def newest_verdict(folder: Path) -> str | None:
    """GO or NO-GO of the validation after the most steps; None where there is none."""
    places = {
        int(place.name[4:]): place for place in folder.glob("validation/step*") if re.fullmatch(r"step\d+", place.name)
    }
    for step in sorted(places, reverse=True):
        try:
            results = read_json(places[step] / "results.json")
        except (DitError, OSError):
            continue
        if isinstance(results, dict) and isinstance(results.get("verdict"), str):
            return results["verdict"]
    return None


def _rows(folder: Path) -> list[dict[str, Any]]:
    try:
        return read_log(folder)
    except (DitError, OSError):
        return []


def _steps(folder: Path) -> int | None:
    try:
        steps = read_toml(folder / _RESOLVED).get("train", {}).get("steps")
    except (DitError, OSError):
        return None
    return steps if isinstance(steps, int) else None


def _last(rows: list[dict[str, Any]], key: str) -> float | None:
    return next((row[key] for row in reversed(rows) if isinstance(row.get(key), (int, float))), None)


def _changed(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder / _RESOLVED, folder / "log.jsonl") if path.exists())
