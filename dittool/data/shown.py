"""What commands show of inputs and shards."""

from __future__ import annotations

from collections.abc import Sequence

from dittool.console import Console
from dittool.data.shards.index import ShardRow
from dittool.data.source.scan import ScanSummary


def show_inputs(counts: ScanSummary, flip: str, console: Console) -> None:
    """How many inputs are used, refused and why, and in which buckets; `flip` of the configuration."""
    flips = f", and {counts.flipped} flipped variants" if flip == "prepared" else ""
    console.result(f"{counts.total} inputs: {counts.used} used, {counts.refused} refused{flips}")
    if counts.refused:
        console.table(("refused because", "images", "the first"), counts.rows_of_reasons())
    if counts.flags:
        console.table(("used, but worth knowing", "images", "the first"), counts.rows_of_flags())
    if counts.not_flipped:
        console.table(("no flipped variant because", "images"), sorted(counts.not_flipped.items()))
    console.table(("bucket", "images"), sorted(counts.buckets.items()))


def show_shards(rows: Sequence[ShardRow], console: Console) -> None:
    """Each shard, and the samples of both splits."""
    console.table(
        ("shard", "split", "samples", "MB"),
        [(row.path, row.split, row.count, f"{row.bytes / 1e6:.1f}") for row in rows],
    )
    counts = {split: sum(row.count for row in rows if row.split == split) for split in ("train", "holdout")}
    console.result(f"{counts['train']} training samples, {counts['holdout']} held out")
