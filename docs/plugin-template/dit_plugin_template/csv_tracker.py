"""A tracker that writes a run's numbers into a table: `train.trackers = ["csv"]`, or `"csv:NAME"` for NAME.csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from dittool.train.trackers import TrackedRun


class CsvTracker:
    """step, name, value: a row for each number, and for each picture its file."""

    def __init__(self, run: TrackedRun) -> None:
        path = run.folder / f"{run.project or 'numbers'}.csv"
        self._file = path.open("a", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file)

    def numbers(self, step: int, figures: Mapping[str, float]) -> None:
        self._rows.writerows((step, name, value) for name, value in figures.items())
        self._file.flush()

    def picture(self, step: int, name: str, file: Path) -> None:
        self._rows.writerow((step, name, file))

    def close(self) -> None:
        self._file.close()
