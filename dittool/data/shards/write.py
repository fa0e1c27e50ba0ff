"""Writes shards: WebDataset tars, one folder a bucket, with an index that knows every byte (index.py).

    bucket_WxH/shard-000000.tar         samples of the training split; holdout-000000.tar: of the hold-out
    bucket_WxH/shard-000000.members.json  where each member of the tar begins and how long it is
    shards.jsonl                        while the set is unfinished: one line for each shard that is whole

    left_out.jsonl                      records that would join both sides of the hold-out, where there are any

Which images are held out is a function of their bytes, and of near copies together of the bytes of one of them
(features/sides.py): so neither equal images nor copies stand on both sides, and images that are added later move none
across. index.json is written last. From the first shard whose bytes are not those of an earlier set until then it
says that the set is unfinished, and the next call goes on where this one stopped: a shard with a line in shards.jsonl
is kept when its bytes and what it was made from are still those of the line.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dittool.config.architectures import image_config
from dittool.config.load import load_config
from dittool.config.schema import Data
from dittool.console import SILENT, Talk
from dittool.data.embed_again import CONFIGURATION_NAME, embed_again
from dittool.data.features.journal import digest_of
from dittool.data.features.store import FeatureStore
from dittool.data.identity import stages_of_other_widths
from dittool.data.patch_storage import decode_patches
from dittool.data.records import (
    FEATURES,
    IMAGE_PATCHES,
    RECORD_MEMBER,
    STAGES,
    Feature,
    Record,
    record_to_bytes,
    write_records,
)
from dittool.data.shards.earlier import digests_of_finished_set, require_ours, require_same_images
from dittool.data.shards.index import (
    INDEX_NAME,
    INDEX_VERSION,
    STEMS,
    ShardIndex,
    ShardRow,
    index_shard,
    members_path,
    write_index,
)
from dittool.data.shards.split import ShardPlan, held_out, plan_shards, without_joining
from dittool.data.shards.statistics import SetStatistics, ShardStatistics, widths_of
from dittool.encoders.cards import FeatureWidths
from dittool.errors import BadDataError
from dittool.seeding import derive_seed
from dittool.shell import command_line
from dittool.storage import (
    append_durably,
    folder_lock,
    nothing_left_of_refusal,
    output_folder,
    read_json_lines,
    require_free,
    sweep_temporaries,
    write_atomic,
    write_json,
)
from dittool.untrusted.npy import parse_npy, read_npy_bytes

DEFAULT_SHARD_SIZE = 1000
_LEFT_OUT = "left_out.jsonl"
_NOT_LOOKED_FOR = (
    "near copies were not looked for, so a picture that was saved twice may be trained on and held out; dit embed with"
    " the same source and preset looks for them, and keeps the features"
)
_JOURNAL = "shards.jsonl"
_BLOCK = 512  # of a tar


@dataclass(frozen=True)
class ShardSummary:
    """What was written."""

    folder: Path
    shards: list[ShardRow]
    left_out: int  # used records beyond --limit
    joining: list[Record]  # refused here: near copies of images that stand on both sides of the hold-out
    kept: int  # shards that an interrupted call had already written


def shard(
    derived: Path,
    out: Path,
    shard_size: int = DEFAULT_SHARD_SIZE,
    limit: int | None = None,
    holdout: float | None = None,
    talk: Talk = SILENT,
    seed: int = 0,
) -> ShardSummary:
    """Packs the derived features into shards, or finishes what an interrupted call began.

    Args:
        holdout: share of images kept out of training; None takes `data.holdout` of the configuration that embedded
        them.
        seed: of the order in which samples lie in the shards, and so of which ones `limit` takes.

    Raises `BadDataError` when features are missing, stale or not finite, `UsageError` when another program's shards
    stand in `out`, `StorageError` when the disk will not do.
    """
    store = FeatureStore(derived)
    records = [record for record in store.read_records() if record.used]
    _require_complete(store, records)
    data = _configured_data(derived)
    share = data.holdout if holdout is None else holdout
    if data.near_copies == "together" and not store.near_copies_path.exists():
        talk.warn(f"{derived}: {_NOT_LOOKED_FOR}")
    records, joining = without_joining(records, share)
    # readers that go through a tar in order see it shuffled
    records.sort(key=lambda record: derive_seed("shard order", seed, record.id))
    chosen = records[:limit]
    held = held_out(chosen, share, talk)
    with nothing_left_of_refusal(out), folder_lock(output_folder(out)):
        require_ours(out, out / _JOURNAL)
        require_same_images(out, store.source, chosen)
        sweep_temporaries(out)
        writer = _ShardWriter(store, out)
        require_free(
            out, _bytes_needed(store, chosen) - sum(entry.row.bytes for entry in writer.finished.values()), "the shards"
        )
        if not writer.earlier:
            writer.mark_unfinished()
        finished = []
        with talk.progress("shard", len(chosen), "sample") as task:
            for plan in plan_shards(chosen, held, shard_size):
                finished.append(writer.kept(plan) or writer.write(plan))
                task.advance(len(plan.records))
        rows, statistics = [entry.row for entry in finished], [entry.statistics for entry in finished]
        writer.mark_unfinished()
        _remove_unlisted(out, rows)
        write_index(
            out,
            ShardIndex(
                writer.card,
                writer.card.sha256,
                store.source,
                statistics[0].widths,
                SetStatistics.joined(statistics),
                tuple(rows),
                tuple(sorted({record.cls for record in chosen if record.cls})),
                share,
                seed,
            ),
        )
        _write_left_out(out / _LEFT_OUT, joining, talk)
        (out / _JOURNAL).unlink(missing_ok=True)
    return ShardSummary(out, rows, len(records) - len(chosen), joining, writer.count_kept)


@dataclass(frozen=True)
class _Finished:
    """A line of shards.jsonl: a shard that is whole."""

    made_from: str  # hash of all that decided its bytes
    row: ShardRow
    statistics: ShardStatistics

    @staticmethod
    def from_json(value: dict[str, Any], source: str) -> _Finished:
        """Raises `BadDataError` for a line that this program did not write."""
        try:
            statistics = ShardStatistics.from_json(value["statistics"])
            return _Finished(value["made_from"], ShardRow.from_json(value["row"], source), statistics)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadDataError(
                f"{source}: a line that is no finished shard ({error!r})",
                "remove the file and run dit shard again: the shards are written anew",
            ) from error

    def to_json(self) -> dict[str, object]:
        return {"made_from": self.made_from, "row": asdict(self.row), "statistics": self.statistics.to_json()}


class _ShardWriter:
    """Writes one shard after the other and keeps the journal of those that are whole."""

    def __init__(self, store: FeatureStore, out: Path) -> None:
        self.card = store.card()
        self.count_kept = 0
        self._widths: FeatureWidths | None = None
        self._store, self._out, self._journal = store, out, out / _JOURNAL
        self._made = store.read_journal_entries()
        lines = read_json_lines(self._journal) if self._journal.exists() else []
        # Written anew without a torn last line, behind which nothing could be added.
        write_atomic(self._journal, b"".join(map(_line, lines)))
        entries = [_Finished.from_json(line, str(self._journal)) for line in lines]
        self.finished = {entry.row.path: entry for entry in entries}
        self.earlier = digests_of_finished_set(out)

    def mark_unfinished(self) -> None:
        """Before the first change to the tars that the index lists, which until then are a good set."""
        write_json(self._out / INDEX_NAME, {"version": INDEX_VERSION, "unfinished": True})
        self.earlier = {}

    def kept(self, plan: ShardPlan) -> _Finished | None:
        """A shard that an interrupted call finished; None when it has to be written."""
        entry = self.finished.get(plan.path)
        if entry is None or entry.made_from != self._made_from(plan) or not entry.row.is_intact(self._out):
            return None
        self.count_kept += 1
        self._widths = self._widths or entry.statistics.widths
        return entry

    def write(self, plan: ShardPlan) -> _Finished:
        made_from, statistics, path = self._made_from(plan), ShardStatistics(), self._out / plan.path
        path.parent.mkdir(exist_ok=True)
        digest = hashlib.sha256()

        def write_tar(file: BinaryIO) -> None:
            for block in self._blocks(plan, statistics):
                file.write(block)
                digest.update(block)
            if self.earlier and self.earlier.get(plan.path) != digest.hexdigest():
                self.mark_unfinished()

        write_atomic(path, write_tar)
        row = index_shard(self._out, path, plan.bucket, plan.split, digest.hexdigest())
        entry = _Finished(made_from, row, statistics)
        append_durably(self._journal, _line(entry.to_json()))
        return entry

    def _blocks(self, plan: ShardPlan, statistics: ShardStatistics) -> Iterator[bytes]:
        """The bytes of the tar. Features are copied as they are: they were written by us, and are checked on the
        way.
        """
        for record in plan.records:
            files = {feature: self._file(feature, record) for feature in FEATURES}
            self._check(record, files, statistics)
            yield from tar_member(f"{record.id}.{RECORD_MEMBER}", record_to_bytes(record))
            for feature, data in files.items():
                yield from tar_member(f"{record.id}.{feature.member}", data)
        yield bytes(2 * _BLOCK)

    def _file(self, feature: Feature, record: Record) -> bytes:
        """A feature's file, if it is still the one that was made."""
        path = self._store.path(feature, record.id)
        data = read_npy_bytes(path)
        digest = self._made[record.id, feature.stage].digests.get(feature.name)
        if digest and (found := digest_of(data)) != digest:
            raise BadDataError(
                f"{path}: its digest is {found}, when it was made it was {digest} ('{record.name}')",
                self._remake(feature, path),
            )
        return data

    def _check(self, record: Record, files: dict[Feature, bytes], statistics: ShardStatistics) -> None:
        arrays = {}
        for feature, data in files.items():
            path = self._store.path(feature, record.id)
            array = parse_npy(data, str(path))
            array = decode_patches(array, self.card.patch_storage) if feature is IMAGE_PATCHES else array
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
        statistics.add(arrays)

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

    def _made_from(self, plan: ShardPlan) -> str:
        """Hash of all that decides a shard's bytes. A feature file is taken at its size and time, as `make` does:
        reading it is the work itself.
        """
        digest = hashlib.sha256(self.card.sha256.encode())
        for record in plan.records:
            digest.update(record_to_bytes(record))
            for feature in FEATURES:
                stat = self._store.path(feature, record.id).stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def _require_complete(store: FeatureStore, used: list[Record]) -> None:
    if not used:
        raise BadDataError(f"{store.folder}: no usable record", "embed some images first with: dit embed IMAGES")
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
    return _configured_data(derived).holdout


