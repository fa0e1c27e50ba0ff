"""Gives a set of shards that has no index one: `dit shard --index FOLDER --preset P`.

Sets made by other programs with the same member names (512-row `t5h` with a `t5m` mask, fp32 patches) say nothing about
the encoders that made them. Whoever asks for the index claims that they were those of the preset. The claim is compared
with the data, sample by sample, as far as shapes can tell: widths, patches of the encoder's grid, latent of the codec's
stride and channels. It is kept in the identity card as `"claimed": true`, so such a set never passes for one whose
making was seen.

The tars are read, never changed; index.json and the lists of members are written beside them. All samples are training
samples: which images an older program held out, or which are alike, is not known.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from dittool.config.architectures import ImageConfig
from dittool.console import SILENT, Talk
from dittool.data.features.passes import encoder_cards
from dittool.data.identity import IdentityCard
from dittool.data.patch_storage import FP16, FP32
from dittool.data.records import IMAGE_PATCHES, TEXT
from dittool.data.shards.index import INDEX_NAME, TRAIN, SampleRef, ShardIndex, index_shard, write_index
from dittool.data.shards.read import Sample, ShardSet
from dittool.data.shards.statistics import SetStatistics, ShardStatistics
from dittool.errors import BadDataError, UsageError
from dittool.geometry import parse_size, patch_grid
from dittool.storage import folder_lock, output_folder, sweep_temporaries


def index_older_set(folder: Path, config: ImageConfig, talk: Talk = SILENT) -> ShardIndex:
    """Writes the index of a set that has none and returns it.

    Args:
        config: its `[encoders]` are claimed to have made the features.

    Raises `UsageError` when there is an index, `BadDataError` when a sample is damaged or contradicts the claim,
    `WeightsMissingError` when an encoder's weights, whose hash and geometry belong to the claim, are not on this disk.
    """
    if (folder / INDEX_NAME).exists():
        raise UsageError(
            f"{folder}: there is an {INDEX_NAME} already", "verify the set with: dit shard --verify --out FOLDER"
        )
    shards = ShardSet.open(folder)
    if not shards.samples:
        raise BadDataError(f"{folder}: no sample in it", "name the folder that holds the tars")
    card = _claimed_card(shards, config)
    output_folder(folder)
    with folder_lock(folder):
        sweep_temporaries(folder)
        by_shard: dict[str, list[SampleRef]] = {}
        for ref in shards.samples:
            by_shard.setdefault(ref.shard, []).append(ref)
        rows, statistics = [], []
        with talk.progress("index", len(shards.samples), "sample") as task:
            for path, refs in by_shard.items():
                bucket, of_shard = _read_shard(shards, refs, card)
                statistics.append(of_shard)
                rows.append(index_shard(folder, folder / PurePosixPath(path), bucket, TRAIN))
                task.advance(len(refs))
        index = ShardIndex(card, card.sha256, "", statistics[0].widths, SetStatistics.joined(statistics), tuple(rows))
        write_index(folder, index)
    return index


def _claimed_card(shards: ShardSet, config: ImageConfig) -> IdentityCard:
    first = shards.read(shards.samples[0])
    storage = FP32 if first.arrays()[IMAGE_PATCHES].dtype == np.float32 else FP16
    found = {bucket for ref in shards.samples if (bucket := _bucket_of(ref))}
    configured = {bucket.name for bucket in config.data.bucket_sizes()}
    buckets = [bucket.name for bucket in config.data.bucket_sizes()] if found <= configured else sorted(found)
    return IdentityCard(tuple(buckets), storage, encoder_cards(config), claimed=True)


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
        statistics.add(sample.arrays())
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
    rows, columns = patch_grid(width, height, image.patch_size)
    claims = {
        "width of the text": (arrays[TEXT].shape[1], card.text.width),
        "width of CLS": (len(sample.cls), image.width),
        "shape of the patches": (arrays[IMAGE_PATCHES].shape, (rows * columns, image.width)),
        "shape of the latent": (sample.latent.shape, (card.vae.channels, height // stride, width // stride)),
    }
    if wrong := [
        f"{what} is {found}, theirs would be {claimed}" for what, (found, claimed) in claims.items() if found != claimed
    ]:
        raise BadDataError(
            f"{where} ({bucket}) was not made by these encoders: {'; '.join(wrong)}",
            "name those that did: --preset P or -s",
        )
