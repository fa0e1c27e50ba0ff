"""Gives a set of shards that has no index one: `dit shard --index FOLDER`.

An index of ours that was lost is made again from the derived folder of the set, equal to the old one.

Sets made by other programs with the same member names (512-row `t5h` with a `t5m` mask, fp32 patches) say nothing about
the encoders that made them. Whoever asks for the index, with `--preset P`, claims that they were those of the preset.
The claim is compared with the data, sample by sample, as far as shapes can tell: widths, patches of the encoder's grid,
latent of the codec's stride and channels. It is kept in the identity card as `"claimed": true`, so such a set never
passes for one whose making was seen.

The tars are read, never changed; index.json and the lists of members are written beside them. A tar called holdout-* is
held out, as `dit shard` names them. Of a set without such tars a share of its shards can be held out; which images its
program held out, or which are alike, is not known.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from dittool.config.architectures import ImageConfig
from dittool.console import SILENT, Talk
from dittool.data.features.passes import encoder_cards
from dittool.data.features.store import FeatureStore
from dittool.data.identity import IdentityCard
from dittool.data.patch_storage import FP16, FP32, INT8, POOLED, STORED_DTYPE, stored_grid
from dittool.data.records import IMAGE_PATCHES, TEXT
from dittool.data.shards.columns import SampleRef
from dittool.data.shards.index import (
    HOLDOUT,
    INDEX_NAME,
    TRAIN,
    ShardIndex,
    index_shard,
    split_by_name,
    write_index,
)
from dittool.data.shards.read import Sample, ShardSet
from dittool.data.shards.statistics import SetStatistics, ShardStatistics
from dittool.data.shards.write import configured_holdout
from dittool.errors import BadDataError, UsageError
from dittool.geometry import parse_size, patch_grid
from dittool.seeding import unit_interval
from dittool.shell import quoted
from dittool.storage import folder_lock, output_folder, sweep_temporaries


def index_older_set(folder: Path, config: ImageConfig, holdout: float | None = None, talk: Talk = SILENT) -> ShardIndex:
    """Writes the index of a set that has none and returns it.

    Args:
        config: its `[encoders]` are claimed to have made the features.
        holdout: share of the samples to keep out of training, in entire shards. None: what lies in tars called
        holdout-*.

    Raises `UsageError` when there is an index already or no shard can be held out, `BadDataError` when a sample is
    damaged or contradicts the claim, `WeightsMissingError` when an encoder's weights, whose hash and geometry belong to
    the claim, are not on this disk.
    """
    shards = _without_index(folder)
    card = _claimed_card(shards, config)
    held = _held_out(shards.samples, holdout)
    share = sum(ref.shard in held for ref in shards.samples) / len(shards.samples)
    classes = tuple(sorted({shards.read_record(ref).cls for ref in shards.samples} - {""}))
    return _indexed(shards, card, held, talk, _Making("", classes or None, share, None))


def index_again(folder: Path, derived: Path, holdout: float | None, seed: int, talk: Talk = SILENT) -> ShardIndex:
    """Writes the lost index of a set that `dit shard` made from `derived`, equal to the old one, and returns it.

    Args:
        holdout, seed: what `dit shard` was called with. None: `data.holdout` of the configuration that embedded.

    Raises `UsageError` when there is an index already, `BadDataError` when the set was not made from that folder.
    """
    shards, store = _without_index(folder), FeatureStore(derived)
    images = {record.id: record.image_sha256 for record in store.read_records()}
    classes = set()
    for ref in shards.samples:
        record = shards.read_record(ref)
        classes.add(record.cls)
        if record.image_sha256 != images.get(ref.id):
            raise BadDataError(
                f"{folder / ref.shard}: sample '{ref.id}' was not made from an image of {derived}",
                f"name the folder that these shards were made of: dit shard DERIVED --index {quoted(folder)}; or say"
                " which encoders made them: --preset P",
            )
    held = {ref.shard for ref in shards.samples if split_by_name(ref.shard) == HOLDOUT}
    share = configured_holdout(derived) if holdout is None else holdout
    making = _Making(store.source, tuple(sorted(classes - {""})), share, seed)
    return _indexed(shards, store.card(), held, talk, making)


@dataclass(frozen=True)
class _Making:
    """What an index says of how its set was made."""

    source: str
    classes: tuple[str, ...] | None
    holdout: float
    seed: int | None


def _without_index(folder: Path) -> ShardSet:
    if (folder / INDEX_NAME).exists():
        raise UsageError(
            f"{folder}: there is an {INDEX_NAME} already",
            f"verify the set with: dit shard --verify --out {quoted(folder)}",
        )
    shards = ShardSet.open(folder)
    if not shards.samples:
        raise BadDataError(f"{folder}: no sample in it", "name the folder that holds the tars")
    return shards


def _held_out(samples: Sequence[SampleRef], share: float | None) -> set[str]:
    """Paths of the tars that are held out: by their names, or as many as a share of the samples asks for, chosen by the
    hash of their names. Raises `UsageError` when that leaves no shard on one of the sides.
    """
    counts = Counter(ref.shard for ref in samples)
    named = {path for path in counts if split_by_name(path) == HOLDOUT}
    if share is None:
        return named
    if named:
        raise UsageError(
            f"--holdout {share:g}: the set has its hold-out already, {len(named)} tars called holdout-*",
            "leave --holdout out",
        )
    held: set[str] = set()
    for path in sorted(counts, key=lambda path: unit_interval("holdout", path)):
        if sum(counts[held_path] for held_path in held) >= share * len(samples):
            break
        held.add(path)
    if share > 0 and len(held) in (0, len(counts)):
        raise UsageError(
            f"--holdout {share:g}: a hold-out takes entire shards, and this set has {len(counts)}",
            "write the set in more shards, or embed its images with dit embed and dit shard, which choose by image",
        )
    return held


def _indexed(shards: ShardSet, card: IdentityCard, held: set[str], talk: Talk, making: _Making) -> ShardIndex:
    """Reads everything, writes index.json and the lists of members. Rows stand as `dit shard` writes them."""
    folder, shards = shards.folder, replace(shards, storage=card.patch_storage)
    output_folder(folder)
    with folder_lock(folder):
        sweep_temporaries(folder)
        by_shard: dict[str, list[SampleRef]] = {}
        for ref in sorted(shards.samples, key=lambda ref: (ref.bucket, ref.shard in held)):
            by_shard.setdefault(ref.shard, []).append(ref)
        rows, statistics = [], []
        with talk.progress("index", len(shards.samples), "sample") as task:
            for path, refs in by_shard.items():
                bucket, of_shard = _read_shard(shards, refs, card)
                statistics.append(of_shard)
                split = HOLDOUT if path in held else TRAIN
                rows.append(index_shard(folder, folder / PurePosixPath(path), bucket, split))
                task.advance(len(refs))
        index = ShardIndex(
            card,
            card.sha256,
            making.source,
            statistics[0].widths,
            SetStatistics.joined(statistics),
            tuple(rows),
            making.classes,
            making.holdout,
            making.seed,
        )
        write_index(folder, index)
    return index


def _claimed_card(shards: ShardSet, config: ImageConfig) -> IdentityCard:
    found = {bucket for ref in shards.samples if (bucket := _bucket_of(ref))}
    configured = {bucket.name for bucket in config.data.bucket_sizes()}
    buckets = [bucket.name for bucket in config.data.bucket_sizes()] if found <= configured else sorted(found)
    card = IdentityCard(tuple(buckets), FP16, encoder_cards(config), claimed=True)
    return replace(card, patch_storage=_storage_of(shards.read(shards.samples[0]), card))


def _storage_of(sample: Sample, card: IdentityCard) -> str:
    """How the patches of a set are stored, as its first sample shows it: by their type and their number."""
    stored, stride = sample.arrays()[IMAGE_PATCHES], card.vae.stride
    if stored.dtype != STORED_DTYPE[FP16] or sample.latent.ndim != 3:
        return FP32 if stored.dtype == STORED_DTYPE[FP32] else INT8 if stored.dtype == STORED_DTYPE[INT8] else FP16
    grid = patch_grid(sample.latent.shape[2] * stride, sample.latent.shape[1] * stride, card.image.patch_size)
    return POOLED if len(stored) == math.prod(stored_grid(grid, POOLED)) < math.prod(grid) else FP16


def _read_shard(shards: ShardSet, refs: list[SampleRef], card: IdentityCard) -> tuple[str, ShardStatistics]:
    """The bucket that all samples of a shard have, and their statistics. Raises `BadDataError` for a sample that
    contradicts the card.
    """
    statistics, bucket = ShardStatistics(), _bucket_of(refs[0])
    stride = card.vae.stride
    for ref in refs:
        sample = shards.read(ref)
        if sample.latent.ndim == 3:
            bucket = bucket or f"{sample.latent.shape[2] * stride}x{sample.latent.shape[1] * stride}"
        _require_plausible(shards, sample, bucket, card)
        statistics.add(shards.read_arrays(ref))
    return bucket, statistics


def _bucket_of(ref: SampleRef) -> str:
    """The size in the name of a shard's folder; "" where it has none."""
    try:
        parse_size(ref.bucket)
    except ValueError:
        return ""
    return ref.bucket


