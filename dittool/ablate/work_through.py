"""Works through a plan: its runs one after the other, then its table and page."""

from __future__ import annotations

import time
from pathlib import Path

from dittool.ablate.page import write_page, write_results
from dittool.ablate.plan import BASE, Rows
from dittool.ablate.results import Results, planned, summarised, updates_at_equal_time
from dittool.ablate.runs import Run, Work, claim
from dittool.console import SILENT, Talk
from dittool.devices import device_of_choice
from dittool.families.family import family_of
from dittool.storage import folder_lock, nothing_left_of_refusal, output_folder
from dittool.train.distributed import Ranks

_SECONDS_BETWEEN_PAGES = 30


def ablate(rows: Rows, data: Path, out: Path, talk: Talk = SILENT) -> Results:
    """Does what is left of a plan, and writes `results.json` after each run and `report.html` now and then.

    Raises what `train` raises for the base; a variant that fails is a row with its reason.
    """
    first = rows.config(BASE, rows.plan.seeds[0], rows.updates)
    family_of(first).open_data(first, data, Ranks(0, 1, device_of_choice()))  # or refuse before anything is written
    with nothing_left_of_refusal(out), folder_lock(output_folder(out)):
        claim(out, rows, data)
        work = Work(rows, data, out, talk)
        work.measure_costs()
        shown = time.monotonic()
        for run in planned(work):
            work.do([run])
            write_results(summarised(work))
            if time.monotonic() - shown > _SECONDS_BETWEEN_PAGES:
                write_page(summarised(work))
                shown = time.monotonic()
        results = summarised(work)
        best = results.best()
        if rows.plan.confirm_seeds and best is not None:
            work.do(_confirming(work, best.name))
            results = summarised(work, best.name)
        write_page(results)
        return results


def duration(rows: Rows, data: Path, talk: Talk = SILENT) -> tuple[int, float]:
    """(Runs, seconds that they will take) of a plan, from a few updates of each row. Nothing is written."""
    work = Work(rows, data, Path(), talk)
    work.measure_costs(remember=False)
    runs = planned(work)
    return len(runs), sum(run.updates * work.costs[run.row].seconds for run in runs)


def _confirming(work: Work, row: str) -> list[Run]:
    fewer = updates_at_equal_time(work, row) if work.rows.plan.equal_time else work.rows.updates
    pairs = [(Run(BASE, seed, work.rows.updates), Run(row, seed, fewer)) for seed in work.rows.plan.confirm_seeds]
    return [run for pair in pairs for run in pair]
