"""Reads a derived folder back: is every feature there, whole, of the right shape, finite, and made from what the
records say?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dittool.console import SILENT, Talk
from dittool.data.features.journal import Journal, Made, digest_of, fingerprint, joined_digest, source_of
from dittool.data.features.pipeline import decoder_count
from dittool.data.features.store import FeatureStore
from dittool.data.identity import CARD_OF_STAGE, IdentityCard
from dittool.data.patch_storage import FP16, STORED_DTYPE, decode_patches, stored_shape
from dittool.data.records import FEATURES, IMAGE_CLS, IMAGE_PATCHES, LATENT, STAGES, Feature, Record, features_of_record
from dittool.errors import BadDataError
from dittool.geometry import Bucket, patch_grid
from dittool.untrusted.npy import parse_npy

_AT_ONCE = 256  # records that threads read ahead of the count


@dataclass(frozen=True)
class FeatureFault:
    """One thing that verification found wrong."""

    where: str
    what: str
    stage: str  # the pass that makes it again


@dataclass(frozen=True)
class Verification:
    features: int  # files that were read
    bytes: int
    faults: list[FeatureFault]
    strays: int  # files of no used record: harmless, and in the way of nothing


def verify(folder: Path, stages: Sequence[str] = STAGES, talk: Talk = SILENT) -> Verification:
    """Reads every feature of the stages back and compares it with the records, the identity card and the journal.
    Changes nothing.

    Raises `BadDataError` when the folder has no records, card or readable journal, so that there is nothing to compare
    with.
    """
    store = FeatureStore(folder)
    used = [record for record in store.read_records() if record.used]
    card, journal = store.card(), store.read_journal()
    faults = [
        FeatureFault(f"{stage} features", "the identity card names no encoder for them: this pass was never run", stage)
        for stage in stages
        if card.find(CARD_OF_STAGE[stage]) is None
    ]
    stages = [stage for stage in STAGES if stage in stages and card.find(CARD_OF_STAGE[stage]) is not None]
    features, size = 0, 0
    with talk.progress("verify", len(used), "record") as task, ThreadPoolExecutor(decoder_count()) as readers:
        for start in range(0, len(used), _AT_ONCE):
            chunk = used[start : start + _AT_ONCE]
            for found in readers.map(lambda record: list(_check_record(store, card, journal, stages, record)), chunk):
                for fault, read in found:
                    faults += [fault] if fault else []
                    features, size = features + (read > 0), size + read
                task.advance(1, faults=len(faults))
    return Verification(features, size, faults, _strays(store, used, stages))


def _check_record(
    store: FeatureStore, card: IdentityCard, journal: Journal, stages: Sequence[str], record: Record
) -> Iterator[tuple[FeatureFault | None, int]]:
    """(fault or none, bytes read) for each feature of the record."""
    for feature in card.features:
        if feature.stage not in stages:
            continue
        made, contents = journal.made(record.id, feature.stage), {}
        for each in features_of_record([feature], record):
            path = store.path(each, record.id)
            try:
                contents[path] = path.read_bytes()
            except OSError as error:
                yield FeatureFault(str(path), f"cannot be read: {error.strerror}", feature.stage), 0
        for path, content in contents.items():
            beside = [digest_of(other) for other in contents.values()]
            what = _wrong_feature(content, joined_digest(beside), made, card, feature, record)
            yield (FeatureFault(str(path), what, feature.stage) if what else None), len(content)


def _wrong_feature(
    content: bytes, found: str, made: Made | None, card: IdentityCard, feature: Feature, record: Record
) -> str:
    """What is wrong with a feature's file; "" when nothing is. `found`: the digest of all files of the feature."""
    if made is None:
        return "the journal does not know it"
    if made.source != (source := fingerprint(source_of(feature.stage, record))):
        return f"made from {made.source[:12]}…, the record has {source[:12]}…"
    digest = made.digests.get(feature.name)
    if digest and digest != found:
        return f"its digest is {found}, when it was made it was {digest}"
    try:
        stored = parse_npy(content, "the file")
    except BadDataError as error:
        return error.message
    storage = card.patch_storage if feature is IMAGE_PATCHES else FP16
    if stored.dtype != STORED_DTYPE[storage]:
        return f"holds {stored.dtype}, not {STORED_DTYPE[storage]}"
    if wrong := _wrong_shape(stored.shape, card, feature, record):
        return wrong
    values = decode_patches(stored, storage) if feature is IMAGE_PATCHES else stored
    count = int((~np.isfinite(values)).sum())
    return f"{count} of {values.size} values are not finite" if count else ""


def _wrong_shape(shape: tuple[int, ...], card: IdentityCard, feature: Feature, record: Record) -> str:
    bucket = Bucket.from_name(record.bucket)
    if feature.stage == "t5":
        longest, width = card.text.max_tokens, card.text.width
        fits = len(shape) == 2 and 1 <= shape[0] <= longest and shape[1] == width
        return "" if fits else f"shape {shape}, expected 1 to {longest} rows of {width}"
    if feature is IMAGE_CLS:
        expected: tuple[int, ...] = (card.image.width,)
    elif feature is LATENT:
        expected = (card.vae.channels, *bucket.latent_grid(card.vae.stride))
    else:
        grid = patch_grid(bucket.width, bucket.height, card.image.patch_size)
        expected = stored_shape(grid, card.image.width, card.patch_storage)
    return "" if shape == expected else f"shape {shape}, expected {expected} for bucket {record.bucket}"


def _strays(store: FeatureStore, used: Sequence[Record], stages: Sequence[str]) -> int:
    known = {record.id: record for record in used}

    def is_stray(feature: Feature, path: Path) -> bool:
        record = known.get(path.name.partition(".")[0])
        return record is None or path not in [store.path(each, record.id) for each in _files(feature, record)]

    features = [feature for feature in FEATURES if feature.stage in stages]
    return sum(is_stray(feature, path) for feature in features for path in (store.folder / feature.name).glob("*.npy"))


def _files(feature: Feature, record: Record) -> list[Feature]:
    return features_of_record([feature], record)