def _require_plausible(shards: ShardSet, sample: Sample, bucket: str, card: IdentityCard) -> None:
    where = f"{shards.folder / sample.ref.shard}: {sample.ref.id}"
    arrays = sample.arrays()
    for feature, array in arrays.items():
        if array.ndim != len(feature.axes) or 0 in array.shape:
            raise BadDataError(
                f"{where}: {feature.member} has shape {array.shape} where ({', '.join(feature.axes)}) belongs",
                "leave this shard out",
            )
        if count := int((~np.isfinite(array)).sum()):
            raise BadDataError(
                f"{where}: {feature.member} has {count} of {array.size} values that are not finite",
                "leave this shard out",
            )
    width, height = parse_size(bucket)
    image, stride = card.image, card.vae.stride
    has_patches = IMAGE_PATCHES in card.features
    patches = math.prod(stored_grid(patch_grid(width, height, image.patch_size), card.patch_storage))
    claims = {
        "width of the text": (arrays[TEXT].shape[1], card.text.width),
        "width of CLS": (len(sample.cls), image.width),
        **({"shape of the patches": (arrays[IMAGE_PATCHES].shape, (patches, image.width))} if has_patches else {}),
        "shape of the latent": (sample.latent.shape, (card.vae.channels, height // stride, width // stride)),
    }
    if wrong := [
        f"{what} is {found}, theirs would be {claimed}" for what, (found, claimed) in claims.items() if found != claimed
    ]:
        raise BadDataError(
            f"{where} ({bucket}) was not made by these encoders: {'; '.join(wrong)}",
            "name those that did: --preset P or -s",
        )
