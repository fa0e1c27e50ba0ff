"""The derived store: one `.npy` file a feature and sample, and a journal that says what each was made from.

A feature counts when its file is there and the journal names the same source (hash of the image's bytes, or of the
caption). An edited image or caption therefore makes its features stale, and a file without a journal line is made
again. The journal is written after the features are on disk: a row in it is a promise that they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dittool.data.embed_again import SOURCE_NAME, embed_again, source_in
from dittool.data.features.journal import (
    Digests,
    Journal,
    append_journal,
    digest_of,
    forget_stages,
    prune_journal,
)
from dittool.data.features.parts import Part, shared_files
from dittool.data.features.refusals import as_scanned, with_earlier_findings
from dittool.data.features.sides import Compared, Sides, look_for_near_copies, read_sides, with_sides
from dittool.data.features.thumbnails import append_thumbnails, images_without
from dittool.data.identity import (
    CARD_OF_STAGE,
    CROP_RULE,
    IdentityCard,
    rebuild_command,
    require_same_identity,
    stages_made_stale,
)
from dittool.data.records import FEATURES, Feature, Record, features_of_record, read_records, write_records
from dittool.data.source.seen import as_judged
from dittool.encoders.cards import EncoderCard, card_to_json
from dittool.errors import BadDataError
from dittool.storage import full_disk_explained, read_json, sync_folder, write_atomic, write_json
from dittool.untrusted.npy import npy_bytes, read_npy


class FeatureStore:
    """A derived folder: records, identity card, features and their journal. Writers hold its `parts.writer_lock`."""

    def __init__(self, folder: Path, part: Part | None = None, near_copies_together: bool = True) -> None:
        self.folder = folder
        self.near_copies_path = folder / "near_copies.jsonl"
        self._near_copies_together = near_copies_together
        self._thumbnails_path = folder / "thumbnails.rows"
        self.records_path = folder / "records.jsonl"
        self._identity_path = folder / "identity.json"
        self._source_path = folder / SOURCE_NAME
        self._part = part or Part()
        self._latest: tuple[tuple[int, int, int], list[Record]] | None = None  # records.jsonl: stamp, content

    # Records

    def read_records(self) -> list[Record]:
        return read_records(self.records_path)

    def write_records(self, records: list[Record]) -> None:
        write_records(self.records_path, records)

    def merge_records(self, records: list[Record], forget: Iterable[str] = ()) -> list[Record]:
        """Writes the records with the refusals and near copies that earlier runs and other parts found, and returns
        them so.

        Refusals by the stages in `forget` are not taken over.
        """
        with shared_files(self.folder):
            records = with_sides(with_earlier_findings(records, self._earlier(), forget), self.sides().of)
            if self._latest is None or records != self._latest[1]:
                self.write_records(records)
            self._latest = self._stamp(), records
        return records

    def earlier_records(self) -> list[Record]:
        """Those of an earlier run, as a scan of the same files would judge them."""
        return [as_judged(as_scanned(record)) for record in self._earlier()]

    def _stamp(self) -> tuple[int, int, int]:
        status = self.records_path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _earlier(self) -> list[Record]:
        if self._latest is not None and self.records_path.is_file() and self._stamp() == self._latest[0]:
            return self._latest[1]  # nobody has written since this process read or wrote it
        self._latest = None
        try:
            return self.read_records() if self.records_path.is_file() else []
        except BadDataError:  # a damaged file is made again now; what it knew will be found again
            return []

    # Near copies

    def sides(self) -> Sides:
        """What was decided on near copies; nothing where they are not looked for."""
        return read_sides(self.near_copies_path) if self._near_copies_together else Sides()

    def without_thumbnail(self, records: Iterable[Record]) -> set[str]:
        """Images (sha256) of used records whose thumbnail is to be made; none where near copies are not looked for."""
        if not self._near_copies_together:
            return set()
        return images_without(self._thumbnails_path, (record.image_sha256 for record in records if record.used))

    def add_thumbnails(self, made: Mapping[str, np.ndarray]) -> None:
        """Keeps thumbnails, by the sha256 of the image."""
        if made:
            with shared_files(self.folder):
                append_thumbnails(self._thumbnails_path, made)

    def look_for_near_copies(self) -> Compared:
        """Compares what was not compared yet: once all thumbnails are there. `merge_records` then says it."""
        with shared_files(self.folder):
            return look_for_near_copies(self._thumbnails_path, self.near_copies_path)

    # Where the images are

    @property
    def source(self) -> str:
        """The folder or list that was embedded. Raises `BadDataError`."""
        if (source := source_in(self.folder)) is not None:
            return source
        raise BadDataError(
            f"{self._source_path}: it names no source",
            f"say it again, the features stay: {embed_again(self.folder)}",
        )

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
    def patch_storage(self) -> str | None:
        """How patches are stored here; None where nothing is."""
        return self.card().patch_storage if self.has_card else None

    @property
    def has_card(self) -> bool:
        """Whether an embed run was begun here."""
        return self._identity_path.exists()

    def card(self) -> IdentityCard:
        """The identity card. Raises `BadDataError` when there is none, or the file holds something else."""
        return IdentityCard.from_json(read_json(self._identity_path), str(self._identity_path))

    def write_card(self, card: IdentityCard) -> None:
        write_json(self._identity_path, card.to_json())

    def open_card(
        self, buckets: list[str], patch_storage: str, rebuild: Iterable[str] = (), captions: tuple[str, ...] = ()
    ) -> bool:
        """Makes the folder's card when there is none, and holds it against this run. Returns whether an existing one
        was changed.

        With `rebuild`, the named stages adopt buckets, crop rule and storage of this run, and lose the features that
        these change. Raises `BadDataError` when the card differs and that does not cover it, naming the command that
        would.
        """
        with shared_files(self.folder):
            if not self.has_card:
                self.write_card(IdentityCard(tuple(buckets), patch_storage, captions=captions))
                return False
            card = self.card()
            adopted = replace(
                card, crop=CROP_RULE, buckets=tuple(buckets), patch_storage=patch_storage, captions=captions
            )
            if adopted == card:
                return False
            if not card.encoders and self._part.is_everything:  # refused before any pass: nothing was made
                self.write_card(adopted)
                return False
            stale = stages_made_stale(adopted, card)
            if not set(stale) <= set(rebuild):
                require_same_identity(
                    adopted.to_json(),
                    card.to_json(),
                    str(self.folder),
                    f"embed into another folder with --out, or make again only what is stale: {rebuild_command(stale)},"
                    " with the source and preset of this run",
                )
            # which features another bucket list makes stale, the journal knows
            if replace(card, buckets=adopted.buckets) != adopted:
                self._forget(stale)
            self.write_card(adopted)
            return True

    def require_encoder(self, stage: str, encoder: EncoderCard) -> None:
        """Raises `BadDataError` when the folder holds features of the stage from another encoder, naming the
        command that remakes only these.
        """
        known = self.card().find(CARD_OF_STAGE[stage]) or encoder
        require_same_identity(
            {encoder.kind: card_to_json(encoder)},
            {encoder.kind: card_to_json(known)},
            f"{self.folder}: {stage} features",
            f"embed into another folder with --out, or make only these again: {rebuild_command([stage])}, with the"
            " source and preset of this run",
        )

    def register_encoder(self, stage: str, encoder: EncoderCard, rebuild: bool = False) -> bool:
        """Enters an encoder into the card. Returns whether another one stood there: with `rebuild` its features are
        forgotten.

        Raises `BadDataError` when another one stands there and `rebuild` is not given.
        """
        with shared_files(self.folder):
            card = self.card()
            known = card.find(CARD_OF_STAGE[stage])
            if not rebuild:
                self.require_encoder(stage, encoder)
            replaces = known is not None and known != encoder
            if replaces:
                self._forget([stage])
            if known != encoder:
                self.write_card(card.with_encoder(encoder))
            return replaces

    def drop(self, stage: str) -> None:
        """Drops a stage's features: first their journal lines, so that an interruption leaves files that do not
        count.
        """
        with shared_files(self.folder):
            self._forget([stage])
        for feature in FEATURES:
            if feature.stage == stage and (self.folder / feature.name).is_dir():
                for path in (self.folder / feature.name).glob("*.npy"):
                    path.unlink()

    # Features

    def _features(self, stage: str) -> list[Feature]:
        """What is stored of a stage: patches not where the card says that none are kept."""
        kept = self.card().features if self.has_card else FEATURES
        return [feature for feature in kept if feature.stage == stage]

    def path(self, feature: Feature, record_id: str) -> Path:
        return self.folder / feature.name / f"{record_id}{feature.ending}"

    def write(self, feature: Feature, record_id: str, stored: np.ndarray) -> str:
        """Stores one array under its name, whole or not at all, and returns the digest of its file.

        The file's bytes are on disk when this returns; its name is when `append_journal` does. Raises `StorageError`
        when the disk is full.
        """
        path, content = self.path(feature, record_id), npy_bytes(stored)
        with full_disk_explained(path, len(content)):
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, content, writer=f"{self._part.name}-", name_synced=False)
        return digest_of(content)

    def bytes_present(self, stage: str, records: Iterable[Record]) -> int:
        """Disk that is taken by files of the stage which writing these records replaces."""
        features = [feature for feature in FEATURES if feature.stage == stage]
        paths = (self.path(each, record.id) for record in records for each in features_of_record(features, record))
        return sum(path.stat().st_blocks * 512 for path in paths if path.is_file())

    def read(self, feature: Feature, record_id: str) -> np.ndarray:
        """The stored array; patches as `patch_storage` keeps them. Raises `BadDataError`."""
        return read_npy(self.path(feature, record_id))

    # Journal

    def read_journal(self) -> Journal:
        """What features were made from. Raises `BadDataError` for a journal that is not one."""
        return Journal(self.folder)

    def prune_journal(self, used: Iterable[Record]) -> Journal:
        """Drops stale rows, and returns what the journal says then.

        A stale row must go before its features are made again: were that interrupted and the edit undone, it would
        vouch for the wrong ones.
        """
        with shared_files(self.folder):
            prune_journal(self.folder, self._part, used)
            return self.read_journal()

    def append_journal(self, stage: str, records: Sequence[Record], digests: Digests | None = None) -> None:
        """Enters features whose files are written, after making their names durable."""
        for feature in FEATURES:
            if feature.stage == stage and (self.folder / feature.name).is_dir():
                sync_folder(self.folder / feature.name)
        with shared_files(self.folder):
            append_journal(self.folder, self._part, stage, records, digests or {})

    def missing(self, stage: str, records: Sequence[Record], journal: Journal) -> list[Record]:
        """Records whose features of this stage are absent or stale."""
        features = self._features(stage)
        return [
            record
            for record, is_current in zip(records, journal.current(stage, records), strict=True)
            if not is_current
            or not all(self.path(each, record.id).is_file() for each in features_of_record(features, record))
        ]

    def _forget(self, stages: Iterable[str]) -> None:
        forget_stages(self.folder, stages)
