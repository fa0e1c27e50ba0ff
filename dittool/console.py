"""What the user reads. Stdout carries results (text, tables, one JSON object); stderr carries talk and progress.

Library functions take a `Talk` and say what they are doing to it; by default nobody listens.
"""

from __future__ import annotations

import json as jsonlib
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_LINE_EVERY_SECONDS = 10.0  # progress in a log file: one line each so often


class Task:
    """One piece of long work. `advance` counts; keyword arguments are figures to show beside the count."""

    def advance(self, count: int = 1, **figures: float) -> None:
        """Counts `count` further units as done."""


class Talk:
    """Says nothing. The library's default, and the interface that `Console` fills."""

    def note(self, text: str) -> None:
        """Something worth knowing while it happens."""

    def warn(self, text: str) -> None:
        """Something that the user would want to change."""

    @contextmanager
    def progress(self, label: str, total: int, unit: str = "") -> Iterator[Task]:
        """Work of `total` units, counted on the yielded task."""
        yield Task()


SILENT = Talk()


class Console(Talk):
    """The terminal: results on stdout, talk on stderr, JSON instead of tables when asked."""

    def __init__(self, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        from rich.console import Console as RichConsole

        self.json_wanted, self.quiet, self.verbose = json, quiet, verbose
        self._out = RichConsole(soft_wrap=True, highlight=False)
        self._err = RichConsole(stderr=True, soft_wrap=True, highlight=False)

    def result(self, text: str) -> None:
        """A line of the answer (stdout). Not printed in JSON mode, where the object says it all."""
        if not self.json_wanted:
            self._out.print(text, markup=False)

    def json(self, value: dict[str, Any]) -> None:
        """The one JSON object of a `--json` run (stdout). Without `--json` nothing is printed."""
        if self.json_wanted:
            sys.stdout.write(jsonlib.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
        """Rows of the answer (stdout). Cells are text; a cell that starts with ✔ or ✘ is coloured."""
        if self.json_wanted:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
        for column in columns:
            table.add_column(column, overflow="fold")
        styles = {"✔": "green", "✘": "bold red", "!": "yellow"}
        for row in rows:
            table.add_row(*(Text(str(cell), style=styles.get(str(cell)[:1], "")) for cell in row))
        self._out.print(table)

    def note(self, text: str) -> None:
        if not self.quiet:
            self._err.print(text, markup=False, style="dim")

    def detail(self, text: str) -> None:
        """Talk for `--verbose` only."""
        if self.verbose and not self.quiet:
            self._err.print(text, markup=False, style="dim")

    def warn(self, text: str) -> None:
        self._err.print(f"warning: {text}", markup=False, style="yellow")

    def error(self, message: str, hint: str = "") -> None:
        """What went wrong, then on its own line what to do next (stderr)."""
        self._err.print(f"error: {message}", markup=False, style="bold red")
        if hint:
            self._err.print(f"  next: {hint}", markup=False)

    @contextmanager
    def progress(self, label: str, total: int, unit: str = "") -> Iterator[Task]:
        """A bar with rate and time left on a terminal, a line every ten seconds elsewhere, nothing when quiet."""
        if self.quiet:
            yield Task()
        elif self._err.is_terminal:
            with _rich_bar(self._err, label, total, unit) as task:
                yield task
        else:
            task = _LineTask(self._err, label, total, unit)
            yield task
            task.close()


def figures_text(figures: dict[str, float]) -> str:
    """`{"loss": 0.52}` as `loss 0.52`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def duration_text(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    seconds = int(seconds)
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class _LineTask(Task):
    def __init__(self, stream: Any, label: str, total: int, unit: str) -> None:
        self._stream, self._label, self._total, self._unit = stream, label, total, unit
        self._done, self._figures = 0, {}
        self._start = self._last_line = time.monotonic()

    def advance(self, count: int = 1, **figures: float) -> None:
        self._done += count
        self._figures.update(figures)
        if time.monotonic() - self._last_line >= _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = self._done / elapsed
        left = "" if self._done >= self._total or not rate else f"  {duration_text((self._total - self._done) / rate)} left"
        text = f"{self._label} {self._done}/{self._total} {self._unit}  {rate:.3g}/s  {duration_text(elapsed)}{left}  {figures_text(self._figures)}"
        self._stream.print(text.rstrip(), markup=False)


@contextmanager
def _rich_bar(stream: Any, label: str, total: int, unit: str) -> Iterator[Task]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}  {task.fields[rate]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=stream) as bars:
        bar = bars.add_task(label, total=total, unit=unit, rate="", figures="")
        start, done = time.monotonic(), 0

        class BarTask(Task):
            def advance(self, count: int = 1, **figures: float) -> None:
                nonlocal done
                done += count
                rate = done / max(time.monotonic() - start, 1e-9)
                shown = {"figures": figures_text(figures)} if figures else {}
                bars.update(bar, completed=done, rate=f"{rate:.3g}/s", **shown)

        yield BarTask()
