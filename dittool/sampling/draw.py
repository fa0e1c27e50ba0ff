"""Images as files: each PNG holds, in its text chunks, all that is needed to draw it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dittool.console import SILENT, Talk
from dittool.errors import UsageError
from dittool.sampling.pipeline import Pipeline
from dittool.storage import file_sha256, output_folder, write_atomic

SETTINGS_KEY = "dit"  # the PNG text chunk that holds the settings as JSON
_BATCH = 4  # images drawn together, between two signs of progress


@dataclass(frozen=True)
class DrawRequest:
    """What `dit sample` was asked for."""

    checkpoint: Path
    prompt: str | None
    reference: Path | None
    count: int
    seed: int
    size: tuple[int, int] | None
    changes: dict[str, Any]  # fields of SampleSettings that differ from the run's own


@dataclass(frozen=True)
class DrawnImage:
    path: Path
    settings: dict[str, Any]


def draw(request: DrawRequest, out: Path, talk: Talk = SILENT) -> list[DrawnImage]:
    """Draws and writes the images. `out` is a `.png` file (for one image) or a folder.

    Raises `UsageError`, `BadDataError`, `StorageError`.
    """
    single_file = out.suffix.lower() == ".png"
    if single_file and request.count > 1:
        raise UsageError(f"--out {out} names one file for {request.count} images", "name a folder, or draw one image")
    folder = output_folder(out.parent if single_file else out)
    pipeline = Pipeline.load(request.checkpoint)
    reference = pipeline.encode_reference(request.reference) if request.reference else None
    bucket = pipeline.sample_size(request.size, reference)
    settings = replace(pipeline.settings, **request.changes)
    common = {
        "checkpoint": str(request.checkpoint), "checkpoint_sha256": file_sha256(request.checkpoint), "step": pipeline.step, "weights": "ema",
        "prompt": request.prompt, "reference": str(request.reference) if request.reference else None,
        "reference_sha256": file_sha256(request.reference) if request.reference else None, "size": bucket.name, **asdict(settings),
    }  # fmt: skip
    drawn = []
    with talk.progress("sample", request.count, "image") as task:
        for start in range(0, request.count, _BATCH):
            seeds = [request.seed + i for i in range(start, min(start + _BATCH, request.count))]
            conditions = pipeline.conditions(request.prompt, reference, bucket, len(seeds))
            for seed, pixels in zip(seeds, pipeline.decode(pipeline.latents(conditions, pipeline.noise(bucket, seeds), settings)), strict=True):
                path = out if single_file else folder / f"sample_seed{seed:06d}.png"
                drawn.append(DrawnImage(path, common | {"seed": seed}))
                write_png(path, Image.fromarray(pixels), drawn[-1].settings)
            task.advance(len(seeds))
    return drawn


def write_png(path: Path, image: Image.Image, settings: dict[str, Any] | None = None) -> None:
    """A PNG, whole or not at all, with its settings inside."""
    info = PngInfo()
    if settings is not None:
        info.add_text(SETTINGS_KEY, json.dumps(settings, ensure_ascii=True))
    write_atomic(path, lambda file: image.save(file, format="PNG", pnginfo=info))
