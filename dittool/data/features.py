"""The derived store: one `.npy` file a feature and sample, and a journal that says what each was made from.

A feature counts when its file is there and the journal names the same source (hash of the image's bytes, or of the caption).
An edited image or caption therefore makes its features stale, and a file without a journal line is made again. The journal is written
after the features are on disk: a line in it is a promise that they are. A batch has one line, so it counts whole or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dittool.data.arrays import npy_bytes, read_npy
from dittool.data.identity import ENCODER_OF_STAGE, differences, new_card, rebuild_command, require_card, require_same_identity, stages_made_stale
from dittool.data.parts import Part, shared_files
from dittool.data.quarantine import with_earlier_refusals
from dittool.data.records import FEATURES, Feature, Record, read_records, write_records
from dittool.errors import BadDataError, StorageError
from dittool.storage import TEMPORARY_PREFIX, bytes_text, read_json, read_json_lines, sync_folder, write_atomic, write_json

Digests = Mapping[str, Mapping[str, str]]  # record id → feature's name → digest of its file
_DIGEST_LETTERS = 16  # of a SHA-256: enough to see damage, and a third of the journal's size


@dataclass(frozen=True)
class Made:
    """What the journal says about the features of one record and stage."""

    source: str  # `source_of` the record they were made from
    digests: Mapping[str, str] = field(default_factory=dict)  # feature's name → digest of its file; older journals have none


Journal = dict[tuple[str, str], Made]  # by (record id, stage)


class FeatureStore:
    """A derived folder: records, identity card, features and their journal. Writers hold its `parts.writer_lock`."""

    def __init__(self, folder: Path, part: Part | None = None) -> None:
        self.folder = folder
        self.records_path = folder / "records.jsonl"
        self._identity_path = folder / "identity.json"
        self._source_path = folder / "source.json"
        self._journal_path = folder / "journal.jsonl"
        self._part = part or Part()

    # Records

    def read_records(self) -> list[Record]:
        return read_records(self.records_path)

    def write_records(self, records: list[Record]) -> None:
        write_records(self.records_path, records)

    def merge_records(self, records: list[Record], forget: Iterable[str] = ()) -> list[Record]:
        """Writes the records with the refusals that earlier runs and other parts found (`quarantine`), and returns them so.

        Refusals by the stages in `forget` are not taken over.
        """
        with shared_files(self.folder):
            try:
                earlier = self.read_records() if self.records_path.is_file() else []
            except BadDataError:  # a damaged file is made again now; what it knew about refusals will be found again
                earlier = []
            records = with_earlier_refusals(records, earlier, forget)
            self.write_records(records)
        return records

    # Where the images are

    @property
    def source(self) -> str:
        """The folder or list that was embedded. Raises `BadDataError`."""
        value = read_json(self._source_path)
        if isinstance(value, dict) and isinstance(value.get("folder"), str):
            return value["folder"]
        raise BadDataError(f"{self._source_path}: it names no source", "run dit embed again with the same source: it keeps the features")

    def write_source(self, source: str) -> str | None:
        """Names the source. Returns the one that was named before, where it was another."""
        with shared_files(self.folder):
            try:
                before = self.source
            except BadDataError:  # none, or a damaged file: it is made anew
                before = None
            write_json(self._source_path, {"folder": source})
        return before if before != source else None

    # Identity card

    @property
    def has_card(self) -> bool:
        """Whether an embed run was begun here."""
        return self._identity_path.exists()

    def card(self) -> dict[str, Any]:
        """The identity card. Raises `BadDataError` when there is none, or the file holds something else."""
        return require_card(read_json(self._identity_path), str(self._identity_path))

    def open_card(self, buckets: list[str], patch_storage: str, rebuild: Iterable[str] = ()) -> bool:
        """Makes the folder's card when there is none, and holds it against this run. Returns whether an existing one was changed.

        With `rebuild`, the named stages adopt buckets, crop rule and storage of this run, and lose the features that these change.
        Raises `BadDataError` when the card differs and that does not cover it, naming the command that would.
        """
        with shared_files(self.folder):
            fresh = new_card(buckets, patch_storage)
            if not self.has_card:
                write_json(self._identity_path, fresh)
                return False
            card = self.card()
            adopted = fresh | {"encoders": card["encoders"]}
            if adopted == card:
                return False
            stale = stages_made_stale(adopted, card)
            if not set(stale) <= set(rebuild):
                require_same_identity(
                    adopted, card, str(self.folder),
                    f"embed into another folder with --out, or make again only what is stale: {rebuild_command(stale)}, "
                    "with the source and preset of this run",
                )  # fmt: skip
            if not _only_buckets_differ(adopted, card):  # which features another bucket list makes stale, the journal knows
                self._forget(stale)
            write_json(self._identity_path, adopted)
            return True

    def require_encoder(self, stage: str, encoder_card: dict[str, Any]) -> None:
        """Raises `BadDataError` when the folder holds features of the stage from another encoder, naming the command that remakes only these."""
        name = ENCODER_OF_STAGE[stage]
        known = self.card()["encoders"].get(name, encoder_card)
        require_same_identity(
            {name: encoder_card}, {name: known}, f"{self.folder}: {stage} features",
            f"embed into another folder with --out, or make only these again: {rebuild_command([stage])}, with the source and preset of this run",
        )  # fmt: skip

    def register_encoder(self, stage: str, encoder_card: dict[str, Any], rebuild: bool = False) -> bool:
        """Enters an encoder into the card. Returns whether another one stood there: with `rebuild` its features are forgotten.

        Raises `BadDataError` when another one stands there and `rebuild` is not given.
        """
        with shared_files(self.folder):
            card, name = self.card(), ENCODER_OF_STAGE[stage]
            if not rebuild:
                self.require_encoder(stage, encoder_card)
            replaces = card["encoders"].get(name, encoder_card) != encoder_card
            if replaces:
                self._forget([stage])
            if card["encoders"].get(name) != encoder_card:
                card["encoders"][name] = encoder_card
                write_json(self._identity_path, card)
            return replaces

    def drop(self, stage: str) -> None:
        """Drops a stage's features: first their journal lines, so that an interruption leaves files that do not count."""
        with shared_files(self.folder):
            self._forget([stage])
        for feature in FEATURES:
            if feature.stage == stage and (self.folder / feature.name).is_dir():
                for path in (self.folder / feature.name).glob("*.npy"):
                    path.unlink()

    # Features

    def path(self, feature: Feature, record_id: str) -> Path:
        return self.folder / feature.name / f"{record_id}.npy"

    def write(self, feature: Feature, record_id: str, stored: np.ndarray) -> str:
        """Stores one array under its name, whole or not at all, and returns the digest of its file.

        The file's bytes are on disk when this returns; its name is when `append_journal` does. Raises `StorageError` when the disk is full.
        """
        path, content = self.path(feature, record_id), npy_bytes(stored)
        try:
            path.parent.mkdir(exist_ok=True)
            self._write_file(path, content)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise _disk_full(path, len(content), error) from error
            raise
        return digest_of(content)

    def bytes_present(self, stage: str, records: Iterable[Record]) -> int:
        """Disk that is taken by files of the stage which writing these records replaces."""
        paths = (self.path(feature, record.id) for record in records for feature in FEATURES if feature.stage == stage)
        return sum(path.stat().st_blocks * 512 for path in paths if path.is_file())

    def read(self, feature: Feature, record_id: str) -> np.ndarray:
        """The stored array; patches as `patch_storage` keeps them. Raises `BadDataError`."""
        return read_npy(self.path(feature, record_id))

    # Journal

    def read_journal(self) -> dict[tuple[str, str], str]:
        """(record id, stage) → what the features were made from."""
        return {key: made.source for key, made in self.read_journal_entries().items()}

    def read_journal_entries(self) -> Journal:
        """(record id, stage) → source and digests, of features that are on disk. Raises `BadDataError` for a journal that is not one."""
        if not self._journal_path.exists():
            return {}
        entries: Journal = {}
        for number, line in enumerate(read_json_lines(self._journal_path), start=1):
            try:
                if "made" in line:
                    entries |= {(key, line["stage"]): Made(made["source"], made.get("files", {})) for key, made in line["made"].items()}
                else:  # a line of version 0.1: one record
                    entries[line["id"], line["stage"]] = Made(line["source"])
            except (TypeError, KeyError, AttributeError) as error:
                raise BadDataError(
                    f"{self._journal_path}: value {number} is no journal line ({error!r})",
                    "remove that line and run dit embed again: its features are made anew",
                ) from error
        return entries

    def prune_journal(self, used: Iterable[Record]) -> dict[tuple[str, str], str]:
        """Drops torn, superseded, orphaned and stale lines, and returns what the journal says then.

        A stale line must go before its features are made again: were that interrupted and the edit undone, it would vouch for the wrong ones.
        """
        by_id = {record.id: record for record in used}

        def current(record_id: str, stage: str, made: Made) -> bool:
            return record_id in by_id and made.source == source_of(stage, by_id[record_id])

        with shared_files(self.folder):
            self._rewrite_journal(current)
            return self.read_journal()

    def append_journal(self, stage: str, records: Iterable[Record], digests: Digests | None = None) -> None:
        """Enters features whose files are written, as one line, after making their names durable."""
        rows = {record.id: {"source": source_of(stage, record), "files": dict((digests or {}).get(record.id, {}))} for record in records}
        for feature in FEATURES:
            if feature.stage == stage and (self.folder / feature.name).is_dir():
                sync_folder(self.folder / feature.name)
        line = _journal_line(stage, rows)
        with shared_files(self.folder):
            try:
                _append_durably(self._journal_path, line)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                    raise _disk_full(self._journal_path, len(line), error) from error
                raise

    def missing(self, stage: str, records: Iterable[Record], journal: dict[tuple[str, str], str]) -> list[Record]:
        """Records whose features of this stage are absent or stale."""
        features = [feature for feature in FEATURES if feature.stage == stage]
        return [
            record for record in records
            if journal.get((record.id, stage)) != source_of(stage, record)
            or not all(self.path(feature, record.id).is_file() for feature in features)
        ]  # fmt: skip

    def _forget(self, stages: Iterable[str]) -> None:
        dropped = set(stages)
        self._rewrite_journal(lambda _, stage, __: stage not in dropped)

    def _rewrite_journal(self, keep: Callable[[str, str, Made], bool]) -> None:
        entries = self.read_journal_entries()
        kept = {key: made for key, made in entries.items() if keep(*key, made)}
        if len(kept) < len(entries):
            rows = ((stage, {key: {"source": made.source, "files": dict(made.digests)}}) for (key, stage), made in kept.items())
            write_atomic(self._journal_path, b"".join(_journal_line(stage, made) for stage, made in rows))

    def _write_file(self, path: Path, content: bytes) -> None:
        handle, temporary = tempfile.mkstemp(prefix=f"{TEMPORARY_PREFIX}{self._part.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), _FILE_MODE)
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise


def source_of(stage: str, record: Record) -> str:
    """What a stage's features are made from: the image's bytes, bucket and side, or the caption."""
    if stage == "t5":
        return hashlib.sha256(record.caption.encode()).hexdigest()
    return f"{record.image_sha256} {record.bucket}" + (" flipped" if record.flipped else "")


def digest_of(content: bytes) -> str:
    """What the journal remembers of a feature's file."""
    return hashlib.sha256(content).hexdigest()[:_DIGEST_LETTERS]


def _journal_line(stage: str, made: Mapping[str, Any]) -> bytes:
    return (json.dumps({"stage": stage, "made": made}) + "\n").encode()


def _file_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


_FILE_MODE = _file_mode()  # read once: asking for the umask means setting it, which threads must not do at the same time


def _append_durably(path: Path, line: bytes) -> None:
    """Appends a line, behind the last whole one: half a line is what a killed or failed writer left. Call it with the file held."""
    is_new = not path.exists()
    with path.open("ab" if is_new else "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(0)
            size = _end_of_last_line(file, size)
            file.seek(size)
            file.truncate()
        try:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.truncate(path, size)
            raise
    if is_new:
        sync_folder(path.parent)


def _end_of_last_line(file: Any, size: int) -> int:
    """The position behind the last newline, 0 when there is none."""
    block = 1 << 16
    while size:
        start = max(0, size - block)
        file.seek(start)
        if (found := file.read(size - start).rfind(b"\n")) >= 0:
            return start + found + 1
        size = start
    return 0


def _disk_full(path: Path, needed: int, error: OSError) -> StorageError:
    status = os.statvfs(path.parent)
    free = status.f_bavail * status.f_frsize
    return StorageError(
        f"{path}: {error.strerror}: {bytes_text(needed)} to write, {bytes_text(free)} free",
        "free some space, then run the same command again: what is made stays",
    )


def _only_buckets_differ(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return all(line.startswith("buckets") for line in differences(mine, theirs))
