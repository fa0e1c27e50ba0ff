"""The options of `dit validate`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dittool import completion
from dittool.address import place_of
from dittool.commands.options import PLACE

EVERY_TEST = "reconstruction,dino_swap,text_manip,mode_losses"


class Split(str, Enum):
    holdout = "holdout"
    train = "train"


TargetArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN|CHECKPOINT|SAMPLES.npz",
        help="What to judge, or to measure.",
        show_default="the newest run",
        autocompletion=completion.runs_and_checkpoints,
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", parser=place_of, metavar=PLACE, help="Shards.", show_default="those of the training"),
]
TestsOption = Annotated[
    str,
    typer.Option(
        "--tests",
        metavar="A,B",
        help="Which tests. By name only: set_metrics, fid, fid-clean, fd-dinov2, cmmd, kid, precision-recall, clip.",
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=0,
        metavar="N",
        help="At most so many images, pairs, edits; 0: all.",
        show_default="the run's own",
    ),
]
SplitOption = Annotated[
    Split | None,
    typer.Option("--split", help="Which images.", show_default="holdout, or train when nothing is held out"),
]
LpipsBackboneOption = Annotated[
    Path | None,
    typer.Option(
        "--lpips-backbone", metavar="F", help="AlexNet weights for LPIPS; without any, SSIM.", show_default=False
    ),
]
ImagesOption = Annotated[
    int | None,
    typer.Option(
        "--images", min=1, metavar="N", help="Drawn for fid and its like.", show_default="validate.set_images"
    ),
]
ReferenceOption = Annotated[
    Path | None,
    typer.Option(
        "--reference",
        metavar="F.npz",
        help="What fid and its like compare with: samples, features, or mu and sigma, as ADM's evaluator has them.",
        show_default="the judged split",
    ),
]
FeaturesOutOption = Annotated[
    Path | None,
    typer.Option("--features-out", metavar="F.npz", help="Where the features of the images go.", show_default=False),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="F", help="Folder of the report.", show_default="RUN/validation/stepNNNNNNN[_train]"),
]
CompareOption = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        "--compare",
        metavar="A B",
        help="Two runs validated before, side by side. Judges nothing.",
        autocompletion=completion.runs,
    ),
]
RepeatOption = Annotated[
    Path | None,
    typer.Option(
        "--repeat",
        metavar="RESULTS.json",
        help="The same once more, compared number by number. Exit code 1: not the same but for rounding.",
        show_default=False,
    ),
]
