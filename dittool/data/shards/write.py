"""Writes shards: WebDataset tars, one folder a bucket, with an index that knows every byte (index.py).

    bucket_WxH/shard-000000.tar         samples of the training split; holdout-000000.tar: of the hold-out
    bucket_WxH/shard-000000.members.json  where each member of the tar begins and how long it is
    shards.jsonl                        while the set is unfinished: one line for each shard that is whole

    left_out.jsonl                      records that would join both sides of the hold-out, where there are any

Which images are held out is a function of their bytes, and of near copies together of the bytes of one of them
(features/sides.py): so neither equal images nor copies stand on both sides, and images that are added later move none
across. How shards are written, and an interrupted call goes on, stands in writer.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dittool.config.architectures import image_config
from dittool.config.features import Data
from dittool.config.load import load_config
from dittool.console import SILENT, Talk
from dittool.data.embed_again import CONFIGURATION_NAME, embed_again
from dittool.data.features.journal import digest_of, joined_digest
from dittool.data.features.parts import Part, writer_lock
from dittool.data.features.store import FeatureStore
from dittool.data.identity import IdentityCard, stages_of_other_widths
from dittool.data.patch_storage import decode_patches
from dittool.data.records import (
    IMAGE_PATCHES,
    STAGES,
    Feature,
    Record,
    features_of_record,
    write_records,
)
from dittool.data.shards.earlier import require_ours, require_same_images
from dittool.data.shards.index import (
    ShardRow,
)
from dittool.data.shards.split import ShardPlan, plan_set
from dittool.data.shards.statistics import widths_of
from dittool.data.shards.writer import ShardWriter, StoredSample
from dittool.encoders.cards import FeatureWidths
from dittool.errors import BadDataError
from dittool.shell import command_line
from dittool.storage import (
    nothing_left_of_refusal,
    output_folder,
    require_free,
)
from dittool.untrusted.npy import parse_npy, read_npy_bytes

DEFAULT_SHARD_SIZE = 1000
LEFT_OUT = "left_out.jsonl"
_NOT_LOOKED_FOR = (
    "near copies were not looked for, so a picture that was saved twice may be trained on and held out; dit embed with"
    " the same source and preset looks for them, and keeps the features"
)


@dataclass(frozen=True)
class ShardSummary:
    """What was written."""

    folder: Path
    shards: list[ShardRow]
    left_out: int  # used records beyond --limit
    joining: list[Record]  # refused here: near copies of images that stand on both sides of the hold-out
    kept: int  # shards that an interrupted call had already written
    complete: bool = True  # False: other parts have shards to write


def shard(
    derived: Path,
    out: Path,
    shard_size: int = DEFAULT_SHARD_SIZE,
    limit: int | None = None,
    holdout: float | None = None,
    talk: Talk = SILENT,
    seed: int = 0,
    part: Part | None = None,
) -> ShardSummary:
    """Packs the derived features into shards, or finishes what an interrupted call began.

    Args:
        holdout: share of images kept out of training; None takes `data.holdout` of the configuration that embedded
        them.
        seed: of the order in which samples lie in the shards, and so of which ones `limit` takes.
        part: this process's share of the shards; several may write at a time, the last one makes the index.

    Raises `BadDataError` when features are missing, stale or not finite, `UsageError` when another program's shards
    stand in `out`, `StorageError` when the disk will not do.
    """
    store, part = FeatureStore(derived), part or Part()
    records = [record for record in store.read_records() if record.used]
    data = configured_data(derived)
    share = data.holdout if holdout is None else holdout
    if data.near_copies == "together" and not store.near_copies_path.exists():
        talk.warn(f"{derived}: {_NOT_LOOKED_FOR}")
    if not records:
        raise BadDataError(f"{store.folder}: no usable record", "embed some images first with: dit embed IMAGES")
    planned = plan_set(records, share, shard_size, limit, seed, talk)
    mine = [plan for number, plan in enumerate(planned.shards) if part.takes(number)]
    _require_complete(store, records if part.is_everything else [r for plan in mine for r in plan.records])
    with nothing_left_of_refusal(out), writer_lock(output_folder(out), part):
        require_ours(out, out)
        require_same_images(out, store.source, planned.records)
        writer = ShardWriter(out, store.card(), part)
        samples = _DerivedSamples(store, writer.card)
        there = sum(entry.row.bytes for plan in mine if (entry := writer.finished.get(plan.path)) and entry.row)
        require_free(
            out, _bytes_needed(store, [record for plan in mine for record in plan.records]) - there, "the shards"
        )
        if not writer.earlier:
            writer.mark_unfinished()
        written = []
        with talk.progress("shard", sum(len(plan.records) for plan in mine), "sample") as task:
            for plan in mine:
                made_from = samples.made_from(plan, writer.planned(plan))
                written.append(writer.kept(plan, made_from) or writer.write(plan, made_from, samples.of(plan)))
                task.advance(len(plan.records))
        merged = writer.merge(planned, store.source)
        if merged is not None:
            write_left_out(out / LEFT_OUT, planned.joining, talk)
            if part.is_everything:
                writer.forget()
    rows = [entry.row for entry in merged or written if entry.row]
    return ShardSummary(out, rows, planned.beyond_limit, planned.joining, writer.count_kept, merged is not None)


class _DerivedSamples:
    """Samples of a derived folder. Features are copied as they are: they were written by us, and are checked on the
    way.
    """

    def __init__(self, store: FeatureStore, card: IdentityCard) -> None:
        self._store, self._card = store, card
        self._widths: FeatureWidths | None = None
        self._made = store.read_journal()

    def of(self, plan: ShardPlan) -> Iterator[StoredSample]:
        """Those of a shard. Raises `BadDataError` for a feature that is damaged."""
        for record in plan.records:
            files = {each: data for feature in self._card.features for each, data in self._files(feature, record)}
            yield StoredSample(record, files, self._checked(record, files))

    def made_from(self, plan: ShardPlan, planned: str) -> str:
        """Hash of all that decides a shard's bytes. A feature file is taken at its size and time, as `make` does:
        reading it is the work itself.
        """
        digest = hashlib.sha256(planned.encode())
        for record in plan.records:
            for feature in features_of_record(self._card.features, record):
                stat = self._store.path(feature, record.id).stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def _files(self, feature: Feature, record: Record) -> list[tuple[Feature, bytes]]:
        """A feature's file, of captions perhaps several, if they are still those that were made."""
        features = features_of_record([feature], record)
        files = [(each, read_npy_bytes(self._store.path(each, record.id))) for each in features]
        made = self._made.made(record.id, feature.stage)
        digest = made.digests.get(feature.name) if made else None
        if digest and (found := joined_digest([digest_of(data) for _, data in files])) != digest:
            path = self._store.path(features[0], record.id)
            raise BadDataError(
                f"{path}: its digest is {found}, when it was made it was {digest} ('{record.name}')",
                self._remake(feature, path),
            )
        return files

    def _checked(self, record: Record, files: dict[Feature, bytes]) -> dict[Feature, np.ndarray]:
        arrays = {}
        for feature, data in files.items():
            path = self._store.path(feature, record.id)
            array = parse_npy(data, str(path))
            array = decode_patches(array, self._card.patch_storage) if feature is IMAGE_PATCHES else array
            if array.ndim != len(feature.axes) or 0 in array.shape:
                raise BadDataError(
                    f"{path}: shape {array.shape} where ({', '.join(feature.axes)}) belongs ('{record.name}')",
                    self._remake(feature, path),
                )
            if count := int((~np.isfinite(array)).sum()):
                raise BadDataError(
                    f"{path}: {count} of {array.size} values are not finite ('{record.name}')",
                    self._remake(feature, path),
                )
            arrays[feature] = array
        self._require_same_widths(record, arrays)
        return arrays

    def _remake(self, feature: Feature, path: Path) -> str:
        """What to do about a damaged file of a feature: one that is gone is made again."""
        return f"make it again: {command_line('rm', path)} && {embed_again(self._store.folder, [feature.stage])}"

    def _require_same_widths(self, record: Record, arrays: dict[Feature, np.ndarray]) -> None:
        """Against the first sample that this call has met."""
        found = widths_of(arrays)
        self._widths = self._widths or found
        if found != self._widths:
            raise BadDataError(
                f"{self._store.folder}: features of '{record.name}' have widths {found}; others {self._widths}",
                f"features of two encoders in one folder; make those of all images again with one:"
                f" {embed_again(self._store.folder, stages_of_other_widths(found, self._widths), rebuild=True)}",
            )


def _require_complete(store: FeatureStore, used: list[Record]) -> None:
    journal = store.read_journal()
    for stage in STAGES:
        if missing := store.missing(stage, used, journal):
            raise BadDataError(
                f"{store.folder}: {len(missing)} of {len(used)} used images have no current {stage} features, the first"
                f" is '{missing[0].name}'",
                f"make them with: {embed_again(store.folder, [stage])}",
            )


def configured_holdout(derived: Path) -> float:
    """`data.holdout` of the configuration that a derived folder was embedded with."""
    return configured_data(derived).holdout


def configured_data(derived: Path) -> Data:
    path = derived / CONFIGURATION_NAME
    return image_config(load_config(str(path)), str(path), "images were embedded with it").data


def write_left_out(path: Path, records: list[Record], talk: Talk) -> None:
    path.unlink(missing_ok=True)
    if records:
        write_records(path, records)
        talk.warn(f"{len(records)} images are left out, as {records[0].id}: {records[0].detail}; all of them: {path}")


def _bytes_needed(store: FeatureStore, records: list[Record]) -> int:
    features = store.card().features
    return sum(
        store.path(feature, record.id).stat().st_size + 1024
        for record in records
        for feature in features_of_record(features, record)
    ) + 2048 * len(records)
