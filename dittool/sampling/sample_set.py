"""`dit sample --prompts FILE --out F.npz`: the images of a benchmark, in one file that its evaluator reads.

    F.npz          arr_0 (N, H, W, 3) uint8, as ADM's evaluator has it: image i is of line i div n, its drawing i mod n;
                   of classes also arr_1 (N,) int64, their numbers
    F.json         prompts, seeds, settings, hashes: what each image is, and what drawing it again needs
    F.npz.parts/   while it is made: images of 16 each, so that a kill loses the last 16

Image i has the seed S + i, or that of its line + its drawing, and is drawn in a batch that follows from i alone. So
neither kills nor the number of processes change a bit, and memory is that of one batch, however many images there are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dittool.console import Talk
from dittool.data.features.parts import Part
from dittool.errors import StorageError, UsageError
from dittool.storage import (
    file_sha256,
    folder_lock,
    output_folder,
    read_json,
    require_free,
    sweep_temporaries,
    write_atomic,
    write_json,
)
from dittool.untrusted.npy import npy_bytes, read_npy

AT_ONCE = 16  # images drawn together: rounding depends on it
_PLAN = "plan.json"


@dataclass(frozen=True)
class SampleSet:
    """What is to be drawn."""

    count: int  # N images
    size: tuple[int, int]  # (W, H) of each
    draw: Callable[[range], np.ndarray]  # indices → (B, H, W, 3) uint8
    described: dict[str, object]  # everything that decides an image; stands in F.json
    labels: Sequence[int] | None = None  # of classes, one an image
    made_with: dict[str, object] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Of all that decides the images."""
        return hashlib.sha256(json.dumps(self.described, sort_keys=True).encode()).hexdigest()


def draw_set(asked: SampleSet, out: Path, part: Part, talk: Talk, force: bool = False) -> Path | None:
    """Draws this part's share of what is not there yet; whoever finds all of it there writes the file and returns its
    path, other parts return None.

    Raises `UsageError` when something else stands there or was begun there, `StorageError`, `BadDataError`.
    """
    output_folder(out.parent)
    parts, record = out.with_name(f"{out.name}.parts"), out.with_suffix(".json")
    if _is_done(out, record, asked):
        shutil.rmtree(parts, ignore_errors=True)
        talk.note(f"{out}: is there already, with all of its {asked.count:,} images")
        return out
    if (out.exists() or (record.exists() and not _is_record(record))) and not force:
        raise UsageError(
            f"--out {out}: another file stands there, or beside it as {record.name}",
            "give another name, or replace it with --force",
        )
    output_folder(parts)
    _begin(asked, parts, talk)
    starts = [start for number, start in enumerate(range(0, asked.count, AT_ONCE)) if part.takes(number)]
    missing = [start for start in starts if not _piece(parts, start).exists()]
    if len(missing) < len(starts):
        talk.note(f"{out}: goes on; {len(starts) - len(missing):,} of {len(starts):,} batches are there")
    require_free(out.parent, (len(missing) * AT_ONCE + asked.count) * 3 * asked.size[0] * asked.size[1], str(out))
    with talk.progress("sample", len(missing) * AT_ONCE, "image") as task:
        for start in missing:
            rows = range(start, min(start + AT_ONCE, asked.count))
            write_atomic(_piece(parts, start), npy_bytes(asked.draw(rows)), writer=part.name)
            task.advance(len(rows))
    return _assembled(asked, out, record, parts, talk)


def _is_done(out: Path, record: Path, asked: SampleSet) -> bool:
    if not (out.is_file() and record.is_file()):
        return False
    found = read_json(record)
    return isinstance(found, dict) and found.get("set") == asked.sha256


def _is_record(path: Path) -> bool:
    """Whether a JSON file is of ours, so that it may be written again."""
    found = read_json(path)
    return isinstance(found, dict) and "set" in found


def _begin(asked: SampleSet, parts: Path, talk: Talk) -> None:
    """Says in the folder what is drawn in it, or finds that it is the same."""
    plan = parts / _PLAN
    if not plan.exists():
        write_json(plan, {"set": asked.sha256, "made_with": asked.made_with})
    begun = read_json(plan)
    if not isinstance(begun, dict) or begun.get("set") != asked.sha256:
        raise UsageError(
            f"{parts}: was begun with other prompts, another checkpoint or other settings",
            "give another --out, or remove that folder to begin anew",
        )
    if begun.get("made_with") != asked.made_with:
        talk.warn(
            f"{parts}: was begun with {begun.get('made_with')}, now {asked.made_with}: images may round otherwise"
        )


def _piece(parts: Path, start: int) -> Path:
    return parts / f"{start:09d}.npy"


def _assembled(asked: SampleSet, out: Path, record: Path, parts: Path, talk: Talk) -> Path | None:
    pieces = [_piece(parts, start) for start in range(0, asked.count, AT_ONCE)]
    if left := sum(not piece.exists() for piece in pieces):
        if _is_done(out, record, asked):
            return None  # another part has just written it
        talk.note(f"{out}: {left:,} batches of other parts are not there yet; the last of them writes the file")
        return None
    try:
        with folder_lock(parts):
            sweep_temporaries(parts)
            write_atomic(out, lambda file: _write_npz(file, asked, pieces))
            described = {"set": asked.sha256, "samples_sha256": file_sha256(out), **asked.described}
            write_json(record, {**described, "made_with": asked.made_with})
    except (StorageError, FileNotFoundError):
        if not parts.exists() or _is_done(out, record, asked):
            return None
        raise
    shutil.rmtree(parts, ignore_errors=True)
    return out


def _write_npz(file: BinaryIO, asked: SampleSet, pieces: Sequence[Path]) -> None:
    """A stored zip, one piece in memory at a time."""
    width, height = asked.size
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        # without a date: the same images are the same bytes
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (asked.count, height, width, 3)}
            np.lib.format.write_array_header_1_0(member, header)
            for piece in pieces:
                member.write(read_npy(piece).tobytes())
        if asked.labels is not None:
            archive.writestr(zipfile.ZipInfo("arr_1.npy"), npy_bytes(np.array(asked.labels, np.int64)))
