"""`dit ablate PLAN.toml` trains the same run with one thing changed at a time and says what each change is worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dittool.commands.options import JsonOption, QuietOption, VerboseOption, console_for
from dittool.console import Console, duration_text

if TYPE_CHECKING:
    from dittool.ablate.results import Results


def main(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A .toml file: docs/ablate.md.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of shards.")] = Path("data/shards"),
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs and the page.")] = Path("runs/ablate"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how long it will take; write nothing.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train the same run with one thing changed, pair by pair.

    Runs of one seed see the same samples, noise, timesteps and dropout, so a difference is the change's. Interrupted,
    the same command goes on where it stopped.
    """
    from dittool.ablate.ablation import ablate, duration
    from dittool.ablate.page import to_json
    from dittool.ablate.plan import read_plan

    console = console_for(json, quiet, verbose)
    rows = read_plan(plan)
    if dry_run:
        runs, seconds = duration(rows, data, console)
        console.json({"runs": runs, "seconds": seconds})
        console.result(f"{runs} runs, {duration_text(seconds)} on this machine, without what confirms the best row")
        return
    results = ablate(rows, data, out, console)
    console.json(to_json(results))
    _show(results, console)


def _show(results: Results, console: Console) -> None:
    from dittool.ablate.page import shown_row
    from dittool.ablate.results import summary

    rows = [shown_row(row, results) for row in results.rows]
    console.table(
        ("row", "at equal updates", "time", "memory", "at equal time", "updates to base's loss", "verdict"),
        [(r.name, r.equal_updates, r.time, r.memory, r.equal_time, r.reaches, r.verdict) for r in rows],
    )
    console.result(summary(results))
    console.result(str(results.out / "report.html"))
