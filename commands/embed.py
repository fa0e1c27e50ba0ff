"""`dit embed IMAGES` turns a folder of captioned images into features, once, under data/derived."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dittool.commands.options import (
    NONE_GIVEN,
    DeviceOption,
    JsonOption,
    OverridesOption,
    PresetOption,
    QuietOption,
    VerboseOption,
    console_for,
    require_effect,
)
from dittool.console import Console

if TYPE_CHECKING:
    from dittool.config.architectures import ImageConfig
    from dittool.data.features.parts import Part


class Stage(str, Enum):
    dinov3 = "dinov3"
    vae = "vae"
    t5 = "t5"
    all = "all"


EVERY_STAGE = [Stage.all]


def main(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of images, a list, tars, zips, tables, hf://datasets/….")
    ] = Path("data/images"),
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Where the features go; with --verify, the folder to verify.",
            show_default="data/derived, of --into-shards data/shards",
        ),
    ] = None,
    stages: Annotated[
        list[Stage], typer.Option("--pass", "--pass-filter", help="What to make. Repeatable.", show_default="all")
    ] = EVERY_STAGE,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Make nothing; print bytes, free disk and time, from a measured batch.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Make nothing; read every feature back.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Drop the features of these passes, or those gone stale, and remake them.")
    ] = False,
    preview: Annotated[
        Path | None, typer.Option("--preview", metavar="SHEET.png", help="Make nothing; draw a sheet to look at.")
    ] = None,
    into_shards: Annotated[
        bool, typer.Option("--into-shards", help="Write shards at once, without a file for each feature.")
    ] = False,
    shard_size: Annotated[
        int | None,
        typer.Option(
            "--shard-size", min=1, metavar="N", help="With --into-shards: samples a shard.", show_default="1000"
        ),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            "--part", metavar="I/N", help="Share I of N, from 0 to N-1.", show_default="all; under torchrun its rank"
        ),
    ] = None,
    preset: PresetOption = "nano",
    overrides: OverridesOption = NONE_GIVEN,
    device: DeviceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make the features of every image and caption that has none.

    Interrupted anywhere, the same command makes what is missing. Every input ends in records.jsonl, as used or with the
    reason why not.
    """
    from dittool.config.architectures import image_config
    from dittool.config.load import load_config
    from dittool.data.records import STAGES
    from dittool.data.source.hub import source_at
    from dittool.errors import UsageError

    modes = estimate + verify + rebuild + (preview is not None)
    if modes + into_shards > 1 or (part and (estimate or verify or preview)):
        together = "--preview, --estimate, --verify, --rebuild, --into-shards and --part do not go together"
        raise UsageError(together, "run one after the other; --into-shards and --part do")
    if shard_size is not None and not into_shards:
        raise UsageError("--shard-size: no effect without --into-shards", "leave it out, or see dit shard --shard-size")
    out = out or Path("data/shards" if into_shards else "data/derived")
    console = console_for(json, quiet, verbose)
    wanted = STAGES if Stage.all in stages else tuple(stage.value for stage in stages)
    if verify:
        require_effect(context, "with --verify", "verify", "out", "stages")
        _verify(out, wanted, console)
        return
    config = image_config(load_config(preset, overrides), f"--preset {preset}", "dit embed makes features of images")
    source = source_at(source, console)
    if preview is not None:
        require_effect(context, "with --preview", "preview", "source", "preset", "overrides")
        _preview(source, preview, config, console)
    elif into_shards:
        acting = ("source", "out", "into_shards", "shard_size", "part", "preset", "overrides", "device")
        require_effect(context, "with --into-shards", *acting)
        _into_shards(source, out, config, part or "", shard_size, console)
    elif estimate:
        _estimate(source, out, config, wanted, console)
    else:
        _embed(source, out, config, wanted, part or "", rebuild, console)


def _embed(
    source: Path, out: Path, config: ImageConfig, stages: tuple[str, ...], part: str, rebuild: bool, console: Console
) -> None:
    from dittool.data.features.embed import embed
    from dittool.data.features.shown import show_embedded

    share = _share(part)
    show_embedded(embed(source, out, config, stages, console, share, rebuild), share, config, console)


def _into_shards(
    source: Path, out: Path, config: ImageConfig, part: str, shard_size: int | None, console: Console
) -> None:
    from dittool.data.features.shown import show_embedded_into_shards
    from dittool.data.shards.from_encoders import embed_into_shards
    from dittool.data.shards.write import DEFAULT_SHARD_SIZE

    share = _share(part)
    done = embed_into_shards(source, out, config, console, share, shard_size or DEFAULT_SHARD_SIZE)
    show_embedded_into_shards(done, share, config, console)


def _share(part: str) -> Part:
    """The part that is asked for, or that torchrun gave this process, with its own GPU."""
    from dittool.data.features.parts import Part, use_own_gpu

    use_own_gpu(os.environ)
    return Part.parse(part) if part else Part.from_environment(os.environ)


def _preview(source: Path, sheet: Path, config: ImageConfig, console: Console) -> None:
    from dittool.data.source.preview import preview, save_sheet

    found = preview(source, config, console)
    save_sheet(found, sheet)
    console.json({"sheet": str(sheet), **found.figures()})
    console.result(f"{sheet}: {found.shown} of {found.used} pictures; {found.refused} inputs are refused")
    if found.marks:
        console.table(("marked", "images", "the first"), found.rows())


def _estimate(source: Path, out: Path, config: ImageConfig, stages: tuple[str, ...], console: Console) -> None:
    from dittool.data.features.estimate import estimate
    from dittool.data.features.shown import show_estimate

    show_estimate(estimate(source, out, config, stages, console), console)


def _verify(out: Path, stages: tuple[str, ...], console: Console) -> None:
    from dittool.data.features.shown import show_verified
    from dittool.data.features.verify import verify

    if not show_verified(out, verify(out, stages, console), console):
        raise typer.Exit(1)
