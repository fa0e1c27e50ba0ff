"""Small sets of shards of the sizes that a preset's own would have, filled with noise: to measure a machine before any
image is embedded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dittool.config.architectures import ImageConfig
from dittool.config.drift_schema import DriftConfig, MaeConfig
from dittool.config.schema import Config
from dittool.data.identity import IdentityCard
from dittool.data.patch_storage import FP16
from dittool.data.records import FEATURES, LATENT, RECORD_MEMBER, Feature
from dittool.data.shards.index import TRAIN, ShardIndex, index_shard, write_index
from dittool.data.shards.statistics import SetStatistics
from dittool.data.shards.writer import tar_member
from dittool.encoders.cards import FeatureWidths, ImageCard, TextCard, VaeCard
from dittool.encoders.known import known_widths
from dittool.errors import UsageError
from dittool.geometry import Bucket, require_whole_tokens
from dittool.untrusted.npy import npy_bytes

TEXT_TOKENS = 64  # of every caption
_STRIDE, _PATCH = 8, 16  # of the Flux codec and DINOv3, and of the built-in stand-ins
_UNREAD = 8  # width of features that a class-conditional model does not read


def write_noise(config: Config, folder: Path) -> None:
    """Four batches of the preset's bucket nearest to a square. Raises `UsageError` for encoders whose widths are not
    known, and for buckets that the patch size does not divide.
    """
    names = config.encoders
    widths = known_widths(names.image, names.text, names.vae)
    if widths is None:
        raise UsageError(
            f"the widths of these encoders are not known: {names.image}, {names.text}, {names.vae}",
            "measure with a preset whose encoders are in the table of docs/encoders.md, or run dit train --dry-run on"
            " real shards",
        )
    require_whole_tokens(config.data.bucket_sizes(), _STRIDE, config.model.patch_size, "data.buckets")
    bucket = min(config.data.bucket_sizes(), key=lambda bucket: abs(bucket.width - bucket.height))
    image, patches = widths.image, (bucket.height // _PATCH) * (bucket.width // _PATCH)
    latent = (widths.latent_channels, *bucket.latent_grid(_STRIDE))
    shapes = dict(zip(FEATURES, ((image,), (patches, image), latent, (TEXT_TOKENS, widths.text)), strict=True))
    _write(folder, config, bucket, shapes, widths, [{}] * 4 * (config.train.batch_size or 8))


def write_class_noise(config: DriftConfig | MaeConfig, folder: Path) -> None:
    """Latents in the model's size, one of each class. The features that it does not read are left out."""
    model = config.model
    rows, columns = model.cells
    bucket, widths = Bucket(columns * _STRIDE, rows * _STRIDE), FeatureWidths(_UNREAD, _UNREAD, model.channels)
    classes = [f"class-{number:04d}" for number in range(model.classes)]
    records = [{"name": name, "image": "", "status": "used", "cls": name} for name in classes]
    shapes = {LATENT: (model.channels, rows, columns)}
    _write(folder, config, bucket, shapes, widths, records, classes)


def _write(
    folder: Path,
    config: ImageConfig,
    bucket: Bucket,
    shapes: Mapping[Feature, tuple[int, ...]],
    widths: FeatureWidths,
    records: Sequence[Mapping[str, str]],
    classes: Sequence[str] = (),
) -> None:
    """A set of one shard, N(0, 1) in every feature."""
    tar = folder / f"bucket_{bucket.name}" / "shard-000000.tar"
    tar.parent.mkdir(parents=True)
    with tar.open("wb") as file:
        for number, record in enumerate(records):
            key, chance = f"noise-{number:06d}", np.random.default_rng(number)
            file.writelines(tar_member(f"{key}.{RECORD_MEMBER}", json.dumps({"id": key, **record}).encode()))
            for feature, shape in shapes.items():
                array = chance.standard_normal(shape, np.float32).astype(np.float16)
                file.writelines(tar_member(f"{key}.{feature.member}", npy_bytes(array)))
        file.write(bytes(1024))  # the end of a tar
    names, channels = config.encoders, widths.latent_channels
    encoders = (
        ImageCard(names.image, "", "", names.dtype, widths.image, _PATCH, registers=0),
        TextCard(names.text, "", "", names.dtype, widths.text, names.max_text_tokens),
        VaeCard(names.vae, "", "", "fp32", channels, _STRIDE, scale=1.0, shift=0.0),
    )
    card = IdentityCard((bucket.name,), FP16, encoders)
    noise: dict[str, Any] = {
        f"{name}_{key}": (value,) * size
        for name, size in (("latent", channels), ("cls", widths.image), ("patch", widths.image))
        for key, value in (("mean", 0.0), ("std", 1.0))
    }
    statistics = SetStatistics(len(records), **noise, tokens_mean=TEXT_TOKENS, tokens_max=TEXT_TOKENS)
    rows = (index_shard(folder, tar, bucket.name, TRAIN),)
    write_index(folder, ShardIndex(card, card.sha256, "", widths, statistics, rows, classes=tuple(classes)))
