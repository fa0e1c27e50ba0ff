"""From images straight into shards: `dit embed SOURCE --into-shards`. No file an image, half the disk of a derived
folder with its shards.

    scan/           records.jsonl, near copies, identity, configuration, as a derived folder has them, but no feature;
                    shards.jsonl or shards-IofN.jsonl: the shards that are whole
    the rest        what `dit shard` makes of a derived folder of the same images: the same samples in the same order

Near copies decide together on a side of the hold-out, so all images are decoded once for their thumbnails before the
first shard is planned. A shard is encoded batch by batch while it is written; all three encoders are in memory. An
image that an encoder refuses leaves its place empty and moves none of the others, so that a set that is finished stays
as it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dittool.config.architectures import AnyConfig, ImageConfig, image_config, require_whole_buckets, with_patch_storage
from dittool.console import SILENT, Talk
from dittool.data.features.beginning import remember, require_usable, scanned
from dittool.data.features.copies import make_thumbnails, with_near_copies
from dittool.data.features.estimate import disk_rows
from dittool.data.features.parts import Part, wait_for_others, writer_lock
from dittool.data.features.passes import EmbedPass, batch_size, captions_to_encode, encode_batch, load_pass
from dittool.data.features.pipeline import (
    Decoded,
    Refusal,
    decoded,
    decoders,
    leave_a_process_that_starts,
    loaded_ahead,
)
from dittool.data.features.refusals import as_scanned, found_at_work, with_unknown_words
from dittool.data.features.sides import with_sides
from dittool.data.features.store import FeatureStore
from dittool.data.identity import IdentityCard, require_same_identity
from dittool.data.patch_storage import decode_patches
from dittool.data.records import IMAGE_PATCHES, STAGES, UNKNOWN_WORDS, Record, features_of_record
from dittool.data.shards.earlier import require_ours, require_same_images
from dittool.data.shards.index import ShardRow
from dittool.data.shards.split import SetPlan, ShardPlan, plan_set
from dittool.data.shards.write import DEFAULT_SHARD_SIZE, LEFT_OUT, write_left_out
from dittool.data.shards.writer import FinishedShard, ShardWriter, StoredSample
from dittool.data.source.sources import require_source
from dittool.shell import command_line
from dittool.storage import free_name_beside, nothing_left_of_refusal, output_folder, require_free, write_atomic
from dittool.untrusted.npy import npy_bytes

SCAN = "scan"


@dataclass(frozen=True)
class IntoShardsSummary:
    """What a run found and did."""

    records: list[Record]
    folder: Path
    shards: list[ShardRow]  # of the whole set, or while other parts write theirs, of this part
    made: int  # samples encoded now
    kept: int  # shards that were there
    cut_captions: int  # among the samples encoded now
    joining: list[Record]  # left out: near copies of images on both sides of the hold-out
    complete: bool = True  # False: other parts have shards to write


def embed_into_shards(
    source: Path,
    out: Path,
    config: AnyConfig,
    talk: Talk = SILENT,
    part: Part | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE,
) -> IntoShardsSummary:
    """Encodes the images and captions of `source` into the shards of `out`, or finishes what an interrupted call began.

    Args:
        part: this process's share of the shards; several may write at a time, the last one makes the index.

    Raises `UsageError` (no such source; shards of another program or of other images in `out`), `BadDataError`
    (nothing usable, a set of another identity in `out`), `WeightsMissingError`, `StorageError`.
    """
    config = image_config(config, config.description, "embed_into_shards() makes features of images")
    leave_a_process_that_starts()
    part = part or Part()
    require_source(source)
    require_whole_buckets(config)
    folder = out / SCAN
    with nothing_left_of_refusal(out), writer_lock(output_folder(out), part), nothing_left_of_refusal(folder):
        require_ours(out, folder)
        folder.mkdir(exist_ok=True)
        store = FeatureStore(folder, part, config.data.near_copies == "together")
        config = with_patch_storage(config, store.patch_storage)
        records, seen = scanned(source, store, config, out, part, talk)
        require_same_images(out, str(source.resolve()), records)
        passes = {stage: load_pass(stage, config, talk) for stage in STAGES}
        card = _card(config, passes)
        _keep_card(store, card, out)
        remember(source, store, config, talk)
        records = store.merge_records(records)
        seen.write()
        records = _looked_at(store, records, out, part, source, talk)
        require_usable(source, records, store)
        if config.data.near_copies == "together":
            records = with_near_copies(store, records, part, talk)
        planned = plan_set(_candidates(store, records), config.data.holdout, shard_size, talk=talk)
        writer = ShardWriter(out, card, part, folder)
        encoded = _EncodedSamples(passes, card, {record.id: record for record in records})
        done = _write(planned, writer, encoded, config, source, talk)
        merged = writer.merge(planned, str(source.resolve()))
        found = {record.id: record for entry in merged or done for record in entry.found}
        if found:
            records = store.merge_records([found.get(record.id, record) for record in records])
        if merged is not None:
            write_left_out(out / LEFT_OUT, planned.joining, talk)
    rows = [entry.row for entry in merged or done if entry.row]
    return IntoShardsSummary(
        records,
        out,
        rows,
        encoded.made,
        writer.count_kept,
        encoded.cut,
        planned.joining,
        complete=merged is not None,
    )


def _card(config: ImageConfig, passes: Mapping[str, EmbedPass[Any]]) -> IdentityCard:
    names = tuple(bucket.name for bucket in config.data.bucket_sizes())
    encoders, captions = tuple(passes[stage].card for stage in STAGES), config.data.caption_kinds
    return IdentityCard(names, config.data.patch_storage, encoders, captions=captions)


def _keep_card(store: FeatureStore, card: IdentityCard, out: Path) -> None:
    """Raises `BadDataError` where the set in `out` is of another identity."""
    if store.has_card:
        away = command_line("mv", out, free_name_beside(out))
        hint = f"embed into another folder with --out, or move this set away: {away}"
        require_same_identity(card.to_json(), store.card().to_json(), str(out), hint)
    else:
        store.write_card(card)


def _candidates(store: FeatureStore, records: list[Record]) -> list[Record]:
    """What a set is planned of: the scan's used records, also those that the work refused, as if it had not."""
    scanned_so = [as_scanned(record) for record in records if record.used or found_at_work(record)]
    return with_sides(scanned_so, store.sides().of)


