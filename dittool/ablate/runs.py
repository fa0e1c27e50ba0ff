"""Trains what a plan asks for, one run after the other, and remembers what is done: killed at any moment, the same
command goes on.

    OUT/runs/ROW/seed0_updates1100/     a run as `dit train` leaves it, losses.npz, scenes.json, figures.json, and of
                                        each look on the way losses_updates275.npz
    OUT/costs.json                      time and memory of an update of each row beside the base's
    OUT/plan.json                       the plan that the folder belongs to
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from dittool.ablate.cost import Cost, cost
from dittool.ablate.plan import BASE, Rows
from dittool.ablate.statistics import WORSE, Difference, at_look
from dittool.ablate.yardstick import Measured, measure
from dittool.ckpt.files import newest_valid
from dittool.ckpt.run_log import read_log
from dittool.config.architectures import AnyConfig
from dittool.console import Talk, Task
from dittool.errors import DitError, Interrupted, StorageError, UsageError, described, from_os_error, one_line
from dittool.sampling.pipeline import Pipeline
from dittool.shell import quoted
from dittool.storage import read_json, write_json
from dittool.train.loop import train
from dittool.validate.captions import Shares, draw_captions, shares_from_json
from dittool.validate.run import ValidateOptions, validate
from dittool.validate.text_edit import CaptionChecker

_SCENES, _FIGURES = "scenes.json", "figures.json"  # of a run
_COSTS, _PLAN = "costs.json", "plan.json"
GOES_ON = "the same dit ablate command goes on where this one stopped"
_FREE = ("train.eval_every",)  # may change with a plan's looks: nothing that is computed depends on it


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


@dataclass(frozen=True)
class Job:
    """A run as far as a look on the way, or to its end."""

    run: Run
    until: int  # updates

    @property
    def ends(self) -> bool:
        return self.until == self.run.updates

    @property
    def losses(self) -> str:
        """The file in the run's folder."""
        return "losses.npz" if self.ends else f"losses_updates{self.until}.npz"


@dataclass(frozen=True)
class Look:
    """A row beside the base on the way, both after so many updates of as long a schedule."""

    updates: int
    difference: Difference  # with an interval of the confidence sequence


