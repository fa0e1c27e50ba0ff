"""`dit demo` goes from nothing to a verdict on this machine: it draws a data set, trains on it, judges and samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dittool.commands.options import JsonOption, QuietOption, VerboseOption, console_for


def main(
    out: Annotated[Path, typer.Option("--out", help="Where everything goes.")] = Path("runs/demo"),
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Draw, embed, shard, audit, train, validate and sample: a few minutes on a CPU.

    Nothing is downloaded. Ends with a verdict, and exits with 1 when it is NO-GO.
    """
    from dittool.audit.report import summary_line
    from dittool.console import duration_text
    from dittool.demo.run import STAGES, run_demo
    from dittool.errors import ANSWER_IS_NO
    from dittool.validate.verdict import criteria_rows

    console = console_for(json, quiet, verbose)
    demo = run_demo(out, talk=console)
    validation = demo.validation
    assert validation is not None, "a demo that has come to its end was judged"
    report = {"report": str(validation.report), "contact_sheet": str(validation.folder / "contact_sheet.png")}
    console.json(
        {
            **report,
            "verdict": validation.verdict,
            "results": validation.results,
            "images": [str(image.path) for image in demo.images],
            "stages": [
                {"stage": stage, "seconds": round(seconds, 1)}
                for stage, seconds in zip(STAGES, demo.seconds, strict=True)
            ],
        }
    )
    for audited in demo.audits:
        console.result(f"audit {summary_line(audited)}")
    console.table(("", "criterion", "value", "needed"), criteria_rows(validation.criteria))
    console.result(f"{validation.verdict}, after {duration_text(sum(demo.seconds))}")
    console.result(f"  report          {report['report']}")
    console.result(f"  contact sheet   {report['contact_sheet']}")
    for image in demo.images:
        what = image.settings["prompt"] or f"like {image.settings['reference']}"
        console.result(f"  {image.path}   {what}")
    if not validation.go:
        raise typer.Exit(ANSWER_IS_NO)
