"""Drives the encoders over the images: every bucketed image and caption becomes features, once.

The way of an image: read → verify its hash → upright → bucket (resize to cover, centre crop) → encoder → storage → disk
→ journal. Interrupted anywhere, the next call makes what is missing. What each pass does stands in `passes.py`, how the
work overlaps in `pipeline.py`, how several processes share it in `parts.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittool.config.architectures import AnyConfig, ImageConfig, image_config, require_whole_buckets, with_patch_storage
from dittool.config.features import Encoders
from dittool.console import SILENT, Talk
from dittool.data.embed_again import embed_again
from dittool.data.features.beginning import remember, require_usable, scanned
from dittool.data.features.copies import make_thumbnails, with_near_copies
from dittool.data.features.estimate import disk_rows
from dittool.data.features.parts import Part, writer_lock
from dittool.data.features.passes import EmbedPass, load_pass, plan_batches, run_pass
from dittool.data.features.pipeline import leave_a_process_that_starts
from dittool.data.features.refusals import found_at_work
from dittool.data.features.store import FeatureStore
from dittool.data.records import STAGES, STAGES_OF_IMAGES, UNKNOWN_WORDS, Record
from dittool.data.source.scan import summary
from dittool.data.source.sources import require_source
from dittool.encoders.known import KNOW_EVERY_SCRIPT
from dittool.errors import UsageError
from dittool.shell import command_line, quoted
from dittool.storage import nothing_left_of_refusal, output_folder, require_free


@dataclass(frozen=True)
class EmbedSummary:
    """What an embed run found and did."""

    records: list[Record]
    made: dict[str, int]  # stage → features made now
    kept: dict[str, int]  # stage → features that were already there
    cut_captions: int  # captions longer than encoders.max_text_tokens, among those encoded now
    folder: Path
    left: dict[str, int]  # stage → features that are for other parts to make, when this one began
    lacking: list[str]  # stages that this run did not make and that are not complete

    @property
    def used(self) -> list[Record]:
        return [record for record in self.records if record.used]

    def next_command(self, part: Part) -> str:
        """What to run after this."""
        if not part.is_everything:
            return f"{command_line('dit', 'embed', '--verify', '--out', self.folder)}, when all parts are done"
        shard_it = "dit shard" if self.folder == Path("data/derived") else f"dit shard {quoted(self.folder)}"
        return f"{embed_again(self.folder, self.lacking)}, then {shard_it}" if self.lacking else shard_it


def embed(
    source: Path,
    out: Path,
    config: AnyConfig,
    stages: Sequence[str] = STAGES,
    talk: Talk = SILENT,
    part: Part | None = None,
    rebuild: bool = False,
) -> EmbedSummary:
    """Makes the features of the given stages for every image of `source` that has none, in the derived folder `out`.

    Args:
        part: this process's share; several may work on one folder at a time, and any later run joins what they made.
        rebuild: drop and remake the features of `stages`, or only those that another encoder, bucket list or storage
        makes stale.

    Raises `UsageError` (a configuration without images, no such source), `BadDataError` (nothing usable, or another
    identity in the folder), `WeightsMissingError`, `StorageError`.
    """
    config = image_config(config, config.description, "embed() makes features of images")
    leave_a_process_that_starts()
    part = part or Part()
    if rebuild and not part.is_everything:
        raise UsageError(
            "--rebuild drops features that other parts may be writing",
            "rebuild in one process: without --part and torchrun",
        )
    stages = [stage for stage in STAGES if stage in stages]
    require_source(source)
    require_whole_buckets(config)  # before a folder is made; the codec that is loaded is asked again
    with nothing_left_of_refusal(out), held_folder(out, part):
        store = FeatureStore(out, part, config.data.near_copies == "together")
        config = with_patch_storage(config, store.patch_storage)
        records, seen = scanned(source, store, config, out, part, talk)
        card_changed = _open_card(store, config, stages if rebuild else ())
        remember(source, store, config, talk)
        records = store.merge_records(records, forget=stages if rebuild else ())
        seen.write()
        store.prune_journal(record for record in records if record.used)
        ready = _first_pass(store, config, stages, records, part, rebuild, talk)
        made, kept, left, cut = {}, {}, {}, 0
        unseen = store.without_thumbnail(records)
        for stage in stages:
            ready = ready if ready is not None else load_pass(stage, config, talk)
            encoder_changed = store.register_encoder(stage, ready.card, rebuild)
            # what a changed card makes stale is forgotten already
            if rebuild and (encoder_changed or not card_changed):
                store.drop(stage)
            missing, batches = _work(store, stage, records, part)
            result = run_pass(ready, batches, store, source, talk, unseen)
            ready = None  # two encoders at a time may not fit into memory
            found = {record.id: record for record in (*result.refused, *result.flagged)}
            records = store.merge_records([found.get(record.id, record) for record in records])
            mine = sum(record.used for batch in batches for record in batch)
            made[stage], left[stage], cut = result.made, len(missing) - mine, cut + result.cut_captions
            kept[stage] = sum(record.used for record in records) + len(result.refused) - len(missing)
        if config.data.near_copies == "together" and set(stages) & set(STAGES_OF_IMAGES):
            journal = store.read_journal()  # what no pass decoded, because its features were there
            used = [record for record in records if record.used]
            known = journal.knows(STAGES_OF_IMAGES[0], used)
            not_decoded = [record for record, is_known in zip(used, known, strict=True) if is_known]
            make_thumbnails(store, not_decoded, part, source, talk)
            records = with_near_copies(store, records, part, talk)
        require_usable(source, records, store)
        used, others = [record for record in records if record.used], [stage for stage in STAGES if stage not in stages]
        lacking = [stage for stage in others if store.missing(stage, used, store.read_journal())]
    return EmbedSummary(records, made, kept, cut, out, left, lacking)


def _open_card(store: FeatureStore, config: ImageConfig, rebuild: Sequence[str]) -> bool:
    """`FeatureStore.open_card` for this configuration."""
    data = config.data
    names = [bucket.name for bucket in data.bucket_sizes()]
    return store.open_card(names, data.patch_storage, rebuild, data.caption_kinds)


def caption_warnings(records: list[Record], cut_captions: int, encoders: Encoders) -> list[str]:
    """What of the captions did not reach the model; `cut_captions` of those encoded now are longer than the limit."""
    counts, warnings = summary(records), []
    if cut_captions:
        warnings.append(
            f"{cut_captions} captions are longer than encoders.max_text_tokens = {encoders.max_text_tokens}"
            " and were cut"
        )
    if counts.further_captions:
        warnings.append(
            f"{counts.further_captions} further captions of images that have several were not taken: docs/sources.md"
        )
    if counts.unknown_words:
        warnings.append(
            f"{counts.unknown_words} words of {counts.flags[UNKNOWN_WORDS]} captions are unknown to the tokenizer"
            f" of {encoders.text}, so that they all mean the same to it; {KNOW_EVERY_SCRIPT}"
        )
    return warnings


@contextmanager
def held_folder(out: Path, part: Part) -> Iterator[None]:
    """The folder, made and held before anything that takes long: one that cannot be written to is refused at once."""
    with writer_lock(output_folder(out), part):
        yield


def _first_pass(
    store: FeatureStore,
    config: ImageConfig,
    stages: Sequence[str],
    records: list[Record],
    part: Part,
    rebuild: bool,
    talk: Talk,
) -> EmbedPass[Any] | None:
    """The encoder of the first stage, after a look at all of them: weights that are missing, another identity and a
    disk that will not do are errors before hours of work, not after the pass that did not need them.
    """
    ready, needed = None, 0
    for stage in reversed(stages):
        ready = None  # two encoders at a time may not fit into memory
        ready = load_pass(stage, config, talk)
        if not rebuild:
            store.require_encoder(stage, ready.card)
        mine = [record for batch in _work(store, stage, records, part)[1] for record in batch if record.used]
        rows = disk_rows(stage, ready.card, mine, config.data.patch_storage)
        needed += max(0, sum(row.bytes for row in rows) - store.bytes_present(stage, mine))
    require_free(store.folder, needed, f"what is to be made ({', '.join(stages)})")
    return ready


def _work(
    store: FeatureStore, stage: str, records: list[Record], part: Part
) -> tuple[list[Record], list[list[Record]]]:
    """(used records without current features of the stage, the batches in which this part makes its share of them)."""
    missing = store.missing(stage, [record for record in records if record.used], store.read_journal())
    candidates = [record for record in records if record.used or found_at_work(record)]
    return missing, plan_batches(stage, candidates, missing, part)
