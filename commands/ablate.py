"""`dit ablate PLAN.toml` trains the same run with one thing changed at a time and says what each change is worth."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from dittool.commands.options import JsonOption, QuietOption, VerboseOption, console_for
from dittool.console import Console, duration_text

if TYPE_CHECKING:
    from dittool.ablate.plan import Rows
    from dittool.ablate.results import Results


def main(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A .toml file: docs/ablate.md.")],
    data: Annotated[Path | None, typer.Option("--data", help="Folder of shards.", show_default="data/shards")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the runs and the page.")] = Path("runs/ablate"),
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Runs at a time.", show_default="one a GPU")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how long it will take; write nothing.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train the same run with one thing changed, pair by pair.

    Runs of one seed see the same samples, noise, timesteps and dropout, so a difference is the change's. Interrupted,
    the same command goes on where it stopped.
    """
    from dittool.ablate.ablation import ablate, duration, require_judgeable
    from dittool.ablate.page import to_json
    from dittool.ablate.plan import read_plan
    from dittool.demo.checker import SCENE_CHECKER

    console = console_for(json, quiet, verbose)
    rows = read_plan(plan)
    require_judgeable(rows, SCENE_CHECKER)  # before a set is drawn
    if dry_run:
        with TemporaryDirectory() as folder:
            runs, seconds = duration(rows, _shards(rows, data, Path(folder), console), console, processes)
        console.json({"runs": runs, "seconds": seconds})
        console.result(f"{runs} runs, {duration_text(seconds)} on this machine, without what confirms the best row")
        return
    results = ablate(rows, _shards(rows, data, out / "data", console), out, console, SCENE_CHECKER, processes)
    console.json(to_json(results))
    _show(results, console)


def _shards(rows: Rows, data: Path | None, place: Path, console: Console) -> Path:
    """Those that are named, or the drawn set that the plan asks for, made at `place`."""
    from dittool.ablate.plan import BASE
    from dittool.config.architectures import image_config
    from dittool.demo.run import drawn_shards
    from dittool.errors import UsageError

    count = rows.plan.drawn_images
    if not count:
        return data or Path("data/shards")
    if data is not None:
        raise UsageError("--data: the plan draws its own set (drawn_images)", "leave the option or the key out")
    config = image_config(rows.config(BASE, rows.plan.seeds[0], rows.updates), rows.plan.base, "drawn_images")
    return drawn_shards(place, config, count, console)


def _show(results: Results, console: Console) -> None:
    from dittool.ablate.page import scene_rows, shown_row, target_text
    from dittool.ablate.results import summary

    rows = [shown_row(row, results) for row in results.rows]
    console.table(
        ("row", "at equal updates", "time", "memory", "at equal time", "updates to base's loss", "verdict"),
        [(r.name, r.equal_updates, r.time, r.memory, r.equal_time, r.reaches, r.verdict) for r in rows],
    )
    scenes = [shown for row in results.rows for shown in scene_rows(row)]
    if scenes:
        console.table(
            ("row", "updates", "shape, captions trained on", "shape, captions never seen", "all, never seen"),
            [(s.name, f"{s.updates:,}", s.known["shape"], s.new["shape"], s.new["all"]) for s in scenes],
        )
    if results.plan.plan.target is not None:
        console.table(("row", "reaches the target after"), [(row.name, target_text(row)) for row in results.rows])
    console.result(summary(results))
    console.result(str(results.out / "report.html"))
