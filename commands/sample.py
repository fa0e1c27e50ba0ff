"""`dit sample --prompt "a red circle"` draws images from a prompt, a reference image, or both."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dittool.commands.options import JsonOption, QuietOption, VerboseOption, console_for


class Solver(str, Enum):
    euler = "euler"


class Guidance(str, Enum):
    additive = "additive"
    nested = "nested"


_RUNS_OWN = "the run's own"


def main(
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="T", help="What to draw.")] = None,
    ref: Annotated[Path | None, typer.Option("--ref", metavar="IMG", help="Reference image.")] = None,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", metavar="C", help="Checkpoint or run.", show_default="the newest run")] = None,
    size: Annotated[str | None, typer.Option("--size", metavar="WxH", help="In pixels.", show_default="the reference's bucket, else square")] = None,
    count: Annotated[int, typer.Option("-n", min=1, metavar="N", help="How many images.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Image i has seed S + i.")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", min=1, metavar="N", show_default=_RUNS_OWN)] = None,
    solver: Annotated[Solver | None, typer.Option("--solver", show_default=_RUNS_OWN)] = None,
    cfg_text: Annotated[
        float | None, typer.Option("--cfg-text", min=0, metavar="X", help="Guidance scale of the prompt.", show_default=_RUNS_OWN)
    ] = None,
    cfg_dino: Annotated[
        float | None, typer.Option("--cfg-dino", min=0, metavar="Y", help="Guidance scale of the reference.", show_default=_RUNS_OWN)
    ] = None,
    guidance: Annotated[Guidance | None, typer.Option("--guidance", show_default=_RUNS_OWN)] = None,
    out: Annotated[Path, typer.Option("--out", metavar="F", help="A .png file, or a folder.")] = Path("samples"),
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Draw images with a trained model (its EMA weights). Each PNG carries the settings that made it."""
    from dittool.ckpt.files import resolve_checkpoint
    from dittool.config.schema import parse_size
    from dittool.errors import UsageError
    from dittool.sampling.draw import DrawRequest, draw

    console = console_for(json, quiet, verbose)
    if prompt is None and ref is None:
        raise UsageError("neither --prompt nor --ref: nothing to draw", 'for example: dit sample --prompt "a red circle"')
    if ref is not None and not ref.is_file():
        raise UsageError(f"--ref {ref}: no such file", "check the path")
    try:
        wanted_size = parse_size(size) if size else None
    except ValueError as error:
        raise UsageError(f"--size {error}", "for example: --size 1216x832") from error
    changes = {
        "steps": steps, "cfg_text": cfg_text, "cfg_dino": cfg_dino,
        "solver": solver and solver.value, "guidance": guidance and guidance.value,
    }  # fmt: skip
    changes = {name: value for name, value in changes.items() if value is not None}
    request = DrawRequest(resolve_checkpoint(checkpoint), prompt, ref, count, seed, wanted_size, changes)
    drawn = draw(request, out, console)
    console.json({"images": [{"file": str(image.path), "settings": image.settings} for image in drawn]})
    for image in drawn:
        console.result(str(image.path))
