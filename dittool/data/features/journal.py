"""The journal of a derived folder: what each feature was made from, and a digest of its file.

One line a batch, so that it counts whole or not at all:

    {"stage": "vae", "made": {ID: {"source": "HASH BUCKET", "files": {"vae_latents": DIGEST}}}}

A line is a promise that the files are on disk: it is written after them. Call what writes with the folder's shared
files held.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dittool.data.embed_again import embed_again
from dittool.data.records import Record
from dittool.data.source.colours import CONVERTED
from dittool.errors import BadDataError
from dittool.storage import append_durably, full_disk_explained, read_json_lines, write_atomic

Digests = Mapping[str, Mapping[str, str]]  # record id → feature's name → digest of its file
_DIGEST_LETTERS = 16  # of a SHA-256: enough to see damage, and a third of the journal's size


@dataclass(frozen=True)
class Made:
    """What the journal says about the features of one record and stage."""

    source: str  # `source_of` the record they were made from
    # feature's name → digest of its file; older journals have none
    digests: Mapping[str, str] = field(default_factory=dict)


Journal = dict[tuple[str, str], Made]  # by (record id, stage)


def source_of(stage: str, record: Record) -> str:
    """What a stage's features are made from: the image's bytes, bucket, side and colours, or the caption."""
    if stage == "t5":
        return hashlib.sha256(record.caption.encode()).hexdigest()
    # Features that a version before 0.2 made of an image with a colour profile were made of its numbers as they stand.
    marks = " flipped" * record.flipped + " sRGB" * (CONVERTED in record.flags)
    return f"{record.image_sha256} {record.bucket}{marks}"


def digest_of(content: bytes) -> str:
    """What the journal remembers of a feature's file."""
    return hashlib.sha256(content).hexdigest()[:_DIGEST_LETTERS]


def read_journal(path: Path) -> Journal:
    """(record id, stage) → source and digests, of features that are on disk. Raises `BadDataError` for a journal
    that is not one.
    """
    if not path.exists():
        return {}
    entries: Journal = {}
    for number, line in enumerate(read_json_lines(path), start=1):
        try:
            if "made" in line:
                entries |= {
                    (key, line["stage"]): Made(made["source"], made.get("files", {}))
                    for key, made in line["made"].items()
                }
            else:  # a line of version 0.1: one record
                entries[line["id"], line["stage"]] = Made(line["source"])
        except (TypeError, KeyError, AttributeError) as error:
            raise BadDataError(
                f"{path}: value {number} is no journal line ({error!r})",
                f"remove that line, then run again: {embed_again(path.parent)} (only its features are made anew)",
            ) from error
    return entries


def append_journal(path: Path, stage: str, records: Iterable[Record], digests: Digests) -> None:
    """Enters a batch. Raises `StorageError` when the disk is full, with the journal as it was."""
    line = _line(stage, {record.id: Made(source_of(stage, record), digests.get(record.id, {})) for record in records})
    with full_disk_explained(path, len(line)):
        append_durably(path, line)


def rewrite_journal(path: Path, keep: Callable[[str, str, Made], bool]) -> None:
    """Leaves out entries (record id, stage, made) that are not to be kept."""
    entries = read_journal(path)
    kept = {key: made for key, made in entries.items() if keep(*key, made)}
    if len(kept) < len(entries):
        write_atomic(path, b"".join(_line(stage, {record_id: made}) for (record_id, stage), made in kept.items()))


def _line(stage: str, made: Mapping[str, Made]) -> bytes:
    rows = {record_id: {"source": entry.source, "files": dict(entry.digests)} for record_id, entry in made.items()}
    return (json.dumps({"stage": stage, "made": rows}) + "\n").encode()
