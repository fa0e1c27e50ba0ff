"""The options that commands share, and the console they lead to. A command writes

    def main(preset: PresetOption, overrides: OverridesOption = NONE_GIVEN, json: JsonOption = False, …):
        console = console_for(json, quiet, verbose)

Light imports only: this file is read by every `dit COMMAND --help`.
"""

from __future__ import annotations

import os
import platform
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dittool import __version__, completion
from dittool.console import Console

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of text.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no remarks; warnings stay.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Versions, and the time of each remark.")]
PLACE = "FOLDER|ADDRESS"  # of shards: s3://, gs://, hf://, https://
PresetOption = Annotated[
    str,
    typer.Option(
        "--preset",
        metavar="P",
        help="A shipped preset's name, or a path ending in .toml. See: dit presets",
        autocompletion=completion.presets,
    ),
]
OverridesOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Override a configuration key: train.lr=1e-4. Repeatable.",
        show_default=False,
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace a file of another origin that stands where the result goes.")
]

# Of a stranger's model, which runs in a process of its own
KwargsOption = Annotated[
    str | None, typer.Option("--kwargs", metavar="JSON", help="Arguments of a model factory.", show_default=False)
]
ExampleOption = Annotated[
    str | None,
    typer.Option("--example", metavar="FILE.PY:F", help="Makes the inputs of a factory's model.", show_default=False),
]
TimeLimitOption = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        metavar="SECONDS",
        min=1,
        help="What a factory's model may take, all rules together.",
        show_default="900",
    ),
]
MemoryLimitOption = Annotated[
    float | None,
    typer.Option(
        "--memory-limit",
        metavar="GB",
        min=0.1,
        help="Resident memory that a factory's model may take.",
        show_default="nine tenths of this machine's",
    ),
]


FailOnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        metavar="WHAT",
        help="What makes the exit code 1: fail, warn (warnings too), never, or codes of rules.",
        show_default="fail",
    ),
]


class AuditFormat(str, Enum):
    table = "table"
    json = "json"
    markdown = "markdown"
    sarif = "sarif"
    junit = "junit"


class Profile(str, Enum):
    scratch = "scratch"
    any = "any"


ProfileOption = Annotated[
    Profile | None,
    typer.Option(
        "--profile",
        help="scratch: the whole recipe fails; any: what is broken fails, what is a choice warns. By default any for a"
        " foreign model and weights alone.",
        show_default=False,
    ),
]
TrainedOption = Annotated[
    bool, typer.Option("--trained", help="A factory's model has trained weights: how it begins is not judged.")
]


def _choose_device(name: str | None) -> str | None:
    if name is not None or "dittool.devices" in sys.modules:  # else nothing was chosen, and torch need not be loaded
        from dittool.devices import choose_device

        choose_device(name)
    return name


DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="D",
        help="cpu, cuda, cuda:N or mps.",
        show_default="the first GPU, else the CPU",
        callback=_choose_device,
    ),
]


NONE_GIVEN: list[str] = []  # default of an option that may be repeated


def console_for(json: bool, quiet: bool, verbose: bool) -> Console:
    """The console behind `--json`, `--quiet` and `--verbose`, which says first what runs. Raises `UsageError` for the
    last two together.
    """
    if quiet and verbose:
        from dittool.errors import UsageError

        raise UsageError(
            "--quiet and --verbose exclude each other: one leaves remarks out, the other adds to them",
            "leave one of them out",
        )
    console = Console(json=json, quiet=quiet, verbose=verbose)
    if verbose:
        console.note(f"dit {__version__}, Python {platform.python_version()}, process {os.getpid()} in {Path.cwd()}")
    return console


def require_effect(context: typer.Context, mode: str, *acting: str) -> None:
    """Refuses arguments that were given and do nothing in this mode of a command: none is ignored in silence.

    Args:
        mode: as it was asked for: "with --index", "without --export".
        acting: names of the parameters that act in it; --json, --quiet and --verbose always do.

    Raises `UsageError` naming what was given in vain.
    """
    from dittool.errors import UsageError

    known = {"json", "quiet", "verbose", *acting}
    vain = [
        parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.metavar)
        for parameter in context.command.params
        if parameter.name not in known
        and (given := context.get_parameter_source(str(parameter.name))) is not None
        and given.name == "COMMANDLINE"
    ]
    if vain:
        raise UsageError(f"{', '.join(vain)}: no effect {mode}", "leave it out, or run the commands one by one")