def _looked_at(
    store: FeatureStore, records: list[Record], out: Path, part: Part, source: Path, talk: Talk
) -> list[Record]:
    """The records, with all images decoded for their thumbnails: this part's share of them, and when other parts that
    are at work have made theirs, what nobody has made.
    """
    for path in store.folder.glob("looked-*of*" if part.is_everything else f"looked-{part.name}"):
        path.unlink()
    for share in (part, Part()):
        began = time.monotonic()
        refused = make_thumbnails(store, [record for record in records if record.used], share, source, talk)
        found = {record.id: record for record in refused}
        records = store.merge_records([found.get(record.id, record) for record in records])
        if part.is_everything:
            break
        write_atomic(store.folder / f"looked-{part.name}", b"")
        took = time.monotonic() - began
        wait_for_others(out, part, lambda other: (store.folder / f"looked-{other.name}").exists(), took, talk.note)
        records = store.merge_records(records)
    return records


def _write(
    planned: SetPlan, writer: ShardWriter, encoded: _EncodedSamples, config: ImageConfig, source: Path, talk: Talk
) -> list[FinishedShard]:
    """This part's shards: those that are there, and the others, encoded."""
    mine = [plan for number, plan in enumerate(planned.shards) if writer.part.takes(number)]
    there = {plan.path: entry for plan in mine if (entry := writer.kept(plan, writer.planned(plan)))}
    lacking = [plan for plan in mine if plan.path not in there]
    samples = [record for plan in lacking for record in plan.records]
    rows = [
        row
        for one in encoded.passes.values()
        for row in disk_rows(one.stage, one.card, samples, config.data.patch_storage)
    ]
    require_free(writer.out, sum(row.bytes for row in rows), "the shards")
    if not writer.earlier:
        writer.mark_unfinished()
    if not lacking:
        return list(there.values())
    with talk.progress("encode", len(samples), "sample") as task, decoders(samples) as pool:
        batches = [batch for plan in lacking for batch in encoded.batches(plan)]
        loaded = loaded_ahead(batches, decoded, source, pool)
        for plan in lacking:
            found: list[Record] = []
            stored = encoded.of(plan, loaded, found)
            there[plan.path] = writer.write(plan, writer.planned(plan), stored, found)
            task.advance(len(plan.records))
    return [there[plan.path] for plan in mine]


@dataclass
class _EncodedSamples:
    """Samples that three encoders make, batch by batch."""

    passes: Mapping[str, EmbedPass[Any]]  # by stage
    card: IdentityCard
    known: Mapping[str, Record]  # by id, with what was found at work before
    made: int = field(default=0, init=False)
    cut: int = field(default=0, init=False)

    def batches(self, plan: ShardPlan) -> list[list[Record]]:
        """What is encoded together: records of one bucket that nothing speaks against."""
        records = [record for record in plan.records if self.known[record.id].used]
        size = batch_size(plan.bucket)
        return [records[start : start + size] for start in range(0, len(records), size)]

    def of(
        self, plan: ShardPlan, loaded: Iterator[tuple[Sequence[Record], list[Decoded | Refusal]]], found: list[Record]
    ) -> Iterator[StoredSample]:
        """The samples of a shard in order. `loaded`: its batches come next. What encoding finds out is added to
        `found`.
        """
        found += [known for record in plan.records if not (known := self.known[record.id]).used]
        for _ in self.batches(plan):
            batch, items = next(loaded)
            made, refused = self._encoded(batch, items)
            found += refused
            for record, arrays in made:
                if any(flag.startswith(f"{UNKNOWN_WORDS}:") for flag in record.flags):
                    found.append(record)
                files = {feature: npy_bytes(array) for feature, array in arrays.items()}
                given = {
                    feature: decode_patches(array, self.card.patch_storage) if feature is IMAGE_PATCHES else array
                    for feature, array in arrays.items()
                }
                self.made += 1
                yield StoredSample(record, files, given)

    def _encoded(
        self, batch: Sequence[Record], items: list[Decoded | Refusal]
    ) -> tuple[list[tuple[Record, dict[Any, np.ndarray]]], list[Record]]:
        """(records that all encoders took, with their arrays in the order of the members; the others, refused)."""
        arrays: dict[str, dict[Any, np.ndarray]] = {record.id: {} for record in batch}
        refused: dict[str, Record] = {}
        flagged: dict[str, Record] = {}
        for stage in STAGES:
            inputs = [captions_to_encode(record) for record in batch] if stage == "t5" else items
            pairs = [(r, item) for r, item in zip(batch, inputs, strict=True) if r.id not in refused]
            good, bad = encode_batch(self.passes[stage], pairs, anything_made=self.made > 0)
            refused |= {record.id: record for record in bad}
            for record, encoded in good:
                arrays[record.id] |= encoded.arrays
                self.cut += encoded.cut
                if encoded.unknown:
                    flagged[record.id] = with_unknown_words(record, encoded.unknown)
        made = [
            (flagged.get(record.id, record), {feature: arrays[record.id][feature] for feature in features})
            for record in batch
            if record.id not in refused and (features := features_of_record(self.card.features, record))
        ]
        return made, list(refused.values())
