"""Works through a plan: the cost of its rows, its runs as far as each look and to their ends, its table and page."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dittool.ablate.page import write_page, write_results
from dittool.ablate.plan import BASE, Rows
from dittool.ablate.results import Results, jobs_until, planned, summarised, updates_at_equal_time
from dittool.ablate.runs import Job, Run, Work, claim
from dittool.ablate.workers import Workers
from dittool.config.architectures import AnyConfig, of_kind
from dittool.config.schema import Config
from dittool.console import SILENT, Talk
from dittool.data.shards.index import HOLDOUT
from dittool.data.shards.read import ShardSet
from dittool.devices import device_of_choice, visible_gpus
from dittool.errors import BadDataError, UsageError, listed
from dittool.families.family import family_of
from dittool.shell import command_line
from dittool.storage import folder_lock, nothing_left_of_refusal, output_folder
from dittool.train.distributed import Ranks
from dittool.validate.run import ValidateOptions
from dittool.validate.text_edit import CaptionChecker

_SECONDS_BETWEEN_PAGES = 30


def ablate(
    rows: Rows,
    data: Path,
    out: Path,
    talk: Talk = SILENT,
    checker: CaptionChecker | None = None,
    processes: int | None = None,
) -> Results:
    """Does what is left of a plan, and writes `results.json` after each run and `report.html` now and then.

    Args:
        checker: reads pictures of the drawn set.
        processes: runs at a time; by default one a GPU.

    Raises what `train` raises for the base; a variant that fails is a row with its reason.
    """
    first = rows.config(BASE, rows.plan.seeds[0], rows.updates)
    require_judgeable(rows, checker)
    _require_measurable(first, data)
    with nothing_left_of_refusal(out), folder_lock(output_folder(out)):
        claim(out, rows, data)
        work = Work(rows, data, out, talk, checker=checker)
        with _workers(work, processes or processes_by_default()) as workers:
            workers.measure_costs()
            for updates in rows.looks:
                _shown(work, workers.do(jobs_until(work, updates)))
                work.stop_worse(updates)
            _shown(work, workers.do(Job(run, run.updates) for run in planned(work)))
            results = summarised(work)
            best = results.best()
            if rows.plan.confirm_seeds and best is not None:
                _shown(work, workers.do(Job(run, run.updates) for run in _confirming(work, best.name)))
                results = summarised(work, best.name)
        write_page(results)
        return results


def processes_by_default() -> int:
    """One a GPU."""
    return max(1, len(visible_gpus()))


class _OneProcess:
    """Does in this process what `Workers` do in several."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def measure_costs(self) -> None:
        self._work.measure_costs()

    def do(self, jobs: Iterable[Job]) -> Iterator[Job]:
        for job in jobs:
            self._work.do(job)
            yield job


@contextmanager
def _workers(work: Work, processes: int) -> Iterator[Workers | _OneProcess]:
    if processes == 1:
        yield _OneProcess(work)
    else:
        with Workers(work, processes) as workers:
            yield workers


def _shown(work: Work, jobs: Iterable[Job]) -> None:
    """Goes through jobs as they end, and writes what is known."""
    shown = time.monotonic()
    for _ in jobs:
        write_results(summarised(work))
        if time.monotonic() - shown > _SECONDS_BETWEEN_PAGES:
            write_page(summarised(work))
            shown = time.monotonic()


def require_judgeable(rows: Rows, checker: CaptionChecker | None) -> None:
    """Raises `UsageError` for tests and scenes that no run of the plan could be judged by, before any is trained."""
    plan = rows.plan
    if not plan.tests and not plan.scenes:
        return
    config = rows.config(BASE, plan.seeds[0], rows.updates)
    of_kind(config, plan.base, "tests and scenes are of models with captions", Config)
    if plan.tests:
        ValidateOptions(plan.tests)
    if plan.scenes and (checker is None or checker.scenes is None):
        raise UsageError("scenes: nothing here reads pictures back", "give ablate(…, checker=SCENE_CHECKER)")
    if plan.target is not None and checker and plan.target_attribute not in checker.attributes:
        raise UsageError(
            f"target_attribute: the checker reads no '{plan.target_attribute}'",
            f"there are {listed(checker.attributes)}",
        )


def _require_measurable(config: AnyConfig, data: Path) -> None:
    """Before anything is written. Raises what `open_data` raises, and `BadDataError` where nothing is held out though
    the family measures by that.
    """
    family = family_of(config)
    family.open_data(config, data, Ranks(0, 1, device_of_choice()))
    if family.measured_on_holdout and not ShardSet.open(data).split(HOLDOUT):
        raise BadDataError(
            f"{data}: nothing is held out, and on training samples no row could be compared",
            f"hold some out: {command_line('dit', 'shard', '--holdout', '0.05', '--out', data)}",
        )


def duration(rows: Rows, data: Path, talk: Talk = SILENT, processes: int | None = None) -> tuple[int, float]:
    """(Runs, seconds that they will take) of a plan, from a few updates of each row. Nothing is written."""
    work = Work(rows, data, Path(), talk)
    work.measure_costs(remember=False)
    runs = planned(work)
    seconds = sum(run.updates * work.costs[run.row].seconds for run in runs)
    return len(runs), seconds / (processes or processes_by_default())


def _confirming(work: Work, row: str) -> list[Run]:
    fewer = updates_at_equal_time(work, row) if work.rows.plan.equal_time else work.rows.updates
    pairs = [(Run(BASE, seed, work.rows.updates), Run(row, seed, fewer)) for seed in work.rows.plan.confirm_seeds]
    return [run for pair in pairs for run in pair]
