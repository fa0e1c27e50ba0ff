"""What the user reads. Stdout carries results (text, tables, one JSON object); stderr carries talk and progress.

Library functions take a `Talk` and say what they are doing to it; by default nobody listens.
"""

from __future__ import annotations

import codecs
import io
import json as jsonlib
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Literal, TextIO

from dittool.errors import StorageError

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

_LINE_EVERY_SECONDS = 10.0  # progress in a log file: one line each so often
_WIDEST_TABLE = 100  # columns

# Captions and file names come from strangers: what moves the cursor, colours or reorders text is shown, not obeyed.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
_ESCAPED = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROLS if chr(code) not in "\n\t"}


# What our own signs are on a terminal that does not have them.
_WORDS = {"✔": "yes", "✘": "no", "–": "-", "—": "-", "−": "-", "→": "->", "←": "<-", "×": "x", "…": "...", "²": "^2"}
_WORDS |= {"±": "+-", "≥": ">=", "≤": "<=", "≈": "~", "·": "*", "‖": "||", "√": "sqrt ", "½": "1/2", "∅": "none"}
_WORDS |= {"α": "alpha", "σ": "sigma", "“": '"', "”": '"', "’": "'", "│": "|", "─": "-"}


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


class PythonWarnings(Talk):
    """For notebooks and scripts: what the user would want to change becomes a Python warning, the rest is not said."""

    def warn(self, text: str) -> None:
        warnings.warn(text, stacklevel=2)


