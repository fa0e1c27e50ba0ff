"""A small set of shards of the sizes that a preset's own would have, filled with noise: to measure a machine before
any image is embedded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dittool.config.schema import Config
from dittool.data.identity import IdentityCard
from dittool.data.patch_storage import FP16
from dittool.data.records import FEATURES, RECORD_MEMBER
from dittool.data.shards.index import TRAIN, ShardIndex, index_shard, write_index
from dittool.data.shards.read import ShardSet
from dittool.data.shards.statistics import SetStatistics
from dittool.data.shards.write import tar_member
from dittool.encoders.cards import ImageCard, TextCard, VaeCard
from dittool.encoders.known import known_dims
from dittool.errors import UsageError
from dittool.geometry import Bucket
from dittool.untrusted.npy import npy_bytes

TEXT_TOKENS = 64  # of every caption
_STRIDE, _PATCH = 8, 16  # of the Flux codec and DINOv3, and of the built-in stand-ins


def squarest(config: Config) -> Bucket:
    """The bucket that is measured: the one nearest to a square."""
    return min(config.data.bucket_sizes(), key=lambda bucket: abs(bucket.width - bucket.height))


def synthetic_shards(folder: Path, config: Config, samples: int) -> ShardSet:
    """Writes `samples` samples of one bucket and opens them. Raises `UsageError` for encoders whose widths are not
    known.
    """
    names = config.encoders
    dims = known_dims(names.image, names.text, names.vae)
    if dims is None:
        raise UsageError(
            f"the widths of these encoders are not known: {names.image}, {names.text}, {names.vae}",
            "measure with a preset whose encoders are in the table of docs/encoders.md, or run dit train --dry-run on"
            " real shards",
        )
    bucket = squarest(config)
    tar = folder / f"bucket_{bucket.name}" / "shard-000000.tar"
    tar.parent.mkdir(parents=True)
    with tar.open("wb") as file:
        for number in range(samples):
            key = f"noise-{number:06d}"
            for member, data in [(RECORD_MEMBER, b"{}"), *_arrays(bucket, dims, number)]:
                file.writelines(tar_member(f"{key}.{member}", data))
        file.write(bytes(1024))  # the end of a tar
    image_dim, text_dim, channels = dims["image_dim"], dims["text_dim"], dims["latent_channels"]
    encoders = (
        ImageCard(names.image, "", "", names.dtype, image_dim, _PATCH, registers=0),
        TextCard(names.text, "", "", names.dtype, text_dim, names.max_text_tokens),
        VaeCard(names.vae, "", "", "fp32", channels, _STRIDE, scale=1.0, shift=0.0),
    )
    card = IdentityCard((bucket.name,), FP16, encoders)
    noise = {
        f"{name}_{key}": (value,) * size
        for name, size in (("latent", channels), ("cls", image_dim), ("patch", image_dim))
        for key, value in (("mean", 0.0), ("std", 1.0))
    }
    statistics = SetStatistics(samples, **noise, tokens_mean=TEXT_TOKENS, tokens_max=TEXT_TOKENS)
    widths = {"text": text_dim, "image": image_dim, "latent_channels": channels}
    rows = (index_shard(folder, tar, bucket.name, TRAIN),)
    write_index(folder, ShardIndex(card, card.sha256, "", widths, statistics, rows))
    return ShardSet.open(folder)


def _arrays(bucket: Bucket, dims: dict[str, int], number: int) -> list[tuple[str, bytes]]:
    chance = np.random.default_rng(number)
    image, text, channels = dims["image_dim"], dims["text_dim"], dims["latent_channels"]
    patches = (bucket.height // _PATCH) * (bucket.width // _PATCH)
    shapes = ((image,), (patches, image), (channels, *bucket.latent_grid(_STRIDE)), (TEXT_TOKENS, text))
    noise = [chance.standard_normal(shape, np.float32).astype(np.float16) for shape in shapes]
    return [(feature.member, npy_bytes(array)) for feature, array in zip(FEATURES, noise, strict=True)]
