"""`dit validate` judges a checkpoint by three tests and answers GO (exit 0) or NO-GO (exit 1), with a report to
look at.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dittool import completion
from dittool.address import place_of
from dittool.commands.options import PLACE, DeviceOption, JsonOption, QuietOption, VerboseOption, console_for
from dittool.console import Console
from dittool.shell import command_line

EVERY_TEST = "reconstruction,dino_swap,text_manip,mode_losses"


class Split(str, Enum):
    holdout = "holdout"
    train = "train"


def main(
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|CHECKPOINT",
            help="What to judge.",
            show_default="the newest run",
            autocompletion=completion.runs_and_checkpoints,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", parser=place_of, metavar=PLACE, help="Shards.", show_default="those of the training"),
    ] = None,
    tests: Annotated[str, typer.Option("--tests", metavar="A,B", help="Which tests.")] = EVERY_TEST,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=0,
            metavar="N",
            help="At most so many images, pairs, edits; 0: all.",
            show_default="the run's own",
        ),
    ] = None,
    split: Annotated[
        Split | None,
        typer.Option("--split", help="Which images.", show_default="holdout, or train when nothing is held out"),
    ] = None,
    lpips_backbone: Annotated[
        Path | None,
        typer.Option(
            "--lpips-backbone", metavar="F", help="AlexNet weights for LPIPS; without any, SSIM.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="F", help="Folder of the report.", show_default="RUN/validation/stepNNNNNNN[_train]"
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            "--compare",
            metavar="A B",
            help="Two runs validated before, side by side. Judges nothing.",
            autocompletion=completion.runs,
        ),
    ] = None,
    device: DeviceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Judge a checkpoint: three tests, a verdict, a report.

    Judged are the EMA weights on the hold-out: images drawn again from their own caption and reference, references
    swapped between images, words exchanged in captions. Exit code 0 is GO, 1 is NO-GO; the thresholds stand in the
    preset.
    """
    from dittool.ckpt.files import resolve_checkpoint, run_folder
    from dittool.ckpt.run_data import recorded_data
    from dittool.demo.checker import SCENE_CHECKER
    from dittool.errors import ANSWER_IS_NO, UsageError
    from dittool.validate.run import ValidateOptions, validate
    from dittool.validate.verdict import criteria_rows

    console = console_for(json, quiet, verbose)
    if compare is not None:
        others: dict[str, object] = {"--data": data, "--limit": limit, "--split": split, "--device": device}
        others |= {"--lpips-backbone": lpips_backbone, "--tests": None if tests == EVERY_TEST else tests}
        if given := [name for name, value in others.items() if value is not None]:
            raise UsageError(f"{', '.join(given)}: no effect with --compare, which judges nothing", "leave it out")
        _show_comparison(compare, target, out, console)
        return
    checkpoint = resolve_checkpoint(target, talk=console)
    wanted = [name.strip() for name in tests.split(",") if name.strip()]
    options = ValidateOptions(wanted, limit, split.value if split else None, lpips_backbone, SCENE_CHECKER)
    again = command_line("dit", "validate", target or checkpoint)
    data = data or recorded_data(run_folder(checkpoint), again, checkpoint)
    done = validate(checkpoint, data, out, options, console)

    console.json({**done.results, "report": str(done.report)})
    console.table(("", "criterion", "value", "needed"), criteria_rows(done.criteria))
    for criterion in done.criteria:
        if criterion.passed is False:
            console.result(f"✘ {criterion.title}: {criterion.advice}")
        elif criterion.reason:
            console.note(f"{criterion.title} does not decide: {criterion.reason}")
    if done.results["diagnosis"]:
        console.result(done.results["diagnosis"])
    images, left_out = done.results["data"], done.results["left_out"]
    judged = f"{images['images']} {images['described']}" + (f"; not judged: {', '.join(left_out)}" if left_out else "")
    console.result(f"{done.verdict}  step {done.results['step']}, EMA weights, {judged}")
    console.result(f"look at {done.report}")
    if not done.go:
        raise typer.Exit(ANSWER_IS_NO)


def _show_comparison(targets: tuple[Path, Path], target: Path | None, out: Path | None, console: Console) -> None:
    from dittool.errors import UsageError
    from dittool.validate.compare import compare
    from dittool.validate.compare_page import write_comparison
    from dittool.validate.verdict import value_text

    if target is not None:
        raise UsageError(
            f"--compare takes two runs, and {target} is a third", "judge it first with dit validate, then compare"
        )
    found = compare(*targets)
    page = write_comparison(found, out and out / "compare.html")
    console.json({**found.to_json(), "report": str(page)})
    for mark, side in zip("AB", found.sides, strict=True):
        console.result(f"{mark}  {side.results['verdict']:5}  {side.name}  {side.folder}")
    marks = {0: "A", 1: "B", None: ""}
    console.table(
        ("", "A", "B", "better"), [(row.title, *map(value_text, row.values), marks[row.better]) for row in found.rows]
    )
    if found.pairs is not None:
        console.result(found.pairs.line)
    for difference in found.differences:
        console.warn(f"not the models alone differ: {difference}")
    console.result(f"look at {page}")
