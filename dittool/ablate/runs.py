"""Trains what a plan asks for, one run after the other, and remembers what is done: killed at any moment, the same
command goes on.

    OUT/runs/ROW/seed0_updates1100/     a run as `dit train` leaves it, losses.npz, scenes.json, figures.json
    OUT/costs.json                      time and memory of an update of each row beside the base's
    OUT/plan.json                       the plan that the folder belongs to
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dittool.ablate.cost import Cost, cost
from dittool.ablate.plan import BASE, Rows
from dittool.ablate.yardstick import Measured, measure
from dittool.ckpt.files import list_checkpoints
from dittool.ckpt.run_log import read_log
from dittool.config.architectures import AnyConfig
from dittool.console import Talk, Task
from dittool.errors import DitError, Interrupted, UsageError, one_line
from dittool.sampling.pipeline import Pipeline
from dittool.shell import quoted
from dittool.storage import read_json, write_json
from dittool.train.loop import train
from dittool.validate.captions import Shares, draw_captions, shares_from_json
from dittool.validate.run import ValidateOptions, validate
from dittool.validate.text_edit import CaptionChecker

_LOSSES, _SCENES, _FIGURES = "losses.npz", "scenes.json", "figures.json"  # of a run
_COSTS, _PLAN = "costs.json", "plan.json"


class _Quiet(Talk):
    """Shows a run's progress, and not what it would say of itself."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    @contextmanager
    def progress(self, label: str, total: int, unit: str = "") -> Iterator[Task]:
        with self._talk.progress(label, total, unit) as task:
            yield task


@dataclass(frozen=True)
class Run:
    """One training of the plan."""

    row: str
    seed: int
    updates: int

    @property
    def path(self) -> str:
        return f"runs/{self.row}/seed{self.seed}_updates{self.updates}"


@dataclass
class Work:
    """What has been done of a plan. `failed` holds why a row could not be run; its other runs are left out."""

    rows: Rows
    data: Path
    out: Path
    talk: Talk
    measured: dict[Run, Measured] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    checker: CaptionChecker | None = None  # reads pictures of the drawn set
    scenes: dict[Run, Shares] = field(default_factory=dict)  # what was read from the plan's scenes
    figures: dict[Run, dict[str, float]] = field(default_factory=dict)  # of the plan's tests, by criterion

    def do(self, runs: Iterable[Run]) -> None:
        """Runs and measures what is not done yet."""
        for run in runs:
            if run.row in self.failed or run in self.measured:
                continue
            try:
                self.measured[run] = self._measured(run)
                if self.rows.plan.scenes and self.checker:
                    self.scenes[run] = self._scenes(run, self.checker)
                if self.rows.plan.tests:
                    self.figures[run] = self._figures(run)
            except (Interrupted, UsageError):
                raise
            except (DitError, ArithmeticError, RuntimeError, MemoryError) as error:
                if run.row == BASE:
                    raise
                self.failed[run.row] = one_line(error)
                self.talk.warn(f"{run.row}: {self.failed[run.row]}; the row is left out")

    def measure_costs(self, remember: bool = True) -> None:
        """Of each row beside the base, once a plan where that is to be remembered."""
        path = self.out / _COSTS
        known = {row: Cost(**value) for row, value in read_json(path).items()} if path.is_file() else {}
        plan, first = self.rows.plan, self.rows.config(BASE, self.rows.plan.seeds[0], self.rows.updates)
        for row in self.rows.changes:
            if row not in known and row not in self.failed:
                self.talk.note(f"{row}: the cost of an update, by turns with the base's")
                try:
                    variant = self.rows.config(row, plan.seeds[0], self.rows.updates)
                    known[row] = cost(first, variant, self.data)
                except (DitError, RuntimeError, MemoryError) as error:
                    if row == BASE:
                        raise
                    self.failed[row] = one_line(error)
                    continue
                if remember:
                    write_json(path, {name: asdict(value) for name, value in known.items()})
        self.costs = {row: known[row] for row in self.rows.changes if row in known}

    def _measured(self, run: Run) -> Measured:
        folder = self.out / run.path
        if (folder / _LOSSES).is_file():
            return Measured.read(folder / _LOSSES)
        self.talk.note(f"{run.row}: seed {run.seed}, {run.updates:,} updates")
        config = self.rows.config(run.row, run.seed, run.updates)
        checkpoints = list_checkpoints(folder / "checkpoints")
        if not checkpoints or checkpoints[-1].step != run.updates:  # else it was killed before it was measured
            self._train(config, folder, resume=bool(checkpoints))
        figures = [{k: v for k, v in row.items() if k.startswith("eval_")} for row in read_log(folder)]
        last: dict[str, float] = next(filter(None, reversed(figures)), {})
        measured = measure(config, self._last(run), last, self.data, self.rows.plan.samples)
        measured.save(folder / _LOSSES)
        return measured

    def _scenes(self, run: Run, checker: CaptionChecker) -> Shares:
        """What the checker reads from the plan's scenes, drawn with the averaged weights."""
        path = self.out / run.path / _SCENES
        if not path.is_file():
            asked = checker.scenes(self.rows.plan.scenes) if checker.scenes else []
            found = draw_captions(Pipeline.load(self._last(run)), checker, asked, _Quiet(self.talk))
            write_json(path, found.to_json())
        return shares_from_json(read_json(path), path)

    def _figures(self, run: Run) -> dict[str, float]:
        """Of the plan's tests of `dit validate`, those that could be measured; again where the plan has others now."""
        path, tests = self.out / run.path / _FIGURES, self.rows.plan.tests
        if not path.is_file() or read_json(path)["tests"] != tests:
            options = ValidateOptions(tests, checker=self.checker and replace(self.checker, scenes=None))
            done = validate(self._last(run), self.data, options=options, talk=_Quiet(self.talk))
            figures = {one.name: one.value for one in done.criteria if one.value is not None}
            write_json(path, {"tests": tests, "figures": figures})
        return {name: float(value) for name, value in read_json(path)["figures"].items()}

    def _last(self, run: Run) -> Path:
        return list_checkpoints(self.out / run.path / "checkpoints")[-1].path

    def _train(self, config: AnyConfig, folder: Path, resume: bool) -> None:
        try:
            train(config, self.data, folder, resume=resume, talk=_Quiet(self.talk))
        except Interrupted as stop:
            stop.hint = "the same dit ablate command goes on where this one stopped"
            raise


def claim(out: Path, rows: Rows, data: Path) -> None:
    """Writes down whose folder this is. Raises `UsageError` where another plan's runs stand in it."""
    path = out / _PLAN
    plan, own = rows.plan, {name: dict(keys) for name, keys in rows.changes.items()}
    fixed = {
        "base": plan.base,
        "updates": rows.updates,
        "set": plan.set,
        "samples": plan.samples,
        "scenes": plan.scenes,
    }
    fixed["data"] = str(data.resolve())
    if path.is_file():
        before = read_json(path)
        other = [key for key, value in fixed.items() if before.get(key, value) != value]
        other += [name for name, keys in own.items() if before["rows"].get(name, keys) != keys]
        if other:
            raise UsageError(
                f"{out}: runs of another plan stand there; differing: {', '.join(other)}",
                f"give this one a folder of its own: --out {quoted(out)}2",
            )
        own = {**before["rows"], **own}
    write_json(path, {**fixed, "rows": own})