@dataclass
class Work:
    """What has been done of a plan. `failed` holds why a row could not be run, `stopped` where it was surely worse; its
    other runs are left out.
    """

    rows: Rows
    data: Path
    out: Path
    talk: Talk
    measured: dict[Run, Measured] = field(default_factory=dict)
    looked: dict[Job, Measured] = field(default_factory=dict)  # on the way
    failed: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, Look] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    checker: CaptionChecker | None = None  # reads pictures of the drawn set
    scenes: dict[Run, Shares] = field(default_factory=dict)  # what was read from the plan's scenes
    figures: dict[Run, dict[str, float]] = field(default_factory=dict)  # of the plan's tests, by criterion

    def do(self, job: Job) -> None:
        """Trains and measures what is not there yet. What is wrong with a row is remembered; what is wrong with the
        base, the disk or the machine is raised.
        """
        run = job.run
        if not self.wants(job):
            return
        with self._row_may_fail(run.row):
            if not job.ends:
                if (measured := self._measured(job)) is not None:
                    self.looked[job] = measured
                return
            self.measured[run] = self._measured_at_end(job)
            if self.rows.plan.scenes and self.checker:
                self.scenes[run] = self._scenes(run, self.checker)
            if self.rows.plan.tests:
                self.figures[run] = self._figures(run)

    @contextmanager
    def _row_may_fail(self, row: str) -> Iterator[None]:
        """Remembers what is wrong with a row, in whatever way; raises what is wrong with the base, the disk or the
        machine.
        """
        try:
            yield
        except (Interrupted, StorageError):
            raise
        except Exception as error:
            if row == BASE or (isinstance(error, OSError) and from_os_error(error)):
                raise
            self.fail(row, one_line(error) if isinstance(error, DitError) else described(error))

    def fail(self, row: str, reason: str) -> None:
        """Leaves a row out."""
        self.failed[row] = reason
        self.talk.warn(f"{row}: {reason}; the row is left out")

    def wants(self, job: Job) -> bool:
        """Whether a job is of a row that is still run, and not known yet."""
        left_out = job.run.row in self.failed or job.run.row in self.stopped
        return not left_out and job.run not in self.measured and job not in self.looked

    def is_made(self, job: Job) -> bool:
        """Whether its files are there, so that `do` has only to read them."""
        folder, plan = self.out / job.run.path, self.rows.plan
        if not job.ends:
            return (folder / job.losses).is_file() or self._is_past(job)
        drawn = not (plan.scenes and self.checker) or (folder / _SCENES).is_file()
        tested = not plan.tests or self._has_figures(job.run)
        return (folder / job.losses).is_file() and drawn and tested

    def look(self, row: str, updates: int) -> Look | None:
        """A row beside the base on the way; None where a run of one of the seeds was not measured there."""
        runs = {name: [Run(name, seed, self.rows.updates) for seed in self.rows.plan.seeds] for name in (BASE, row)}
        found = {name: [self.looked.get(Job(run, updates)) for run in several] for name, several in runs.items()}
        losses = [[one.losses.mean(axis=-1) for one in several if one] for several in found.values()]
        if min(map(len, losses)) < len(self.rows.plan.seeds):
            return None
        return Look(updates, at_look(np.stack(losses[0]), np.stack(losses[1]), self.rows.looks_of_a_seed))

    def stop_worse(self, updates: int) -> None:
        """Stops the rows that are surely worse after so many updates."""
        for row in self.rows.changes:
            look = self.look(row, updates) if row != BASE and row not in self.failed else None
            if look and look.difference.verdict == WORSE and self.rows.plan.stop_worse and row not in self.stopped:
                self.stopped[row] = look
                self.talk.note(f"{row}: stopped after {updates:,} updates, worse by at least {look.difference.low:.4f}")

    def measure_costs(self, remember: bool = True) -> None:
        """Of each row beside the base, once a plan where that is to be remembered."""
        path = self.out / _COSTS
        known = {row: Cost(**value) for row, value in read_json(path).items()} if path.is_file() else {}
        plan, first = self.rows.plan, self.rows.config(BASE, self.rows.plan.seeds[0], self.rows.updates)
        for row in self.rows.changes:
            if row not in known and row not in self.failed:
                self.talk.note(f"{row}: the cost of an update, by turns with the base's")
                with self._row_may_fail(row):
                    known[row] = cost(first, self.rows.config(row, plan.seeds[0], self.rows.updates), self.data)
                if remember:
                    write_json(path, {name: asdict(value) for name, value in known.items()})
        self.costs = {row: known[row] for row in self.rows.changes if row in known}

    def _measured(self, job: Job) -> Measured | None:
        """None: the run went past this look before anybody wanted it."""
        run, folder = job.run, self.out / job.run.path
        if (folder / job.losses).is_file():
            return Measured.read(folder / job.losses)
        if self._is_past(job):
            return None
        self.talk.note(f"{run.row}: seed {run.seed}, {job.until:,} of {run.updates:,} updates")
        config, checkpoints = self.rows.config(run.row, run.seed, run.updates), folder / "checkpoints"
        newest = newest_valid(checkpoints)
        if newest is None or newest.step != job.until:  # else it was killed before it was measured
            if newest is None and checkpoints.is_dir():  # killed while it saved the first
                shutil.rmtree(checkpoints)
            self._train(config, folder, job.until, resume=newest is not None)
        evaluated = [row for row in read_log(folder) if row["step"] <= job.until]
        figures = [{k: v for k, v in row.items() if k.startswith("eval_")} for row in evaluated]
        last: dict[str, float] = next(filter(None, reversed(figures)), {})
        measured = measure(config, self._last(run), last, self.data, self.rows.plan.samples)
        measured.save(folder / job.losses)
        return measured

    def _measured_at_end(self, job: Job) -> Measured:
        measured = self._measured(job)
        assert measured is not None, "no run goes past its end"
        return measured

    def _is_past(self, job: Job) -> bool:
        newest = newest_valid(self.out / job.run.path / "checkpoints")
        return not job.ends and newest is not None and (newest.step or 0) > job.until

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
        if not self._has_figures(run):
            options = ValidateOptions(tests, checker=self.checker and replace(self.checker, scenes=None))
            done = validate(self._last(run), self.data, options=options, talk=_Quiet(self.talk))
            figures = {one.name: one.value for one in done.criteria if one.value is not None}
            write_json(path, {"tests": tests, "figures": figures})
        return {name: float(value) for name, value in read_json(path)["figures"].items()}

    def _has_figures(self, run: Run) -> bool:
        path = self.out / run.path / _FIGURES
        return path.is_file() and read_json(path)["tests"] == self.rows.plan.tests

    def _last(self, run: Run) -> Path:
        newest = newest_valid(self.out / run.path / "checkpoints")
        assert newest is not None, "it has just been trained"
        return newest.path

    def _train(self, config: AnyConfig, folder: Path, until: int, resume: bool) -> None:
        quiet = _Quiet(self.talk)
        try:
            done = train(config, self.data, folder, resume=resume, until=until, named_changes=_FREE, talk=quiet)
        except Interrupted as stop:
            stop.hint = GOES_ON
            raise
        if done is not None and done.signal_number is not None:  # the run is at its end, the plan is not
            raise Interrupted("stopped, runs saved", GOES_ON, done.signal_number)


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
