"""`dit embed IMAGES` turns a folder of captioned images into features, once, under data/derived."""

from __future__ import annotations

import os
from dataclasses import asdict
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
from dittool.console import Console, duration_text
from dittool.shell import quoted
from dittool.storage import bytes_text

if TYPE_CHECKING:
    from dittool.config.architectures import ImageConfig
    from dittool.data.source.scan import ScanSummary


class Stage(str, Enum):
    dinov3 = "dinov3"
    vae = "vae"
    t5 = "t5"
    all = "all"


EVERY_STAGE = [Stage.all]


def main(
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of captioned images, a list (.jsonl .csv .parquet), tars.")
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
    from dittool.errors import UsageError

    modes = estimate + verify + rebuild + (preview is not None)
    if modes + into_shards > 1 or (part and (estimate or verify or preview)):
        together = "--preview, --estimate, --verify, --rebuild, --into-shards and --part do not go together"
        raise UsageError(together, "run one after the other; --into-shards and --part do")
    if shard_size is not None and not into_shards:
        raise UsageError(
            "--shard-size: no effect without --into-shards", "leave it out, or see: dit shard --shard-size"
        )
    out = out or Path("data/shards" if into_shards else "data/derived")
    console = console_for(json, quiet, verbose)
    wanted = STAGES if Stage.all in stages else tuple(stage.value for stage in stages)
    if verify:
        require_effect(context, "with --verify", "verify", "out", "stages")
        _verify(out, wanted, console)
        return
    config = image_config(load_config(preset, overrides), f"--preset {preset}", "dit embed makes features of images")
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
    from dittool.data.features.embed import caption_warnings, embed
    from dittool.data.features.parts import Part, use_own_gpu
    from dittool.data.source.scan import summary

    share = Part.parse(part) if part else Part.from_environment(os.environ)
    use_own_gpu(os.environ)
    done = embed(source, out, config, stages, console, share, rebuild)
    counts = summary(done.records)
    console.json(
        {"derived": str(done.folder), "inputs": counts.total, "part": f"{share.index}/{share.count}"}
        | {"made": done.made, "kept": done.kept, "left": done.left, "cut_captions": done.cut_captions}
        | asdict(counts)
    )
    flips = f", and {counts.flipped} flipped variants" if config.data.flip == "prepared" else ""
    _show_inputs(counts, flips, console)
    columns = ("pass", "made now", "already there", *([] if share.is_everything else ["for other parts"]))
    rows = [(stage, done.made[stage], done.kept[stage], done.left[stage])[: len(columns)] for stage in done.made]
    console.table(columns, rows)
    for text in caption_warnings(done.records, done.cut_captions, config.encoders):
        console.warn(text)
    console.note(f"features in {out}; next: {done.next_command(share)}")


def _show_inputs(counts: ScanSummary, flips: str, console: Console) -> None:
    console.result(f"{counts.total} inputs: {counts.used} used, {counts.refused} refused{flips}")
    if counts.refused:
        console.table(("refused because", "images", "the first"), counts.rows_of_reasons())
    if counts.flags:
        console.table(("used, but worth knowing", "images", "the first"), counts.rows_of_flags())
    if counts.not_flipped:
        console.table(("no flipped variant because", "images"), sorted(counts.not_flipped.items()))
    console.table(("bucket", "images"), sorted(counts.buckets.items()))


def _into_shards(
    source: Path, out: Path, config: ImageConfig, part: str, shard_size: int | None, console: Console
) -> None:
    from dittool.data.features.embed import caption_warnings
    from dittool.data.features.parts import Part, use_own_gpu
    from dittool.data.shards.from_encoders import embed_into_shards
    from dittool.data.shards.write import DEFAULT_SHARD_SIZE
    from dittool.data.source.scan import summary

    share = Part.parse(part) if part else Part.from_environment(os.environ)
    use_own_gpu(os.environ)
    done = embed_into_shards(source, out, config, console, share, shard_size or DEFAULT_SHARD_SIZE)
    counts = summary(done.records)
    facts = {name: getattr(done, name) for name in ("made", "kept", "cut_captions", "scanned", "complete")}
    console.json(
        {"shards": str(out), "inputs": counts.total, "part": f"{share.index}/{share.count}", **facts}
        | asdict(counts)
        | {"rows": [asdict(row) for row in done.shards]}
        | {"joining": [{"id": record.id, "detail": record.detail} for record in done.joining]}
    )
    flips = f", and {counts.flipped} flipped variants" if config.data.flip == "prepared" else ""
    _show_inputs(counts, flips, console)
    console.table(
        ("shard", "split", "samples", "MB"),
        [(row.path, row.split, row.count, f"{row.bytes / 1e6:.1f}") for row in done.shards],
    )
    console.result(f"{done.made} samples encoded, {done.kept} shards were there")
    for text in caption_warnings(done.records, done.cut_captions, config.encoders):
        console.warn(text)
    if done.complete:
        console.note(f"shards in {out}; next: dit audit {quoted(out)}, then dit train --preset P --data {quoted(out)}")
    else:
        what = "shards" if done.scanned else "images to look at"
        console.note(
            f"other parts have still {what}; when they have ended, run the same command again for what is left"
        )


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

    found = estimate(source, out, config, stages, console)
    console.json(
        {"rows": [vars(row) for row in found.rows], "bytes": found.bytes, "free": found.free, "seconds": found.seconds}
    )
    if not found.rows:
        console.result("nothing to be made: every feature of these passes is there")
        return
    rows = [(row.feature, row.bucket or "–", row.count, bytes_text(row.bytes)) for row in found.rows]
    console.table(("to be made", "bucket", "files", "on disk"), rows)
    console.table(("pass", "time here"), [(stage, duration_text(seconds)) for stage, seconds in found.seconds.items()])
    lacking = "" if found.bytes <= found.free else ": the disk will not do"
    console.result(f"{bytes_text(found.bytes)} to be written, {bytes_text(found.free)} free{lacking}")


def _verify(out: Path, stages: tuple[str, ...], console: Console) -> None:
    from dittool.data.embed_again import embed_again
    from dittool.data.features.verify import verify

    found = verify(out, stages, console)
    faults = [vars(fault) for fault in found.faults]
    facts = {name: getattr(found, name) for name in ("features", "bytes", "strays")}
    console.json({"derived": str(out), "ok": not faults, **facts, "faults": faults})
    if faults:
        console.table(("where", "what is wrong"), [(fault["where"], fault["what"]) for fault in faults])
        again = embed_again(out, sorted({fault["stage"] for fault in faults}))
        console.note(f"remove what is damaged, then make it again: {again}")
        raise typer.Exit(1)
    console.result(
        f"{out}: {found.features} features of {bytes_text(found.bytes)} are whole, finite, and what the records say"
    )
