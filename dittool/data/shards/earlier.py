"""What an earlier call left where shards are to be written: it is replaced only where it is of the same images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dittool.data.records import Record
from dittool.data.shards.index import INDEX_NAME, read_index, samples_of
from dittool.errors import BadDataError, UnsafeFileError, UsageError
from dittool.shell import command_line
from dittool.storage import free_name_beside, read_json

JOURNALS = "shards*.jsonl"  # of a set that is being written, one a part


def digests_of_finished_set(out: Path) -> dict[str, str]:
    """sha256 of each tar by its path, of the finished set in `out`; nothing where there is none."""
    try:
        return {row.path: row.sha256 for row in read_index(out).shards}
    except (BadDataError, UnsafeFileError):
        return {}


def require_ours(out: Path, journals: Path) -> None:
    """Tars that stand in the folder already must be of an earlier call, whose shards.jsonl lies in `journals`: they
    will be replaced and removed.
    """
    foreign = next(out.glob("bucket_*/*.tar"), None)
    index = read_json(out / INDEX_NAME) if (out / INDEX_NAME).exists() else None
    ours = (
        any(journals.glob(JOURNALS))
        if index is None
        else not (isinstance(index, dict) and index.get("identity", {}).get("claimed"))
    )
    if foreign and not ours:
        raise UsageError(
            f"{out}: holds shards that dit shard did not write, such as {foreign.name}",
            "choose another folder with --out",
        )


def require_same_images(out: Path, source: str, records: list[Record]) -> None:
    """A finished set of other images would be replaced and its shards removed. One whose images were moved, or of which
    some came and went, is made anew.
    """
    try:
        index = read_index(out)
    except (BadDataError, UnsafeFileError):
        return
    ids = {ref.id for ref in samples_of(out, replace(index, shards=index.shards[:1]))}
    if index.source != source and len(ids & {record.id for record in records}) < len(ids) / 2:
        raise UsageError(
            f"{out}: holds shards of other images, of {index.source}; these are of {source}",
            f"name another folder with --out, or move that set away: {command_line('mv', out, free_name_beside(out))}",
        )