class Console(Talk):
    """The terminal: results on stdout, talk on stderr, JSON instead of tables when asked. `verbose`: remarks say how
    long the command has been running, and commands that have more to show show it.
    """

    def __init__(self, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.json_wanted, self.quiet, self.verbose = json, quiet, verbose
        self._began = time.monotonic()
        self._out, self._err = _rich_console(stderr=False), _rich_console(stderr=True)

    def result(self, text: str) -> None:
        """A line of the answer (stdout). Not printed in JSON mode, where the object says it all."""
        if not self.json_wanted:
            self._out.print(escaped(text))

    def json(self, value: Mapping[str, object]) -> None:
        """The one JSON object of a `--json` run (stdout). Without `--json` nothing is printed.

        Paths become text, arrays of one element numbers, and NaN and infinity, which JSON does not have, null.
        """
        if not self.json_wanted:
            return
        try:
            sys.stdout.write(jsonlib.dumps(_json_value(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            abandon(sys.stdout)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
        """Rows of the answer (stdout), at most 100 columns wide. Cells are text; one that starts with ✔ or ✘ is
        coloured.
        """
        if self.json_wanted:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(escaped(title)) if title else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
        )
        for column in columns:
            table.add_column(Text(column), overflow="fold")
        styles = {"✔": "green", "✘": "bold red", "!": "yellow"}
        signs = can_show(sys.stdout, "✔")
        for row in rows:
            texts = [str(cell) for cell in row]
            shown = texts if signs else [_in_words(text) for text in texts]
            pairs = zip(texts, shown, strict=True)
            table.add_row(*(Text(escaped(words), style=styles.get(text[:1], "")) for text, words in pairs))
        self._out.print(table, width=_WIDEST_TABLE, soft_wrap=False)  # or as wide as a narrower terminal

    def note(self, text: str) -> None:
        if not self.quiet:
            since = f"[{duration_text(time.monotonic() - self._began)}] " if self.verbose else ""
            line = text.lstrip("\n")
            self._say(text[: len(text) - len(line)] + escaped(since + line), "dim")

    def warn(self, text: str) -> None:
        self._say(f"warning: {escaped(text)}", "yellow")

    def error(self, message: str, hint: str = "") -> None:
        """What went wrong, then on its own line what to do next (stderr)."""
        # a file name with a line break in it must not pass for a line of ours
        indented = escaped(message).replace("\n", "\n    ")
        self._say(f"error: {indented}", "bold red")
        if hint:
            self._say(f"  next: {escaped(hint)}")

    def _say(self, text: str, style: str = "") -> None:
        """A line of talk. Where stderr takes none (its disk is full), the work goes on in silence."""
        try:
            self._err.print(text, style=style)
        except OSError:
            abandon(sys.stderr)

    @contextmanager
    def progress(self, label: str, total: int, unit: str = "") -> Iterator[Task]:
        """A bar with rate and time left on a terminal, a line every ten seconds elsewhere, nothing when quiet."""
        if self.quiet:
            yield Task()
        elif self._err.is_interactive and sys.stderr.isatty():
            with _rich_bar(self._err, label, total, unit) as task:
                yield task
        else:
            task = _LineTask(self._say, label, total, unit)
            yield task
            task.close()


def escaped(text: str) -> str:
    """The text with control characters, except newlines and tabs, and with marks that reorder text written as
    `\\x1b`.
    """
    return text.translate(_ESCAPED)


_replaced: list[IO[str]] = []  # kept alive: a stream that is collected closes what is under it


def prepare_streams() -> None:
    """For a process of ours: nothing that is printed may end the work that prints it, and a stdout that takes nothing
    is told as that. What an encoding lacks is written in plain words, signs of ours, or as \\xe9, letters of others.
    """
    codecs.register_error("dit.plain", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        kind = _Stdout if name == "stdout" else io.TextIOWrapper
        buffering = stream.line_buffering or name == "stderr"
        _replaced.append(stream)
        setattr(sys, name, kind(stream.buffer, stream.encoding, "dit.plain", line_buffering=buffering))


class _Stdout(io.TextIOWrapper):
    """Errors of writing name what was written to: those of the system do not."""

    def write(self, text: str) -> int:
        with self._errors_named():
            return super().write(text)

    def flush(self) -> None:
        with self._errors_named():
            super().flush()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            abandon(self)
            hint = "free some space where it goes, or send it elsewhere: dit … > FILE"
            raise StorageError(f"standard output: {error.strerror}", hint) from error


def can_show(stream: TextIO, text: str) -> bool:
    """Whether the stream's encoding has these letters."""
    try:
        text.encode(stream.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    if (word := _WORDS.get(error.object[error.start])) is not None:
        return word, error.start + 1
    first_letter = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    return codecs.backslashreplace_errors(first_letter)


def _in_words(cell: str) -> str:
    """A table's cell without signs: `✔ pass` is `pass`, `✘` alone is `no`."""
    return cell[2:] if cell[:2] in ("✔ ", "✘ ", "– ") else "".join(_WORDS.get(letter, letter) for letter in cell)


def abandon(stream: IO[str]) -> None:
    """For a stream whose reader has gone (`dit … | head`): what is still written goes nowhere, the work and its
    exit code stay.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def figures_text(figures: dict[str, float]) -> str:
    """`{"loss": 0.52, "images": 1200}` as `loss 0.52  images 1,200`: counts whole, measurements to four digits."""
    return "  ".join(
        f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}" for name, value in figures.items()
    )


def duration_text(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    seconds = int(seconds)
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _rich_console(stderr: bool) -> RichConsole:
    from rich.console import Console as RichConsole

    class Stream(RichConsole):
        def on_broken_pipe(self) -> None:  # Rich would end the process with 1, whatever it was doing
            abandon(self.file)

    # NO_COLOR means no escape codes at all; Rich alone would still print in bold
    colours: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    console = Stream(stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False, color_system=colours)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        console.width = _WIDEST_TABLE  # Rich assumes 80 columns for files and pipes
    return console


def _json_value(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {str(key): _json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item"):  # a number of numpy or torch
        return _json_value(value.item())
    raise TypeError(f"{type(value).__name__} has no place in JSON")


class _LineTask(Task):
    def __init__(self, say: Callable[[str], None], label: str, total: int, unit: str) -> None:
        self._say, self._label, self._total, self._unit = say, label, total, unit
        self._done = 0
        self._figures: dict[str, float] = {}
        self._start = self._last_line = time.monotonic()

    def advance(self, count: int = 1, **figures: float) -> None:
        self._done += count
        self._figures.update(figures)
        if self._done < self._total and time.monotonic() - self._last_line >= _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = self._done / elapsed
        left = f"{duration_text((self._total - self._done) / rate)} left" if 0 < self._done < self._total else ""
        count = f"{self._label} {self._done}/{self._total} {self._unit}".rstrip()
        parts = (count, f"{rate:.3g}/s", duration_text(elapsed), left, figures_text(self._figures))
        self._say(escaped("  ".join(part for part in parts if part)))


@contextmanager
def _rich_bar(stream: RichConsole, label: str, total: int, unit: str) -> Iterator[Task]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    label_column, rate_column, figures_column = (
        TextColumn(template, markup=False)
        for template in ("{task.description:<12}", "{task.fields[unit]}  {task.fields[rate]}", "{task.fields[figures]}")
    )
    count, elapsed, left = MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    columns = (label_column, BarColumn(), count, rate_column, elapsed, TextColumn("left"), left, figures_column)
    with Progress(*columns, console=stream) as bars:
        bar = bars.add_task(label, total=total, unit=unit, rate="", figures="")
        start, done = time.monotonic(), 0
        shown: dict[str, float] = {}

        class BarTask(Task):
            def advance(self, count: int = 1, **figures: float) -> None:
                nonlocal done
                done += count
                shown.update(figures)
                rate = done / max(time.monotonic() - start, 1e-9)
                bars.update(bar, completed=done, rate=f"{rate:.3g}/s", figures=figures_text(shown))

        yield BarTask()
