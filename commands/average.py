"""`dit average RUN --width W` makes an average of the weights whose length is chosen after training.

The run must have followed averages: `dit train … -s 'ema.averages=[0.05, 0.1]'`. The file that is written is a
checkpoint for `dit sample`, `dit validate` and `dit inspect-ckpt --export`, not one to resume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dittool import completion
from dittool.commands.options import ForceOption, JsonOption, QuietOption, VerboseOption, console_for


def main(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run's folder, or one of checkpoints.",
            show_default=False,
            autocompletion=completion.runs_and_checkpoints,
        ),
    ],
    width: Annotated[
        float,
        typer.Option(
            "--width", min=0.001, max=0.25, help="Of the average, as a share of the updates made.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="F.pt", help="Where it goes.", show_default="RUN/averages/…")
    ] = None,
    at: Annotated[
        int | None, typer.Option("--at", metavar="STEP", help="After which step.", show_default="the last one kept")
    ] = None,
    force: ForceOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Average weights over a length chosen after training."""
    from dittool.ckpt.chosen_average import chosen_average, is_chosen_average, write_chosen_average
    from dittool.errors import UsageError
    from dittool.nearest import did_you_mean
    from dittool.storage import require_replaceable

    console = console_for(json, quiet, verbose)
    if not run.is_dir():
        raise UsageError(f"{run}: no such folder", did_you_mean(run, "name a run's folder"))
    if out is not None and out.suffix.lower() != ".pt":
        raise UsageError(f"--out {out}: the name must end in .pt", "for example: --out average.pt")
    inner = run / "checkpoints"
    found = chosen_average(inner if inner.is_dir() else run, width, at)
    out = out or run / "averages" / f"average_{width:g}_step{found.step:07d}.pt"
    require_replaceable(out, [], force, is_chosen_average, "--out")
    write_chosen_average(out, found, width)
    rest = f"{found.rest:.2%} of its function is left over"
    console.result(f"width {width:g} at step {found.step:,}, from {found.snapshots} averages ({rest}); wrote {out}")
    console.json(
        {"out": str(out), "step": found.step, "width": width, "snapshots": found.snapshots, "rest": found.rest}
    )
