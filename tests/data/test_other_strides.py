"""Geometry follows the encoders: autoencoders of other strides and channels, and other image encoders, go through the
chain from images to a picture; buckets, tokens and grids are theirs.
"""

from __future__ import annotations

import json

import pytest
from PIL import Image

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.shards.read import ShardSet
from dittool.data.shards.write import shard
from dittool.demo.drawing import draw_dataset
from dittool.errors import UsageError
from dittool.geometry import Bucket, buckets_for_area
from dittool.train.loop import train
from tests.conftest import TINY
from tests.encoders.more_models import dc_ae, flux2, image_models

#             folder, stride, channels, image encoder, its patch
CHAINS = [
    ("dc", 32, 8, "builtin:dinov3", 16),
    ("flux2", 16, 16, "siglip", 16),
    pytest.param("dc", 32, 8, "convnext", 32, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from dittool.encoders.torchvision_remedy import ensure_torchvision

    ensure_torchvision()
    root = tmp_path_factory.mktemp("models")
    dc_ae(root)
    flux2(root)
    image_models(root)
    draw_dataset(root / "images", 24, seed=0)
    return root


@pytest.mark.parametrize(("name", "stride", "channels", "image", "patch"), CHAINS)
def test_from_images_to_a_picture_at_another_stride(models, tmp_path, dit, name, stride, channels, image, patch):
    image = image if image.startswith("builtin:") else str(models / image)
    config = load_config(
        "demo",
        [
            *TINY,
            "data.area=None",
            "data.buckets=['128x128', '192x128']",
            f"encoders.vae={models / name}",
            f"encoders.image={image}",
            "model.patch_size=1",
            "train.steps=3",
            "train.warmup_steps=1",
        ],
    )
    embed(models / "images", tmp_path / "derived", config)
    shard(tmp_path / "derived", tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    assert (shards.card.vae.stride, shards.card.vae.channels, shards.card.image.patch_size) == (stride, channels, patch)
    for ref in shards.samples:
        sample, bucket = shards.read(ref), Bucket.from_name(ref.bucket)
        assert sample.latent.shape == (channels, bucket.height // stride, bucket.width // stride)
        assert len(sample.patches) == bucket.area // patch**2
    found = json.loads(dit("audit", tmp_path / "shards", "--select", "D1,D3,D4,D6", "--json").out)["findings"]
    judged = {finding["code"]: finding for finding in found}
    assert judged["D1"]["status"] == "pass", judged["D1"]
    assert {judged[code]["status"] for code in ("D3", "D4", "D6")} <= {"pass", "warn", "skip"}, found
    train(config, tmp_path / "shards", tmp_path / "run")
    out = tmp_path / "picture.png"
    drawn = dit(
        *("sample", "--checkpoint", tmp_path / "run", "--prompt", "a red circle", "--size", "192x128"),
        *("--steps", "2", "--out", out),
    )
    assert drawn.code == 0, drawn.err
    assert Image.open(out).size == (192, 128)


def test_a_stride_that_does_not_fit_the_buckets_says_what_would(models, tmp_path):
    config = load_config("demo", [*TINY, f"encoders.vae={models / 'dc'}", "model.patch_size=1"])
    with pytest.raises(UsageError) as caught:
        embed(models / "images", tmp_path / "derived", config, ["vae"])
    assert "sides must be multiples of 32" in caught.value.message and "-s data.multiple=32" in caught.value.hint
    wider = load_config("demo", [*TINY, f"encoders.vae={models / 'dc'}", "model.patch_size=1", "data.multiple=32"])
    assert embed(models / "images", tmp_path / "derived", wider, ["vae"]).made["vae"] == 24


def test_buckets_of_an_area_have_sides_of_the_multiple():
    buckets = buckets_for_area((256, 256), 64)
    assert Bucket(256, 256) in buckets and all(b.width % 64 == b.height % 64 == 0 for b in buckets)
    assert buckets_for_area((512, 512)) == buckets_for_area((512, 512), 64)
    for bad in ("data.multiple=24", "data.multiple=0"):
        with pytest.raises(UsageError, match="multiple"):
            load_config("nano", [bad])
    with pytest.raises(UsageError, match="multiple has no effect without area"):
        load_config("nano", ["data.area=None", "data.buckets=['64x64']", "data.multiple=32"])
