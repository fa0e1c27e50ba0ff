"""What `--out F.npz` draws: the lines of a file of prompts, or the classes of a one-step generator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dittool.ckpt.files import resolve_checkpoint
from dittool.console import Talk
from dittool.errors import BadDataError, UsageError
from dittool.models.conditioning import Conditions
from dittool.sampling.latents import TextFeatures
from dittool.sampling.one_step import OneStepPipeline, OneStepRequest
from dittool.sampling.pipeline import Pipeline
from dittool.sampling.prompts import PromptLine, read_prompts
from dittool.sampling.repeat import made_with
from dittool.sampling.request import SampleOptions, require_weak, setting_changes, wanted_size
from dittool.sampling.sample_set import SampleSet
from dittool.storage import file_sha256

_OF_PICTURES = ("ref", "again", "grid", "init", "strength")  # options that belong to single pictures


def set_of_prompts(options: SampleOptions, talk: Talk) -> SampleSet:
    """`count` images of each line of `options.prompts`, or of `options.prompt`.

    Raises `UsageError` for options that a set has no use for, `BadDataError` for lines that cannot be drawn so.
    """
    given = vars(options)
    if vain := [name for name in _OF_PICTURES if given[name] is not None]:
        names = ", ".join("--from" if name == "again" else f"--{name}" for name in vain)
        raise UsageError(f"{names}: no effect with --out F.npz, which is drawn from prompts alone", "leave it out")
    changes, lines = setting_changes(options), _lines(options, talk)
    require_weak(options.weak, changes, 0.0)
    checkpoint = resolve_checkpoint(options.checkpoint, talk=talk)
    pipeline, weak = Pipeline.load(checkpoint), options.weak and resolve_checkpoint(options.weak, talk=talk)
    if weak:
        pipeline = pipeline.with_weak(weak)
    settings, each = pipeline.settings.changed(changes), options.count or 1
    prompts = [line.prompt or "" for line in lines for _ in range(each)]
    seeds = [
        (options.seed or 0) + number * each + drawing if line.seed is None else line.seed + drawing
        for number, line in enumerate(lines)
        for drawing in range(each)
    ]
    _warn_of_long(pipeline, [line.prompt or "" for line in lines], talk)
    bucket = pipeline.sample_size(_one_size(lines, wanted_size(options)), None)
    negative = None if options.negative is None else TextFeatures(*pipeline.encode_prompts([options.negative]))

    def draw(rows: range) -> np.ndarray:
        text, mask = pipeline.encode_prompts([prompts[row] for row in rows])
        conditions = Conditions(text, mask, None, None, pipeline.reference_grid(bucket))
        avoided = None if negative is None else negative.expand(len(rows))
        noise = pipeline.noise(bucket, [seeds[row] for row in rows])
        return pipeline.decode_drawn(pipeline.latents(conditions, noise, settings, negative=avoided))

    described = _described(checkpoint, pipeline.step, weak) | {
        "size": bucket.name,
        "sampling": {**settings.to_json(), "conditions": "captions alone", "negative": options.negative},
        "prompts": prompts,
        "seeds": seeds,
    }
    return SampleSet(len(prompts), (bucket.width, bucket.height), draw, described, None, made_with(pipeline.device))


def set_of_classes(request: OneStepRequest) -> SampleSet:
    """`request.count` images of each class, one class behind the other. Raises `UsageError` and `BadDataError`."""
    if request.repeat is not None:
        raise UsageError("--from: no effect with --out F.npz", "name classes with --class, or leave all out")
    pipeline = OneStepPipeline.load(request.checkpoint)
    alpha = pipeline.guidance_scale(request.alpha)
    chosen = [pipeline.label(name) for name in request.classes] or list(range(len(pipeline.classes)))
    labels = [label for label in chosen for _ in range(request.count)]
    seeds = [request.seed + row for row in range(len(labels))]

    def draw(rows: range) -> np.ndarray:
        asked = slice(rows.start, rows.stop)
        return pipeline.decode(pipeline.latents(labels[asked], alpha, seeds[asked]))

    stride, cells = pipeline.data.card.vae.stride, pipeline.model.config.cells
    described = _described(request.checkpoint, pipeline.step, None) | {
        "sampling": {"alpha": alpha, "steps": 1, "solver": "evaluation", "conditions": "classes"},
        "classes": [pipeline.classes[label] for label in labels],
        "seeds": seeds,
    }
    size = (cells[1] * stride, cells[0] * stride)
    return SampleSet(len(labels), size, draw, described, labels, made_with(pipeline.device))


def _described(checkpoint: Path, step: int, weak: Path | None) -> dict[str, object]:
    return {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": file_sha256(checkpoint),
        "step": step,
        "weights": "ema",
        "weak_sha256": file_sha256(weak) if weak else None,
    }


def _lines(options: SampleOptions, talk: Talk) -> list[PromptLine]:
    if options.prompts is not None and options.prompt is not None:
        raise UsageError("--prompts and --prompt exclude each other", "give the prompts in the file alone")
    if options.prompts is None:
        if options.prompt is None:
            raise UsageError("--out F.npz: neither --prompts nor --prompt: nothing to draw", "name a file of prompts")
        return [PromptLine(0, options.prompt)]
    lines = read_prompts(options.prompts, talk)
    for line in lines:
        if line.prompt is None or line.reference is not None or line.negative is not None:
            raise BadDataError(
                f"{options.prompts}:{line.number}: an .npz is drawn from prompts alone, without ref and negative",
                "draw such lines into a folder: --out FOLDER",
            )
    return lines


def _one_size(lines: Sequence[PromptLine], size: tuple[int, int] | None) -> tuple[int, int] | None:
    sizes = {line.size or size for line in lines}
    if len(sizes) > 1:
        names = ", ".join(sorted("the model's own" if one is None else f"{one[0]}x{one[1]}" for one in sizes))
        raise BadDataError(f"lines ask for several sizes ({names}), an .npz has one", "one file for each size")
    return sizes.pop()


def _warn_of_long(pipeline: Pipeline, prompts: Sequence[str], talk: Talk) -> None:
    encoder = pipeline.text_encoder
    limit = encoder.card.max_tokens
    if cut := sum(encoder.count_tokens(prompt) > limit for prompt in prompts):
        talk.warn(
            f"{cut:,} of {len(prompts):,} prompts have more than the {limit:,} tokens that are read: they are cut"
        )