def _configured_data(derived: Path) -> Data:
    path = derived / CONFIGURATION_NAME
    return image_config(load_config(str(path)), str(path), "images were embedded with it").data


def _write_left_out(path: Path, records: list[Record], talk: Talk) -> None:
    path.unlink(missing_ok=True)
    if records:
        write_records(path, records)
        talk.warn(f"{len(records)} images are left out, as {records[0].id}: {records[0].detail}; all of them: {path}")


def _bytes_needed(store: FeatureStore, records: list[Record]) -> int:
    return sum(
        store.path(feature, record.id).stat().st_size + 1024 for record in records for feature in FEATURES
    ) + 2048 * len(records)


def tar_member(name: str, data: bytes) -> Iterator[bytes]:
    """The blocks of one member: header, content, and zeros to the end of the last block."""
    info = tarfile.TarInfo(name)  # owner, time and mode stay at fixed values: equal features give equal bytes
    info.size = len(data)
    yield info.tobuf(tarfile.USTAR_FORMAT)
    yield data
    yield bytes(-len(data) % _BLOCK)


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _remove_unlisted(out: Path, rows: list[ShardRow]) -> None:
    """Shards of an earlier, larger set would be read as part of this one by anyone who goes by file names."""
    listed = {row.path for row in rows}
    for path in out.glob("bucket_*/*.tar"):
        if path.relative_to(out).as_posix() not in listed and path.stem.split("-")[0] in STEMS.values():
            members_path(path).unlink(missing_ok=True)  # first: without its tar nobody would find it again
            path.unlink()
