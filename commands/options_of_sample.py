"""The options of `dit sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer
from typer.models import OptionInfo

from dittool import completion
from dittool.config.schema import DEFAULT_STRENGTH, Sample

_OWN = "the run's own"


def _setting(name: str, metavar: str | None = None) -> OptionInfo:
    """The option of a field of `[sample]`, which says its words and its choices."""
    field = Sample.model_fields[name]
    return typer.Option(
        f"--{name.replace('_', '-')}",
        metavar=metavar or "|".join(get_args(field.annotation)),
        help=field.description,
        show_default=_OWN,
    )


PromptOption = Annotated[str | None, typer.Option("--prompt", metavar="T", help="What to draw.")]
NegativeOption = Annotated[str | None, typer.Option("--negative", metavar="T", help="What to draw away from.")]
RefOption = Annotated[Path | None, typer.Option("--ref", metavar="IMG", help="Reference image, of any shape.")]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--prompts", metavar="FILE", help="A prompt a line, or .jsonl with prompt, ref, seed, size, negative."
    ),
]
FromOption = Annotated[
    Path | None, typer.Option("--from", metavar="IMG", help="A picture to draw again; a .txt or .jsonl is --prompts.")
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="C",
        help="Checkpoint or run.",
        show_default="the newest run",
        autocompletion=completion.runs_and_checkpoints,
    ),
]
SizeOption = Annotated[
    str | None,
    typer.Option("--size", metavar="WxH", help="In pixels.", show_default="the bucket of --init or --ref, else square"),
]
CountOption = Annotated[int | None, typer.Option("-n", min=1, metavar="N", help="How many images.", show_default="1")]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, metavar="S", help="Image i has seed S + i.", show_default="0")
]
StepsOption = Annotated[int | None, _setting("steps", "N")]
SolverOption = Annotated[str | None, _setting("solver")]
CfgTextOption = Annotated[float | None, _setting("cfg_text", "X")]
CfgDinoOption = Annotated[float | None, _setting("cfg_dino", "Y")]
GuidanceOption = Annotated[str | None, _setting("guidance")]
IntervalOption = Annotated[tuple[float, float] | None, _setting("guidance_interval", "LO HI")]
ParallelOption = Annotated[float | None, _setting("guidance_parallel", "H")]
NormOption = Annotated[float | None, _setting("guidance_norm", "R")]
MomentumOption = Annotated[float | None, _setting("guidance_momentum", "B")]
WeakOption = Annotated[
    Path | None,
    typer.Option(
        "--weak",
        metavar="C",
        help="Also draw away from a weaker model: an earlier checkpoint, or a smaller run on the same data.",
        autocompletion=completion.runs_and_checkpoints,
    ),
]
CfgWeakOption = Annotated[float | None, _setting("cfg_weak", "Z")]
WeakRoutedOption = Annotated[float | None, _setting("weak_routed", "S")]
GridOption = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--grid",
        metavar="ACROSS DOWN",
        help="One picture over two scales: cfg-text=1,2,3 cfg-dino=0,1,2",
        show_default=False,
    ),
]
InitOption = Annotated[Path | None, typer.Option("--init", metavar="IMG", help="Begin with an image instead of noise.")]
StrengthOption = Annotated[
    float | None,
    typer.Option(
        "--strength", metavar="T", help="How much of --init is drawn anew, 0 to 1.", show_default=f"{DEFAULT_STRENGTH}"
    ),
]
ClassOption = Annotated[
    list[str], typer.Option("--class", metavar="C", help="One step: a class by name or number.", show_default=False)
]
AlphaOption = Annotated[
    float | None, typer.Option("--alpha", metavar="A", help="One step: guidance scale, 1 is none.", show_default=_OWN)
]
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part", metavar="I/N", help="Of an .npz: share I of N, from 0.", show_default="all; under torchrun its rank"
    ),
]
OutOption = Annotated[
    Path,
    typer.Option(
        "--out", metavar="F", help="A .png, .jpg or .webp file, a folder, or an .npz of all images for evaluators."
    ),
]
