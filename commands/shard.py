"""`dit shard` packs the features under data/derived into shards per bucket, with an index that knows every byte."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dittool import completion
from dittool.commands.options import (
    NONE_GIVEN,
    JsonOption,
    OverridesOption,
    QuietOption,
    VerboseOption,
    console_for,
    require_effect,
)
from dittool.console import Console
from dittool.shell import quoted

if TYPE_CHECKING:
    from dittool.data.shards.index import ShardIndex


def main(
    context: typer.Context,
    derived: Annotated[Path, typer.Argument(metavar="DERIVED", help="Folder that dit embed made.")] = Path(
        "data/derived"
    ),
    out: Annotated[Path, typer.Option("--out", help="Where the shards go; with --verify, the set to verify.")] = Path(
        "data/shards"
    ),
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, metavar="N", help="Samples in one shard.")] = 1000,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Take only N samples.", show_default="all")
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            "--holdout",
            min=0,
            max=1,
            metavar="F",
            help="Share kept out of training.",
            show_default="data.holdout of the preset",
        ),
    ] = None,
    part: Annotated[
        str | None, typer.Option("--part", metavar="I/N", help="Share I of N, from 0 to N-1.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", help="Of the order of samples in the shards.")] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Write nothing; read every byte of the set back.")] = False,
    index: Annotated[
        Path | None,
        typer.Option(
            "--index",
            metavar="FOLDER",
            help="Write the index of shards that have none: again from DERIVED, or as --preset claims.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="P",
            help="With --index: whose encoders are claimed.",
            show_default=False,
            autocompletion=completion.presets,
        ),
    ] = None,
    overrides: OverridesOption = NONE_GIVEN,
    json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Pack features into shards per bucket, or verify a set.

    Interrupted, the same command goes on where it stopped. --index makes a lost index again, or gives a set that
    another program wrote its index.
    """
    from dittool.errors import UsageError

    console = console_for(json, quiet, verbose)
    if index is not None and preset is not None:
        require_effect(context, "with --index and --preset", "index", "preset", "overrides", "holdout")
        _index(index, preset, overrides, holdout, console)
        return
    if index is not None:
        require_effect(context, "with --index without --preset", "index", "derived", "holdout", "seed")
        _index_again(index, derived, holdout, seed, console)
        return
    if preset is not None or overrides:
        raise UsageError(
            "--preset and -s belong to --index; shards take their settings from the derived folder", "leave them out"
        )
    if verify:
        require_effect(context, "with --verify", "verify", "out")
        _verify(out, console)
        return
    from dittool.data.features.parts import Part
    from dittool.data.shards.write import shard
    from dittool.data.shown import show_shards

    done = shard(derived, out, shard_size, limit, holdout, console, seed, Part.parse(part) if part else None)
    facts = {"left_out": done.left_out, "kept": done.kept, "complete": done.complete}
    console.json(
        {"shards": str(out), **facts, "rows": [asdict(row) for row in done.shards]}
        | {"joining": [{"id": record.id, "detail": record.detail} for record in done.joining]}
    )
    show_shards(done.shards, console)
    if done.kept:
        console.note(f"{done.kept} shards of an interrupted call were verified and kept")
    if done.left_out:
        console.warn(f"--limit left out {done.left_out} samples")
    if done.complete:
        console.note(f"shards in {out}; next: dit audit {quoted(out)}, then dit train --preset P --data {quoted(out)}")
    else:
        console.note(f"shards in {out}; other parts have still to write theirs, and the last one makes the index")


def _index(folder: Path, preset: str, overrides: list[str], holdout: float | None, console: Console) -> None:
    from dittool.config.architectures import image_config
    from dittool.config.load import load_config
    from dittool.data.shards.older_sets import index_older_set
    from dittool.data.shown import show_shards

    claim = "dit shard --index says which encoders made shards of images"
    config = image_config(load_config(preset, overrides), f"--preset {preset}", claim)
    made = index_older_set(folder, config, holdout, console)
    console.json(_index_json(folder, made))
    show_shards(made.shards, console)
    console.warn("that these encoders made the features is a claim; only shapes could be compared with it")
    console.note(f"next: dit audit {quoted(folder)}, then dit train --preset {quoted(preset)} --data {quoted(folder)}")


def _index_again(folder: Path, derived: Path, holdout: float | None, seed: int, console: Console) -> None:
    from dittool.data.shards.older_sets import index_again
    from dittool.data.shown import show_shards
    from dittool.errors import UsageError

    if not derived.is_dir():
        raise UsageError(
            f"--index {folder}: {derived} is not there, so what made these shards is not known",
            f"name the folder that they were made of: dit shard DERIVED --index {quoted(folder)}; or say which encoders"
            " made them: --preset P, see dit presets",
        )
    made = index_again(folder, derived, holdout, seed, console)
    console.json(_index_json(folder, made))
    show_shards(made.shards, console)
    console.note(f"the index of {folder} is made again; next: dit shard --verify --out {quoted(folder)}")


def _index_json(folder: Path, made: ShardIndex) -> dict[str, object]:
    key = "claimed" if made.identity.claimed else "encoders"
    rows = [asdict(row) for row in made.shards]
    return {"shards": str(folder), key: made.identity.to_json()["encoders"], "rows": rows}


def _verify(folder: Path, console: Console) -> None:
    from dittool.data.shards.verify import verify

    faults = verify(folder, console)
    console.json(
        {
            "shards": str(folder),
            "ok": not faults,
            "faults": [{"where": fault.where, "what": fault.what} for fault in faults],
        }
    )
    if faults:
        console.table(("where", "what is wrong"), [(fault.where, fault.what) for fault in faults])
        console.note(f"make the set again with: dit shard DERIVED --out {quoted(folder)}")
        raise typer.Exit(1)
    console.result(f"{folder}: every byte is as the index says")
