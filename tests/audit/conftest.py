"""A small clean set of features and a checkpoint trained on it, made once, and a workshop that plants faults in
copies of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.shards.write import shard
from dittool.demo.drawing import draw_dataset
from tests.audit.workshop import Workshop

IMAGES = 120  # so that every bucket fills a batch
SMALL_RUN = (
    "model.depth=2",
    "model.width=32",
    "model.heads=2",
    "train.steps=12",
    "train.warmup_steps=2",
    "train.batch_size=4",
    "train.log_every=6",
    "checkpoint.every=6",
    "data.area=96x96",
    "sample.steps=2",
    "train.optimizer=adamw",
)


@pytest.fixture(scope="session")
def clean(tmp_path_factory) -> Path:
    """A folder with derived/, shards/ and run/ in which nothing is wrong."""
    from dittool.train.loop import train

    root = tmp_path_factory.mktemp("clean")
    config = load_config("demo", SMALL_RUN)
    draw_dataset(root / "images", IMAGES, seed=2)
    embed(root / "images", root / "derived", config)
    shard(root / "derived", root / "shards", shard_size=20)
    train(config, root / "shards", root / "run")
    return root


@pytest.fixture
def workshop(clean, tmp_path, monkeypatch) -> Workshop:
    return Workshop(clean, tmp_path, monkeypatch)
