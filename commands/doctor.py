"""`dit doctor` looks at this machine and installation and says what will bite, before a run finds out.

`dit doctor --preset base --out runs/base` holds them against what a preset needs. Exit code 1 when something will bite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dittool import completion
from dittool.commands.options import NONE_GIVEN, JsonOption, OverridesOption, QuietOption, VerboseOption, console_for


def main(
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            metavar="P",
            help="What shall be trained: a preset's name, or a .toml.",
            autocompletion=completion.presets,
        ),
    ] = "nano",
    data: Annotated[Path, typer.Option("--data", help="Folder of shards, which may not be there yet.")] = Path(
        "data/shards"
    ),
    out: Annotated[Path, typer.Option("--out", help="Where runs go.")] = Path("runs"),
    overrides: OverridesOption = NONE_GIVEN,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Find what of this machine and installation will bite.

    Versions that do not fit, device, memory, /dev/shm, limits of the shell, disk, terminal: each with what is needed,
    what is there, and what to do. Exit code 1 when something will bite.
    """
    from dittool.config.load import load_config
    from dittool.errors import ANSWER_IS_NO
    from dittool.machine import BITES, NOTE, OK
    from dittool.train.readiness import examine

    console = console_for(json, quiet, verbose)
    findings = examine(load_config(preset, overrides), data, out)
    counts = {status: sum(one.status == status for one in findings) for status in (OK, NOTE, BITES)}
    console.json(
        {
            "preset": preset,
            "findings": [vars(one) for one in findings],
            "counts": counts,
            "ok": not counts[BITES],
        }
    )
    marks = {OK: "✔", NOTE: "!", BITES: "✘"}
    console.table(("", "checked", "found"), [(marks[one.status], one.check, one.what) for one in findings])
    for one in findings:
        if one.remedy:
            console.result(f"{marks[one.status]} {one.check}: {one.remedy}")
    verdict = f"{counts[BITES]} will bite" if counts[BITES] else "nothing will bite"
    console.result(f"{verdict} a run of {preset}; {counts[NOTE]} worth knowing, {counts[OK]} well")
    if counts[BITES]:
        raise typer.Exit(ANSWER_IS_NO)
