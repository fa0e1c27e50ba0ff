"""`dit warmstart OLD --preset P --out INIT.safetensors` carries old weights over to a preset's architecture.

Every tensor is reported: copied, resized, re-initialised or skipped. Train from the result with `dit train --preset P
--init INIT.safetensors`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dittool import completion
from dittool.commands.options import (
    NONE_GIVEN,
    JsonOption,
    OverridesOption,
    PresetOption,
    QuietOption,
    VerboseOption,
    console_for,
)
from dittool.shell import quoted

if TYPE_CHECKING:
    from dittool.ckpt.warmstart import TensorReport

_OPTIONS = {"text": "--text-dim", "image": "--image-dim", "latent_channels": "--latent-channels"}


def main(
    old: Annotated[
        Path,
        typer.Argument(
            metavar="OLD",
            help="A checkpoint, a run's folder, or weights as .safetensors.",
            show_default=False,
            autocompletion=completion.runs_and_checkpoints,
        ),
    ],
    preset: PresetOption,
    out: Annotated[
        Path, typer.Option("--out", metavar="INIT.safetensors", help="Where the new weights go.", show_default=False)
    ],
    overrides: OverridesOption = NONE_GIVEN,
    text_dim: Annotated[
        int | None, typer.Option(min=1, help="Width of the new text features.", show_default="the old model's")
    ] = None,
    image_dim: Annotated[
        int | None, typer.Option(min=1, help="Width of the new image features.", show_default="the old model's")
    ] = None,
    latent_channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of the new latents.", show_default="the old model's")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Carry old weights over to another architecture, with a report of every tensor.

    Blocks that the old model did not have start as the identity, so a deeper model begins as the old one.
    """
    from dittool.config.architectures import of_kind
    from dittool.config.load import load_config
    from dittool.config.schema import Config
    from dittool.errors import UsageError

    console = console_for(json, quiet, verbose)
    served = "dit warmstart carries over rectified-flow transformers"
    config = of_kind(
        load_config(preset, overrides),
        f"--preset {preset}",
        served,
        Config,
        instead="start from its own weights: dit train --init W",
    )
    if out.suffix.lower() != ".safetensors":
        raise UsageError(f"--out {out}: the name must end in .safetensors", "for example: --out init.safetensors")

    import torch

    from dittool.ckpt.files import resolve_checkpoint
    from dittool.ckpt.load import load_weights
    from dittool.ckpt.warmstart import old_configuration, old_feature_widths, warmstart, write_init
    from dittool.models.build import build_model

    path = resolve_checkpoint(old, talk=console)
    if (before := old_configuration(path)) is not None:
        of_kind(before, str(path), served, Config, instead="go on with its own kind of model: dit train --init OLD")
    weights = load_weights(path, talk=console)
    given = {"text": text_dim, "image": image_dim, "latent_channels": latent_channels}
    widths = old_feature_widths(path, weights, config.model.patch_size) | {
        name: width for name, width in given.items() if width is not None
    }
    if unknown := [option for name, option in _OPTIONS.items() if name not in widths]:
        raise UsageError(
            f"{path}: does not say the feature widths that the new model needs", f"give them: {' N '.join(unknown)} N"
        )
    torch.manual_seed(config.train.seed)
    model = build_model(config, widths["text"], widths["image"], widths["latent_channels"])
    result = warmstart(weights, model.state_dict())
    write_init(out, result, str(path))

    console.table(
        ("tensor", "status", "old shape", "new shape"),
        [_row(row) for row in result.report if console.verbose or row.status != "copied"],
    )
    counts = ", ".join(f"{count} {status}" for status, count in result.counts.items())
    console.result(f"{counts}; wrote {out}")
    console.note(f"train from it with: dit train --preset {quoted(preset)} --init {quoted(out)}")
    rows = [
        {"name": row.name, "status": row.status, "old": row.old, "new": row.new, "axes": row.axes}
        for row in result.report
    ]
    console.json({"old": str(path), "out": str(out), "widths": widths, "counts": result.counts, "tensors": rows})


def _row(row: TensorReport) -> tuple[str, str, str, str]:
    def shape(lengths: tuple[int, ...] | None) -> str:
        return "–" if lengths is None else "×".join(map(str, lengths)) or "scalar"

    return row.name, row.status, shape(row.old), shape(row.new)
