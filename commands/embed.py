"""`dit embed IMAGES` turns a folder of captioned images into features, once, under data/derived."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from dittool.commands.options import JsonOption, OverridesOption, PresetOption, QuietOption, VerboseOption, console_for


class Stage(str, Enum):
    dinov3 = "dinov3"
    vae = "vae"
    t5 = "t5"
    all = "all"


def main(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder of images with captions, or a .jsonl manifest.")] = Path("data/images"),
    out: Annotated[Path, typer.Option("--out", help="Where the features go.")] = Path("data/derived"),
    stages: Annotated[
        list[Stage], typer.Option("--pass", "--pass-filter", help="What to make: dinov3, vae, t5 or all. Repeatable.", show_default="all")
    ] = (Stage.all,),
    preset: PresetOption = "nano",
    overrides: OverridesOption = (),
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make the features of every image and caption that has none.

    Interrupted anywhere, the same command makes what is missing. Every input ends in records.jsonl, as used or with the reason why not.
    """
    from dittool.config.load import load_config
    from dittool.data.embed import embed
    from dittool.data.records import STAGES
    from dittool.data.scan import summary

    console = console_for(json, quiet, verbose)
    wanted = STAGES if Stage.all in stages else tuple(stage.value for stage in stages)
    done = embed(source, out, load_config(preset, overrides), wanted, console)
    counts = summary(done.records)
    console.json({
        "derived": str(done.folder), "inputs": len(done.records), "used": len(done.used), "made": done.made, "kept": done.kept,
        "cut_captions": done.cut_captions, **counts,
    })  # fmt: skip
    console.result(f"{len(done.records)} inputs: {len(done.used)} used, {len(done.records) - len(done.used)} refused")
    if refused := counts["refused"]:
        console.table(("refused because", "images"), sorted(refused.items()))
    console.table(("bucket", "images"), sorted(counts["buckets"].items()))
    console.table(("pass", "made now", "already there"), [(stage, done.made[stage], done.kept[stage]) for stage in done.made])
    if done.cut_captions:
        console.warn(f"{done.cut_captions} captions were longer than encoders.max_text_tokens and were cut")
    console.note(f"features in {out}; next: dit shard" + ("" if str(out) == "data/derived" else f" {out}"))
