"""`dit shard` packs the features under data/derived into shards per bucket, with an index that knows every byte."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dittool.commands.options import JsonOption, QuietOption, VerboseOption, console_for


def main(
    derived: Annotated[Path, typer.Argument(metavar="DERIVED", help="Folder that dit embed made.")] = Path("data/derived"),
    out: Annotated[Path, typer.Option("--out", help="Where the shards go; with --verify, the set to verify.")] = Path("data/shards"),
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, metavar="N", help="Samples in one shard.")] = 1000,
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Take only N samples.", show_default="all")] = None,
    holdout: Annotated[
        float | None,
        typer.Option("--holdout", min=0, max=1, metavar="F", help="Share kept out of training.", show_default="data.holdout of the preset"),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Write nothing; read every byte of the set back.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Pack features into shards per bucket, or verify a set."""
    console = console_for(json, quiet, verbose)
    if verify:
        _verify(out, console)
        return
    from dittool.data.shards import shard

    done = shard(derived, out, shard_size, limit, holdout, console)
    console.json({"shards": str(out), "left_out": done.left_out, "rows": done.shards})
    console.table(
        ("shard", "split", "samples", "MB"), [(row["path"], row["split"], row["count"], f"{row['bytes'] / 1e6:.1f}") for row in done.shards]
    )
    counts = {split: sum(row["count"] for row in done.shards if row["split"] == split) for split in ("train", "holdout")}
    console.result(f"{counts['train']} training samples, {counts['holdout']} held out")
    if done.left_out:
        console.warn(f"--limit left out {done.left_out} samples")
    console.note(f"shards in {out}; next: dit audit {out}, then dit train --preset P")


def _verify(folder: Path, console) -> None:
    from dittool.data.shard_set import verify

    faults = verify(folder, console)
    console.json({"shards": str(folder), "ok": not faults, "faults": [{"where": fault.where, "what": fault.what} for fault in faults]})
    if faults:
        console.table(("where", "what is wrong"), [(fault.where, fault.what) for fault in faults])
        console.note(f"make the set again with: dit shard DERIVED --out {folder}")
        raise typer.Exit(1)
    console.result(f"{folder}: every byte is as the index says")
