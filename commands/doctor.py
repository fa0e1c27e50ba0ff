"""`dit doctor` looks at this machine and installation and says what will bite, before a run finds out.

`dit doctor --preset base --out runs/base` holds them against what a preset needs. Exit code 1 when something will bite.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dittool import completion
from dittool.commands.options import NONE_GIVEN, JsonOption, OverridesOption, QuietOption, VerboseOption, console_for

_ASSUMED = "nano"


def main(
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="P",
            help="What shall be trained: a preset's name, or a .toml.",
            show_default=_ASSUMED,
            autocompletion=completion.presets,
        ),
    ] = None,
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

    Versions that do not fit, device, memory, /dev/shm, limits of the shell, disk, terminal, and the weights of the
    encoders: each with what is needed, what is there, and what to do. Exit code 1 when something will bite.
    """
    from dittool.config.architectures import encoders_of
    from dittool.config.load import load_config
    from dittool.encoders.availability import weights
    from dittool.errors import ANSWER_IS_NO
    from dittool.machine import BITES, NOTE, OK
    from dittool.train.readiness import examine

    console = console_for(json, quiet, verbose)
    name = preset or _ASSUMED
    config = load_config(name, overrides)
    findings = [*examine(config, data, out), *weights(encoders_of(config), (data / "index.json").is_file())]
    counts = {status: sum(one.status == status for one in findings) for status in (OK, NOTE, BITES)}
    console.json(
        {
            "preset": name,
            "preset_assumed": preset is None,
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
    console.result(f"{verdict} a run of {name}; {counts[NOTE]} worth knowing, {counts[OK]} well")
    if preset is None:
        console.result(f"no preset was named: {name} was assumed; for another: dit doctor --preset P")
    if counts[BITES]:
        raise typer.Exit(ANSWER_IS_NO)
