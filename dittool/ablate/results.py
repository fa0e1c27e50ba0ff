"""From a plan to its table: every row beside the base, at equal updates and at equal time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from dittool.ablate.cost import Cost
from dittool.ablate.plan import BASE, Keys, Rows
from dittool.ablate.runs import Job, Look, Run, Work
from dittool.ablate.statistics import BETTER, Difference, at_look, difference
from dittool.validate.captions import ALONE, Share, Shares, pooled


@dataclass(frozen=True)
class Compared:
    """A variant after some updates beside the base after all of them."""

    updates: int
    difference: Difference
    by_column: dict[str, Difference]  # `both 0.30`: mode and timestep; or the figure that a family goes by
    by_mode: dict[str, Difference]  # over all timesteps; empty where a family has figures alone
    by_timestep: dict[str, Difference]  # over all modes
    figures: dict[str, Difference] = field(default_factory=dict)  # of the plan's tests, over the seeds


@dataclass(frozen=True)
class Target:
    """The shortest of the schedules that were run whose pictures reach the plan's target, over its seeds."""

    updates: int
    seconds: float  # of training, at the cost that was measured
    share: Share


@dataclass
class Row:
    """What is known of a row."""

    name: str
    keys: Keys
    cost: Cost | None = None
    failed: str = ""
    looks: list[Look] = field(default_factory=list)  # on the way
    stopped: Look | None = None  # the one that ended the row
    equal_updates: Compared | None = None
    equal_time: Compared | None = None
    shorter: list[Compared] = field(default_factory=list)
    confirmed: Compared | None = None  # on seeds that no choice has seen
    scenes: dict[int, Shares] = field(default_factory=dict)  # by updates: what was read from the runs of all seeds
    target: Target | None = None

    @property
    def updates_to_base(self) -> int | None:
        """The fewest updates of a schedule of its own that reach the base's loss; None: none of those tried."""
        tried = [one for one in (self.equal_updates, self.equal_time, *self.shorter) if one]
        return min((one.updates for one in tried if one.difference.mean <= 0), default=None)


@dataclass
class Results:
    """Of a plan, or of what has been done of it."""

    plan: Rows
    out: Path
    rows: list[Row]
    base_loss: float | None
    runs_done: int
    runs_planned: int
    folders: dict[Run, Path]  # of each run that was measured, at its end or on the way

    @property
    def complete(self) -> bool:
        return self.runs_done == self.runs_planned

    @property
    def tried(self) -> int:
        return len(self.rows) - 1

    def best(self) -> Row | None:
        """The row that is better by the most, at equal time where that was run; on too few seeds, by what they show."""
        ran = [row for row in self.rows if not row.failed]
        judged = [(row, found) for row in ran if (found := decisive(row)) and found.verdict == BETTER]
        return min(judged, key=lambda pair: pair[1].mean)[0] if judged else None


def summary(results: Results) -> str:
    """What came out, in a line."""
    best = results.best()
    if best is None or (found := decisive(best)) is None:
        return "no row is shown to be better than the base"
    return f"by the most: {best.name}, {found.words()}"


def verdict(row: Row, results: Results) -> str:
    """In words; "" as long as it may not be given: at the end of the plan, or where a look on the way has stopped the
    row.
    """
    if row.failed:
        return row.failed
    if row.stopped:
        updates, low = row.stopped.updates, row.stopped.difference.low
        return f"worse, stopped after {updates:,} of {results.plan.updates:,} updates: by at least {low:.4f} there"
    judged = decisive(row)
    return judged.words() if judged and results.complete else ""


def decisive(row: Row) -> Difference | None:
    """By what a row is judged: the difference at equal time, or at equal updates where that alone was run."""
    compared = row.equal_time or row.equal_updates
    return compared.difference if compared else None


def planned(work: Work) -> list[Run]:
    """All runs but those that confirm, in order: a seed after the other, the base first, so that pairs end early."""
    plan, updates = work.rows.plan, work.rows.updates
    # the fewest updates to a target are the base's, too
    shortened = [row for row in work.rows.changes if row != BASE or plan.target is not None]
    full = [Run(row, seed, updates) for seed in plan.seeds for row in work.rows.changes]
    short = [Run(row, seed, fewer) for seed in plan.seeds for row in shortened for fewer in _schedules(work, row)]
    return [run for run in dict.fromkeys(full + short) if run.row not in work.failed and run.row not in work.stopped]


def jobs_until(work: Work, updates: int) -> list[Job]:
    """All full runs as far as a look on the way."""
    runs = [run for run in planned(work) if run.updates == work.rows.updates]
    return [Job(run, updates) for run in runs]


