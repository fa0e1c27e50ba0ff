"""Pictures on the way: hold-out samples above what is made of their captions and references; a row for each class."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from dittool.data.shards.read import ShardSet
from dittool.data.shards.stream import collate
from dittool.geometry import Bucket, parse_size
from dittool.sampling.one_step import OneStepPipeline
from dittool.sampling.picture_file import write_picture
from dittool.sampling.pipeline import Pipeline

_COLUMNS = 6
_MOST_CLASSES = 16


def draw_preview(shards_folder: Path) -> Callable[[Pipeline, Path], None]:
    """A function that draws a pipeline's answer to the same few samples, hold-out ones where there are any."""
    chosen: list = []

    def draw(pipeline: Pipeline, path: Path) -> None:
        shards = ShardSet.open(shards_folder)
        if not chosen:
            refs = shards.split("holdout") or shards.samples
            bucket = refs.bucket_counts().most_common(1)[0][0]
            chosen.extend(islice((ref for ref in refs if ref.bucket == bucket), _COLUMNS))
        samples = [shards.read(ref, pipeline.config.model.patches) for ref in chosen]
        latents, conditions = collate(samples, pipeline.data.norm, pipeline.image_patch_size)
        made = pipeline.latents(
            conditions, pipeline.noise(Bucket(*parse_size(chosen[0].bucket)), list(range(len(samples))))
        )
        rows = [np.concatenate(list(pipeline.decode(row)), axis=1) for row in (latents, made)]
        path.parent.mkdir(exist_ok=True)
        write_picture(path, Image.fromarray(np.concatenate(rows, axis=0)), {"step": pipeline.step, "weights": "ema"})

    return draw


def draw_classes(pipeline: OneStepPipeline, path: Path) -> None:
    """A row of images for each of the first classes, the same seeds in each."""
    alpha, classes = pipeline.config.sample.alpha, pipeline.classes[:_MOST_CLASSES]
    rows = []
    for label in range(len(classes)):
        images = pipeline.decode(pipeline.latents([label] * _COLUMNS, alpha, list(range(_COLUMNS))))
        rows.append(np.concatenate(list(images), axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"step": pipeline.step, "weights": "ema", "alpha": alpha, "classes": classes}
    write_picture(path, Image.fromarray(np.concatenate(rows, axis=0)), settings)
