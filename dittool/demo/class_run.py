"""The one-step demo's library calls in order: draw class folders, embed, shard, train, and read back what was drawn.

prepare → train/loop.train → judge, contact_sheet
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from dittool.config.drift_schema import DriftConfig
from dittool.console import SILENT, Talk
from dittool.data.features.embed import embed
from dittool.data.shards.index import INDEX_NAME
from dittool.data.shards.write import shard
from dittool.demo.class_drawing import Recognised, draw_class_folders, recognise
from dittool.demo.drawing import COLOURS
from dittool.sampling.one_step import OneStepPipeline
from dittool.sampling.picture_file import write_picture

IMAGES, SEED = 720, 0


def prepare(root: Path, config: DriftConfig, talk: Talk = SILENT, colours: Collection[str] = tuple(COLOURS)) -> Path:
    """Shards of drawn class folders of `colours` under `root`, at the size that the configuration embeds; what is
    there already stays.
    """
    side = config.data.bucket_sizes()[0].width
    images, derived, shards = root / "images", root / "derived", root / "shards"
    draw_class_folders(images, IMAGES, SEED, side, talk, colours)
    embed(images, derived, config, talk=talk)
    if not (shards / INDEX_NAME).is_file():
        shard(derived, shards, talk=talk)
    return shards


def judge(pipeline: OneStepPipeline, count: int, alpha: float, seed: int = 0) -> dict[str, Recognised]:
    """By class, what the pixel checker reads from `count` drawn images."""
    seeds = [seed + i for i in range(count)]
    return {
        name: recognise(pipeline.decode(pipeline.latents([label] * count, alpha, seeds)), name)
        for label, name in enumerate(pipeline.classes)
    }


def contact_sheet(pipeline: OneStepPipeline, path: Path, count: int, alpha: float) -> None:
    """One row a class, the same seeds in each."""
    rows = [
        np.concatenate(list(pipeline.decode(pipeline.latents([label] * count, alpha, list(range(count))))), axis=1)
        for label in range(len(pipeline.classes))
    ]
    write_picture(
        path,
        Image.fromarray(np.concatenate(rows, axis=0)),
        {"step": pipeline.step, "alpha": alpha, "classes": pipeline.classes},
    )
