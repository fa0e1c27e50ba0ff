"""`dit runs` lists the runs under a folder: state, step, last losses, verdict, time left; the newest first.

Each run's folder has a page, `index.html`, that training renews; `--page` makes it again from the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dittool import completion
from dittool.commands.options import JsonOption, QuietOption, VerboseOption, console_for

if TYPE_CHECKING:
    from dittool.runs.state import RunState


def main(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Of runs, or of one run.", autocompletion=completion.runs_and_checkpoints
        ),
    ] = Path("runs"),
    page: Annotated[bool, typer.Option("--page", help="Write each run's index.html again.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List runs: state, step, losses, verdict, time left."""
    from dittool.ckpt.run_log import read_log
    from dittool.errors import UsageError
    from dittool.nearest import did_you_mean
    from dittool.runs.page import settings_of, write_page
    from dittool.runs.state import runs_under

    console = console_for(json, quiet, verbose)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", did_you_mean(folder, "begin a run with: dit train"))
    found = runs_under(folder)
    if page:
        for run in found:
            console.note(f"wrote {write_page(run.folder, read_log(run.folder), settings_of(run.folder))}")
    console.json({"runs": [run.to_json() for run in found]})
    if found:
        console.table(("run", "state", "step", "loss", "hold-out", "verdict", "left"), [_row(run) for run in found])
    else:
        console.result(f"{folder}: no runs; a run's folder holds a resolved.toml")


def _row(run: RunState) -> tuple[str, ...]:
    from dittool.console import duration_text

    losses = ["" if value is None else f"{value:.4g}" for value in (run.loss, run.eval_loss)]
    step = f"{run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
    verdict = {"GO": "✔ GO", "NO-GO": "✘ NO-GO"}.get(run.verdict or "", run.verdict or "")
    left = "" if run.seconds_left is None else duration_text(run.seconds_left)
    return (run.name, run.state, step, *losses, verdict, left)
