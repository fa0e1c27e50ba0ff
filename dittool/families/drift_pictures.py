"""Pictures on the way of a one-step generator: a toy's points beside real ones, or a row of images for each class."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dittool.config.drift_schema import DriftConfig, ToyConfig
from dittool.data.provenance import Provenance
from dittool.objective.toy import real_points
from dittool.sampling.one_step import OneStepPipeline
from dittool.sampling.picture_file import write_png
from dittool.storage import write_atomic

_MOST_CLASSES, _EACH = 16, 6


def draw_generator(
    model: nn.Module, config: DriftConfig | ToyConfig, data: Provenance, about: dict[str, Any], path: Path
) -> None:
    """Draws what averaged weights make.

    Args:
        about: `step`, `classes` (their names) and, for a toy, `points` (n, 2).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if config.model.arch == "drift-toy":
        _draw_points(about["points"], config.toy.distribution, about["step"], path)
        return
    pipeline = OneStepPipeline(model, config, data, about["classes"], about["step"])
    rows = []
    for label in range(min(len(about["classes"]), _MOST_CLASSES)):
        images = pipeline.decode(pipeline.latents([label] * _EACH, config.sample.alpha, list(range(_EACH))))
        rows.append(np.concatenate(list(images), axis=1))
    settings = {
        "step": about["step"],
        "weights": "ema",
        "alpha": config.sample.alpha,
        "classes": about["classes"][:_MOST_CLASSES],
    }
    write_png(path, Image.fromarray(np.concatenate(rows, axis=0)), settings)


def _draw_points(points: Tensor, distribution: str, step: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained")
    real = real_points(distribution, len(points), torch.Generator().manual_seed(0))
    for axis, title, cloud in zip(axes, ("real", f"one evaluation, step {step}"), (real, points), strict=True):
        axis.scatter(*cloud.T.numpy(), s=2, alpha=0.5, linewidths=0)
        axis.set(title=title, aspect="equal", xlim=(-5, 5), ylim=(-4, 4))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    write_atomic(path, buffer.getvalue())
