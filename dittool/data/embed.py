"""Drives the encoders over the images: every bucketed image and caption becomes features, once.

The way of an image: read → verify its hash → upright → bucket (resize to cover, centre crop) → encoder → float16 → disk → journal.
Decoding and writing run in threads beside the encoder. Interrupted anywhere, the next call makes what is missing.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dittool.config.load import config_to_toml
from dittool.config.schema import Config
from dittool.console import SILENT, Talk
from dittool.data.buckets import buckets_from_config
from dittool.data.features import FeatureStore
from dittool.data.images import ImageRefused
from dittool.data.records import IMAGE_CLS, IMAGE_PATCHES, LATENT, REFUSED, STAGES, TEXT, Record
from dittool.data.scan import load_pixels, scan
from dittool.encoders.image import load_image_encoder
from dittool.encoders.text import load_text_encoder
from dittool.encoders.vae import load_codec
from dittool.errors import BadDataError
from dittool.storage import folder_lock, output_folder, sweep_temporaries, write_atomic, write_json

_BATCH = 16
_DECODERS = 2
_REFUSED_WHILE_DECODING = "decode:"  # marks reasons that only the full decode can find


@dataclass(frozen=True)
class EmbedSummary:
    """What an embed run found and did."""

    records: list[Record]
    made: dict[str, int]  # stage → features made now
    kept: dict[str, int]  # stage → features that were already there
    cut_captions: int  # captions longer than encoders.max_text_tokens, among those encoded now
    folder: Path

    @property
    def used(self) -> list[Record]:
        return [record for record in self.records if record.used]


def embed(source: Path, out: Path, config: Config, stages: Sequence[str] = STAGES, talk: Talk = SILENT) -> EmbedSummary:
    """Makes the features of the given stages for every image of `source` that has none, in the derived folder `out`.

    Raises `BadDataError` (nothing usable, or another identity in the folder), `WeightsMissingError`, `StorageError`.
    """
    buckets = buckets_from_config(config.data)
    records = scan(source, buckets, talk)
    output_folder(out)
    with folder_lock(out):
        sweep_temporaries(out)
        store = FeatureStore(out)
        records = _remember_refusals(store, records)
        _require_usable(source, records)
        store.open_card([bucket.name for bucket in buckets], config.data.patch_storage)
        write_atomic(out / "resolved.toml", config_to_toml(config).encode())
        write_json(out / "source.json", {"folder": str(source.resolve())})
        store.write_records(records)
        made, kept, cut = {}, {}, 0
        for stage in [stage for stage in STAGES if stage in stages]:
            used = [record for record in records if record.used]
            todo = store.missing(stage, used, store.compact_journal(used))
            run = _PASSES[stage](store, config, source, todo, talk)
            refused = {record.id: record for record in run.refused}
            records = [refused.get(record.id, record) for record in records]
            store.write_records(records)
            made[stage], kept[stage], cut = len(todo) - len(refused), len(used) - len(todo), cut + run.cut_captions
        _require_usable(source, records)
    return EmbedSummary(records, made, kept, cut, out)


@dataclass(frozen=True)
class _Pass:
    refused: list[Record]
    cut_captions: int = 0


def _image_pass(store: FeatureStore, config: Config, source: Path, todo: list[Record], talk: Talk) -> _Pass:
    encoder = load_image_encoder(config.encoders.image, config.encoders.dtype)
    store.register_encoder("dinov3", encoder.card)

    def encode(pixels: np.ndarray) -> Iterator[dict[Any, np.ndarray]]:
        features = encoder.encode(pixels)
        for cls, patches in zip(features.cls.numpy(), features.patches.numpy(), strict=True):
            yield {IMAGE_CLS: cls, IMAGE_PATCHES: patches}

    return _encode_images("dinov3", encode, store, config, source, todo, talk)


def _vae_pass(store: FeatureStore, config: Config, source: Path, todo: list[Record], talk: Talk) -> _Pass:
    codec = load_codec(config.encoders.vae)
    store.register_encoder("vae", codec.card)

    def encode(pixels: np.ndarray) -> Iterator[dict[Any, np.ndarray]]:
        for latent in codec.encode(pixels).numpy():
            yield {LATENT: latent}

    return _encode_images("vae", encode, store, config, source, todo, talk)


def _text_pass(store: FeatureStore, config: Config, source: Path, todo: list[Record], talk: Talk) -> _Pass:
    encoder = load_text_encoder(config.encoders.text, config.encoders.dtype, config.encoders.max_text_tokens)
    store.register_encoder("t5", encoder.card)
    cut = 0
    with talk.progress("t5", len(todo), "caption") as task, ThreadPoolExecutor(_DECODERS) as writers:
        for batch in _chunks(todo, _BATCH):
            features = encoder.encode([record.caption for record in batch])
            list(writers.map(lambda pair: store.write(TEXT, pair[0].id, pair[1].hidden.numpy()), zip(batch, features, strict=True)))
            store.append_journal("t5", batch)
            cut += sum(feature.cut for feature in features)
            task.advance(len(batch))
    return _Pass([], cut)


_PASSES = {"dinov3": _image_pass, "vae": _vae_pass, "t5": _text_pass}


def _encode_images(stage: str, encode: Any, store: FeatureStore, config: Config, source: Path, todo: list[Record], talk: Talk) -> _Pass:
    refused: list[Record] = []
    with talk.progress(stage, len(todo), "image") as task, ThreadPoolExecutor(_DECODERS) as decoders, ThreadPoolExecutor(_DECODERS) as writers:
        ahead = None  # the batch being decoded while this one is encoded
        for batch in [*_bucket_batches(todo), None]:
            decoding = None if batch is None else [(record, decoders.submit(load_pixels, record, source)) for record in batch]
            if ahead is not None:
                kept, images, bad = _decoded(ahead)
                refused += bad
                if kept:
                    made = list(zip(kept, encode(np.stack(images)), strict=True))
                    jobs = [(feature, record, array) for record, arrays in made for feature, array in arrays.items()]
                    list(writers.map(lambda job: store.write(job[0], job[1].id, job[2], _storage(job[0], config)), jobs))
                    store.append_journal(stage, kept)
                task.advance(len(ahead), refused=len(refused))
            ahead = decoding
    return _Pass(refused)


def _storage(feature: Any, config: Config) -> str:
    return config.data.patch_storage if feature is IMAGE_PATCHES else "fp16"


def _decoded(pending: list[Any]) -> tuple[list[Record], list[np.ndarray], list[Record]]:
    kept, images, refused = [], [], []
    for record, future in pending:
        try:
            images.append(future.result())
            kept.append(record)
        except ImageRefused as error:
            refused.append(dataclasses.replace(record, status=REFUSED, reason=_REFUSED_WHILE_DECODING + error.reason, detail=error.detail))
    return kept, images, refused


def _remember_refusals(store: FeatureStore, records: list[Record]) -> list[Record]:
    """A file that an earlier run failed to decode stays refused as long as its bytes are the same."""
    if not store.records_path.is_file():
        return records
    failed = {(r.id, r.image_sha256): r for r in store.read_records() if not r.used and r.reason.startswith(_REFUSED_WHILE_DECODING)}
    return [failed.get((record.id, record.image_sha256), record) if record.used else record for record in records]


def _require_usable(source: Path, records: list[Record]) -> None:
    if any(record.used for record in records):
        return
    reasons = defaultdict(int)
    for record in records:
        reasons[record.reason] += 1
    counted = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    raise BadDataError(
        f"{source}: none of {len(records)} images can be used: {counted}", "each image needs a caption; see records.jsonl for each one's reason"
    )


def _bucket_batches(records: list[Record]) -> list[list[Record]]:
    by_bucket = defaultdict(list)
    for record in records:
        by_bucket[record.bucket].append(record)
    return [batch for name in sorted(by_bucket) for batch in _chunks(by_bucket[name], _BATCH)]


def _chunks(items: list[Record], size: int) -> list[list[Record]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
