"""What overfit_clipart.py and gpu_nano.py share: shards of a folder's first images, and how near a checkpoint draws
them again.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dittool.config.schema import Config
from dittool.console import Talk
from dittool.data.features.embed import embed
from dittool.data.shards.index import HOLDOUT, TRAIN
from dittool.data.shards.read import ShardSet
from dittool.data.shards.write import shard
from dittool.sampling.pipeline import Pipeline
from dittool.validate.metrics import Metric, gap_closed
from dittool.validate.perceptual import find_lpips
from dittool.validate.pictures import contact_sheet
from dittool.validate.reconstruction import reconstruct
from dittool.validate.samples import Trial, choose

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
# Name → the run's sampling keys. Unguided: both conditions, one branch, v = v_full.
SAMPLINGS = {"unguided": {"guidance": "nested", "cfg_text": 1.0, "cfg_dino": 1.0}, "guided": {}}


@dataclass(frozen=True)
class Judged:
    """Means of one metric over one split, drawn one way."""

    split: str
    sampling: str
    images: int
    metric: str
    value: float
    floor: float  # the codec's round trip
    ceiling: float | None  # the same noise with another image's conditions

    @property
    def closed(self) -> float | None:
        """The share of the way from ceiling to floor."""
        return (
            None
            if self.ceiling is None
            else gap_closed(self.value, self.floor, self.ceiling, self.metric == "lpips-alex")
        )


def shards_of(source: Path, out: Path, count: int, config: Config, talk: Talk) -> ShardSet:
    """The first `count` captioned images of a folder, embedded and sharded below `out`."""
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    chosen = sorted(
        path for path in source.iterdir() if path.suffix.lower() in PICTURES and path.with_suffix(".txt").is_file()
    )[:count]
    for path in chosen:
        for one in (path, path.with_suffix(".txt")):
            shutil.copyfile(one, images / one.name)
    embed(images, out / "derived", config, talk=talk)
    shard(out / "derived", out / "shards", talk=talk)
    return ShardSet.open(out / "shards")


def lpips_at_hand(weights: Path | None, side: int, talk: Talk) -> Metric | None:
    """LPIPS where its weights and its package are there."""
    if importlib.util.find_spec("lpips") is None:
        talk.warn("the package lpips is not installed: only SSIM and PSNR are measured")
        return None
    return find_lpips(weights, side, talk)


def judge(
    checkpoint: Path, shards: ShardSet, perceptual: Metric | None, out: Path, limit: int, steps: int, talk: Talk
) -> list[Judged]:
    """Reconstruction of both splits, unguided and with the run's guidance; a strip and a sheet of pictures for each
    below `out`.
    """
    pipeline, rows = Pipeline.load(checkpoint), []
    config = pipeline.config
    for split in (TRAIN, HOLDOUT):
        if not shards.split(split):
            continue
        for name, keys in SAMPLINGS.items():
            pipeline.config = config.model_copy(
                update={"sample": config.sample.model_copy(update={"steps": steps, **keys})}
            )
            _, subjects = choose(shards, limit, split)
            folder = out / f"{split}_{name}"
            folder.mkdir(parents=True, exist_ok=True)
            trial = Trial(pipeline, shards, split, subjects, limit, folder, perceptual, talk)
            with torch.random.fork_rng(devices=[]):
                done = reconstruct(trial)
            groups = [[one.pictures[key] for key in ("truth", "result", "difference")] for one in done.images]
            (out / f"{split}_{name}.png").write_bytes(
                contact_sheet([(f"{split}, {name}: truth, result, difference", groups)])
            )
            for metric in done.metrics:
                mean = done.mean(metric)
                rows.append(Judged(split, name, len(done.images), metric.name, mean.value, mean.floor, mean.ceiling))
    return rows


def table(rows: Sequence[Judged]) -> str:
    """Markdown."""
    lines = ["| split | sampling | images | metric | value | codec floor | ceiling | gap closed |", "| --- " * 8 + "|"]
    for row in rows:
        ceiling, closed = (
            "–" if row.ceiling is None else f"{row.ceiling:.3f}",
            "–" if row.closed is None else f"{row.closed:.0%}",
        )
        lines.append(
            f"| {row.split} | {row.sampling} | {row.images} | {row.metric} | {row.value:.3f} | {row.floor:.3f} |"
            f" {ceiling} | {closed} |"
        )
    return "\n".join(lines)


def steps_per_second(log_rows: Sequence[dict], samples_per_step: float) -> float:
    """Median over the log's rows: pictures and evaluations on the way do not count."""
    return (
        float(np.median([row["samples_per_second"] for row in log_rows if "samples_per_second" in row]))
        / samples_per_step
    )
