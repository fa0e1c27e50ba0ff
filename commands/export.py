"""`dit export CHECKPOINT --out FOLDER` makes a folder that others load without `dit`.

`--format diffusers`, the default, holds the weights with the sources of network and pipeline, `--format safetensors`
the weights alone: `dit sample --checkpoint FOLDER` takes either back. `--format torch-export` holds programs of
torch.export. `--push me/my-model` uploads the folder, after asking.
"""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dittool import completion
from dittool.commands.options import NONE_GIVEN, DeviceOption, JsonOption, QuietOption, VerboseOption, console_for


class Format(str, Enum):
    diffusers = "diffusers"
    safetensors = "safetensors"
    torch_export = "torch-export"


class Dtype(str, Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def main(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|CHECKPOINT",
            help="What to export.",
            show_default="the newest run",
            autocompletion=completion.runs_and_checkpoints,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the export goes.")] = Path("export"),
    form: Annotated[
        Format, typer.Option("--format", help="With sources for diffusers, weights alone, or programs.")
    ] = Format.diffusers,
    weights: Annotated[
        str, typer.Option("--weights", metavar="W", help="ema, model (raw), or an average's width: 0.05.")
    ] = "ema",
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Precision of the weights.")] = Dtype.fp32,
    largest: Annotated[
        float, typer.Option("--largest-file", metavar="GB", min=0.0001, help="Above it weights are in several files.")
    ] = 5.0,
    prompts: Annotated[
        list[str], typer.Option("--prompt", metavar="T", help="A picture for the card. Repeatable.", show_default=False)
    ] = NONE_GIVEN,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Of the weights: apache-2.0.", show_default=False)
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="REPO", help="Upload to the hub: me/my-model.", show_default=False)
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Of a repository that --push makes.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without asking.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    device: DeviceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a folder that others load without dit.

    In `diffusers` the sources of network and pipeline lie beside the weights, so whoever loads it says
    trust_remote_code=True; `dit` reads its weights alone and never runs them.
    """
    from dittool.ckpt.files import resolve_checkpoint
    from dittool.errors import UsageError
    from dittool.export.export import ExportRequest, export
    from dittool.export.hub import push as upload
    from dittool.export.hub import require_pushable
    from dittool.storage import bytes_text

    console = console_for(json, quiet, verbose)
    if push is not None:
        require_pushable(push)
        if not (yes or sys.stdin.isatty()):
            raise UsageError(f"--push {push}: nobody is there to be asked", "say it in advance: --yes")
    elif private or yes:
        raise UsageError("--private and --yes: no effect without --push", "name the repository: --push me/my-model")
    source = resolve_checkpoint(checkpoint, talk=console)
    request = ExportRequest(
        source,
        out,
        form=form.value,
        weights=weights,
        dtype=dtype.value,
        largest_file=int(largest * 1e9),
        prompts=prompts,
        licence=licence,
        repository=push,
        force=force,
    )
    done = export(request, console)
    console.result(f"step {done.step:,}, {done.weights} weights, {dtype.value}, {bytes_text(done.bytes)}: {out}")
    address = None
    if push is not None:

        def agreed(question: str) -> bool:
            return yes or typer.confirm(question, err=True)

        message = f"Step {done.step:,}, {done.weights} weights, {dtype.value}"
        address = upload(out, push, private, agreed, message, bars=not quiet)
        console.result(f"pushed to {address}" if address else f"not pushed; it stands in {out}")
    console.json(
        {
            "out": str(out),
            "format": form.value,
            "weights": done.weights,
            "dtype": dtype.value,
            "step": done.step,
            "bytes": done.bytes,
            "files": [str(file.relative_to(out)) for file in done.files],
            "pushed": address,
        }
    )
