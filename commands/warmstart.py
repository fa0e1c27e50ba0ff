"""`dit warmstart OLD --preset P --out INIT.safetensors` carries old weights over to a preset's architecture.

Every tensor is reported: copied, resized, re-initialised or skipped. With `--data` the loss at step 0 stands beside a
fresh model's. Train from the result with `dit train --preset P --init INIT.safetensors`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dittool import completion
from dittool.commands.options import (
    NONE_GIVEN,
    ForceOption,
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
    from dittool.console import Console
    from dittool.families.warm_start import Start


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
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="SHARDS",
            help="The shards that the new model will train on: they say the widths, and what is gained at step 0.",
            show_default=False,
        ),
    ] = None,
    text_dim: Annotated[
        int | None, typer.Option(min=1, help="Width of the new text features.", show_default="the encoder's")
    ] = None,
    image_dim: Annotated[
        int | None, typer.Option(min=1, help="Width of the new image features.", show_default="the encoder's")
    ] = None,
    latent_channels: Annotated[
        int | None, typer.Option(min=1, help="Channels of the new latents.", show_default="the encoder's")
    ] = None,
    force: ForceOption = False,
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

    from dittool.ckpt.files import resolve_checkpoint
    from dittool.ckpt.warmstart import is_warm_start, old_configuration, write_init
    from dittool.ckpt.weights import load_weights
    from dittool.families.warm_start import carried_over
    from dittool.storage import require_replaceable

    path = resolve_checkpoint(old, talk=console, optional=False)
    require_replaceable(out, [path], force, is_warm_start, "--out")
    before = old_configuration(path)
    if before is not None:
        before = of_kind(before, str(path), served, Config, instead="go on with its own kind: dit train --init OLD")
    weights = load_weights(path, talk=console)
    given = {"text": text_dim, "image": image_dim, "latent_channels": latent_channels}
    start = carried_over(path, weights, before, config, data, given, console)
    write_init(out, start.result, str(path), config)

    _show(console, start, out)
    options = "".join(f" -s {quoted(override)}" for override in overrides)
    options += f" --data {quoted(data)}" if data else ""
    console.note(f"train from it with: dit train --preset {quoted(preset)}{options} --init {quoted(out)}")


def _show(console: Console, start: Start, out: Path) -> None:
    rows = start.result.report
    console.table(
        ("tensor", "status", "old shape", "new shape", "why"),
        [_row(row) for row in rows if console.verbose or row.status != "copied"],
    )
    counts = ", ".join(f"{count} {status}" for status, count in start.result.counts.items())
    console.result(f"{counts}; wrote {out}")
    if start.loss is not None:
        console.result(f"loss at step 0: {start.loss:.4f}, of a fresh model {start.fresh_loss:.4f}")
    console.json(
        {
            "out": str(out),
            "widths": start.widths.to_json(),
            "counts": start.result.counts,
            "loss": start.loss,
            "fresh_loss": start.fresh_loss,
            "tensors": [asdict(row) for row in rows],
        }
    )


def _row(row: TensorReport) -> tuple[str, str, str, str, str]:
    def shape(lengths: tuple[int, ...] | None) -> str:
        return "–" if lengths is None else "×".join(map(str, lengths)) or "scalar"

    return row.name, row.status, shape(row.old), shape(row.new), row.why
