"""`dit validate` judges a checkpoint by three tests and answers GO (exit 0) or NO-GO (exit 1), with a report to
look at.

`dit validate SAMPLES.npz --reference F.npz --tests fid` measures a set of images, whoever drew them, and answers
nothing (exit 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dittool.commands.options import DeviceOption, JsonOption, QuietOption, VerboseOption, console_for, require_effect
from dittool.commands.options_of_validate import (
    EVERY_TEST,
    CompareOption,
    DataOption,
    FeaturesOutOption,
    ImagesOption,
    LimitOption,
    LpipsBackboneOption,
    OutOption,
    ReferenceOption,
    RepeatOption,
    SplitOption,
    TargetArgument,
    TestsOption,
)
from dittool.console import Console
from dittool.shell import command_line

if TYPE_CHECKING:
    from dittool.validate.figures.drawn import FigureOptions
    from dittool.validate.run import ValidateOptions, Validation


def main(
    context: typer.Context,
    target: TargetArgument = None,
    data: DataOption = None,
    tests: TestsOption = EVERY_TEST,
    limit: LimitOption = None,
    split: SplitOption = None,
    lpips_backbone: LpipsBackboneOption = None,
    images: ImagesOption = None,
    reference: ReferenceOption = None,
    features_out: FeaturesOutOption = None,
    out: OutOption = None,
    compare: CompareOption = None,
    repeat: RepeatOption = None,
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
    from dittool.demo.checker import SCENE_CHECKER
    from dittool.errors import ANSWER_IS_NO
    from dittool.validate.figures.drawn import FigureOptions
    from dittool.validate.run import ValidateOptions

    console = console_for(json, quiet, verbose)
    figures = FigureOptions(reference, images, features_out)
    if compare is not None:
        require_effect(context, "with --compare, which judges nothing", "compare", "out", "target")
        _show_comparison(compare, target, out, console)
        return
    if repeat is not None:
        acting = ("repeat", "target", "data", "out", "device")
        require_effect(context, "with --repeat, which asks for what the results were asked for", *acting)
        _repeat(repeat, target, data, out, console)
        return
    wanted = [name.strip() for name in tests.split(",") if name.strip()]
    if target is not None and target.suffix.lower() == ".npz":
        of_sets = ("target", "tests", "reference", "features_out", "out", "device")
        require_effect(context, "on a set of images", *of_sets)
        _measure(target, figures, wanted, out, console)
        return
    half = split.value if split else None
    options = ValidateOptions(wanted, limit, half, lpips_backbone, SCENE_CHECKER, figures)
    done = _validate(target, data, out, options, console)
    _show(done, console)
    if done.answer_is_no:
        raise typer.Exit(ANSWER_IS_NO)


def _validate(
    target: Path | None, data: Path | None, out: Path | None, options: ValidateOptions, console: Console
) -> Validation:
    from dittool.ckpt.files import resolve_checkpoint, run_folder
    from dittool.ckpt.run_data import recorded_data
    from dittool.validate.run import validate

    checkpoint = resolve_checkpoint(target, talk=console)
    again = command_line("dit", "validate", target or checkpoint)
    return validate(checkpoint, data or recorded_data(run_folder(checkpoint), again, checkpoint), out, options, console)


def _show(done: Validation, console: Console) -> None:
    from dittool.validate.figures.figure import FIGURE_COLUMNS, figure_rows
    from dittool.validate.verdict import criteria_rows

    console.json({**done.results, "report": str(done.report)})
    if done.criteria:
        console.table(("", "criterion", "value", "needed"), criteria_rows(done.criteria))
    for criterion in done.criteria:
        if criterion.passed is False:
            console.result(f"✘ {criterion.title}: {criterion.advice}")
        elif criterion.reason:
            console.note(f"{criterion.title} does not decide: {criterion.reason}")
    if done.figures:
        console.table(FIGURE_COLUMNS, figure_rows(done.figures))
    if done.results["diagnosis"]:
        console.result(done.results["diagnosis"])
    images, left_out = done.results["data"], done.results["left_out"]
    judged = f"{images['images']} {images['described']}" + (f"; not judged: {', '.join(left_out)}" if left_out else "")
    console.result(f"{done.verdict}  step {done.results['step']}, EMA weights, {judged}")
    console.result(f"look at {done.report}")


def _measure(samples: Path, figures: FigureOptions, tests: Sequence[str], out: Path | None, console: Console) -> None:
    from dittool.validate.figures.figure import FIGURE_COLUMNS, figure_rows
    from dittool.validate.figures.given import measure_given

    done = measure_given(samples, figures.reference, tests, out, figures.features_out, console)
    console.json({**done.results, "report": str(done.report)})
    console.table(FIGURE_COLUMNS, figure_rows(done.figures.figures))
    console.result(f"look at {done.report}")


def _repeat(path: Path, target: Path | None, data: Path | None, out: Path | None, console: Console) -> None:
    from dittool.demo.checker import SCENE_CHECKER
    from dittool.errors import ANSWER_IS_NO
    from dittool.validate.repetition import repeat

    found = repeat(path, target, data, out, SCENE_CHECKER, console)
    console.json(found.to_json())
    for line in found.made_otherwise:
        console.note(f"made otherwise: {line}")
    if found.differences:
        console.table(("what", "then", "now", "apart", ""), found.rows)
    console.result(found.line)
    console.result(f"all of it: {found.file}")
    if not found.same:
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
