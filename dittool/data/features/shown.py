"""What `dit embed` shows of its work."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from dittool.config.architectures import ImageConfig
from dittool.console import Console, duration_text
from dittool.data.embed_again import embed_again
from dittool.data.features.embed import EmbedSummary, caption_warnings
from dittool.data.features.estimate import Estimate
from dittool.data.features.parts import Part
from dittool.data.features.verify import Verification
from dittool.data.shards.from_encoders import IntoShardsSummary
from dittool.data.shown import show_inputs, show_shards
from dittool.data.source.scan import summary
from dittool.shell import command_line, quoted
from dittool.storage import bytes_text


def show_embedded(done: EmbedSummary, part: Part, config: ImageConfig, console: Console) -> None:
    """What `dit embed` made."""
    counts = summary(done.records)
    console.json(
        {"derived": str(done.folder), "inputs": counts.total, "part": f"{part.index}/{part.count}"}
        | {"made": done.made, "kept": done.kept, "left": done.left, "cut_captions": done.cut_captions}
        | asdict(counts)
    )
    show_inputs(counts, config.data.flip, console)
    columns = ("pass", "made now", "already there", *([] if part.is_everything else ["for other parts"]))
    rows = [(stage, done.made[stage], done.kept[stage], done.left[stage])[: len(columns)] for stage in done.made]
    console.table(columns, rows)
    for text in caption_warnings(done.records, done.cut_captions, config.encoders):
        console.warn(text)
    console.note(f"features in {done.folder}; next: {done.next_command(part)}")


def show_embedded_into_shards(done: IntoShardsSummary, part: Part, config: ImageConfig, console: Console) -> None:
    """What `dit embed --into-shards` made."""
    counts = summary(done.records)
    facts = {name: getattr(done, name) for name in ("made", "kept", "cut_captions", "complete")}
    console.json(
        {"shards": str(done.folder), "inputs": counts.total, "part": f"{part.index}/{part.count}", **facts}
        | asdict(counts)
        | {"rows": [asdict(row) for row in done.shards]}
        | {"joining": [{"id": record.id, "detail": record.detail} for record in done.joining]}
    )
    show_inputs(counts, config.data.flip, console)
    show_shards(done.shards, console)
    console.result(f"{done.made} samples encoded, {done.kept} shards were there")
    for text in caption_warnings(done.records, done.cut_captions, config.encoders):
        console.warn(text)
    if done.complete:
        audits, trains = command_line("dit", "audit", done.folder), f"dit train --preset P --data {quoted(done.folder)}"
        console.note(f"shards in {done.folder}; next: {audits}, then {trains}")
    else:
        console.note(f"shards in {done.folder}; other parts have still to write theirs, the last one makes the index")


def show_estimate(found: Estimate, console: Console) -> None:
    """What `dit embed --estimate` measured."""
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


def show_verified(out: Path, found: Verification, console: Console) -> bool:
    """What `dit embed --verify` read. Returns whether all is well."""
    faults = [vars(fault) for fault in found.faults]
    facts = {name: getattr(found, name) for name in ("features", "bytes", "strays")}
    console.json({"derived": str(out), "ok": not faults, **facts, "faults": faults})
    if faults:
        console.table(("where", "what is wrong"), [(fault["where"], fault["what"]) for fault in faults])
        again = embed_again(out, sorted({fault["stage"] for fault in faults}))
        console.note(f"remove what is damaged, then make it again: {again}")
        return False
    read = f"{found.features} features of {bytes_text(found.bytes)}"
    console.result(f"{out}: {read} are whole, finite, and what the records say")
    return True
