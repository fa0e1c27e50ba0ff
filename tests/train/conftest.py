"""A small set of class folders, embedded and sharded once, and a run of the one-step generator on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

SMALL = (
    "model.depth=1", "model.width=16", "model.heads=2", "model.mlp_width=16", "model.registers=2", "model.style_tokens=2", "model.input=4x4",
    'data.buckets=["32x32"]', "data.holdout=0.1", "drift.generated=4", "drift.positives=4", "drift.unconditional=2", "drift.class_queue=6",
    "drift.global_queue=12", "drift.pushed=5", 'drift.features=["raw", "moments"]', "train.steps=6", "train.batch_size=8", "train.warmup_steps=1",
    "train.log_every=2", "train.eval_every=3", "train.sample_every=0", "checkpoint.every=2", "checkpoint.keep=9",
)  # fmt: skip


@dataclass(frozen=True)
class ClassShards:
    """Shards of drawn shapes in class folders. Read only."""

    folder: Path

    def config(self, *overrides: str):
        from dittool.config.load import load_config

        return load_config("drift-demo", [*SMALL, *overrides])


@pytest.fixture(scope="session")
def class_shards(tmp_path_factory) -> ClassShards:
    from dittool.config.load import load_config
    from dittool.data.embed import embed
    from dittool.data.shards import shard
    from dittool.demo.class_drawing import draw_class_folders

    root = tmp_path_factory.mktemp("classes")
    draw_class_folders(root / "images", 96, 0, 32)
    embed(root / "images", root / "derived", load_config("drift-demo", SMALL))
    shard(root / "derived", root / "shards")
    return ClassShards(root / "shards")


@pytest.fixture(scope="session")
def class_run(class_shards, tmp_path_factory) -> Path:
    """The folder of a run of six steps. Read only."""
    from dittool.train.drift_loop import train_generator

    out = tmp_path_factory.mktemp("class_run") / "run"
    train_generator(class_shards.config(), class_shards.folder, out)
    return out