def _schedules(work: Work, row: str) -> list[int]:
    """Other numbers of updates that a row is run to: as many as take the base's time, and the plan's shares."""
    own = [updates_at_equal_time(work, row)] if work.rows.plan.equal_time and row != BASE else []
    return [*own, *(max(2, round(share * work.rows.updates)) for share in work.rows.plan.shorter)]


def updates_at_equal_time(work: Work, row: str) -> int:
    return max(2, round(work.rows.updates / (work.costs[row].time if row in work.costs else 1.0)))


def summarised(work: Work, confirmed: str = "") -> Results:
    """What is known so far."""
    plan, updates = work.rows.plan, work.rows.updates
    rows = []
    for name, keys in work.rows.changes.items():
        row = Row(name, keys, work.costs.get(name), work.failed.get(name, ""), stopped=work.stopped.get(name))
        if name != BASE:
            row.looks = [look for at in work.rows.looks if (look := work.look(name, at))]
            row.equal_updates = _compared(work, name, updates, plan.seeds)
            if plan.equal_time:
                row.equal_time = _compared(work, name, updates_at_equal_time(work, name), plan.seeds)
            shares = [max(2, round(share * updates)) for share in plan.shorter]
            row.shorter = [one for fewer in shares if (one := _compared(work, name, fewer, plan.seeds))]
        if name == confirmed:
            fewer = updates_at_equal_time(work, name) if plan.equal_time else updates
            row.confirmed = _compared(work, name, fewer, plan.confirm_seeds)
        row.scenes = _scenes(work, name)
        row.target = _target(work, row)
        rows.append(row)
    runs_of_base = [Run(BASE, seed, updates) for seed in plan.seeds]
    of_base = [work.measured[run].losses.mean() for run in runs_of_base if run in work.measured]
    runs = planned(work)
    done = sum(run in work.measured for run in runs)
    folders = {run: work.out / run.path for run in (*work.measured, *(job.run for job in work.looked))}
    return Results(work.rows, work.out, rows, float(np.mean(of_base)) if of_base else None, done, len(runs), folders)


def _compared(work: Work, row: str, updates: int, seeds: Sequence[int]) -> Compared | None:
    """Over the seeds of which both runs are done, as at a look where some are not; None without one."""
    pairs = [(Run(BASE, seed, work.rows.updates), Run(row, seed, updates)) for seed in seeds]
    both = [(work.measured[a], work.measured[b]) for a, b in pairs if a in work.measured and b in work.measured]
    if not both:
        return None
    base, variant = (np.stack([pair[side].losses for pair in both]) for side in (0, 1))  # (seeds, samples, columns)
    compare = partial(at_look, looks=work.rows.looks_of_a_seed) if len(both) < len(seeds) else difference

    def over(places: Sequence[int]) -> Difference:
        return compare(base[..., places].mean(axis=-1), variant[..., places].mean(axis=-1))

    def by(parts: Iterable[str]) -> dict[str, Difference]:
        """Over the columns that have a part in their name."""
        return {part: over([place for place, name in enumerate(columns) if part in name.split()]) for part in parts}

    columns = both[0][0].columns
    words = [name.split() for name in columns if " " in name]
    return Compared(
        updates,
        over(range(len(columns))),
        by_column={name: over([place]) for place, name in enumerate(columns)},
        by_mode=by(dict.fromkeys(mode for mode, _ in words)),
        by_timestep=by(dict.fromkeys(t for _, t in words)),
        figures=_figures(work, pairs),
    )


def _figures(work: Work, pairs: Sequence[tuple[Run, Run]]) -> dict[str, Difference]:
    """Of the plan's tests: one figure a run."""
    both = [(work.figures[a], work.figures[b]) for a, b in pairs if a in work.figures and b in work.figures]
    names = [name for name in both[0][0] if all(name in figures for pair in both for figures in pair)] if both else []
    tables = {name: np.array([[pair[0][name], pair[1][name]] for pair in both]) for name in names}  # (seeds, 2)
    return {name: difference(table[:, :1], table[:, 1:]) for name, table in tables.items()}


def _scenes(work: Work, row: str) -> dict[int, Shares]:
    found: dict[int, list[Shares]] = {}
    for run, shares in work.scenes.items():
        if run.row == row and run.seed in work.rows.plan.seeds:
            found.setdefault(run.updates, []).append(shares)
    return {updates: pooled(several) for updates, several in sorted(found.items())}


def _target(work: Work, row: Row) -> Target | None:
    plan = work.rows.plan
    for updates, shares in row.scenes.items():
        share = shares["new"][ALONE].get(plan.target_attribute)
        if plan.target is not None and share and share.value >= plan.target and row.cost:
            return Target(updates, updates * row.cost.seconds, share)
    return None
