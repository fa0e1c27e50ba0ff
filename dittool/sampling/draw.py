"""From requests to pictures in files, a few images at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from dittool.ckpt.sharded import checkpoint_sha256
from dittool.config.schema import LATER_SETTINGS, SampleSettings
from dittool.console import SILENT, Talk, Task
from dittool.geometry import Bucket
from dittool.sampling.drawing import AT_ONCE, named_pixels
from dittool.sampling.grid import labelled
from dittool.sampling.guidance import BRANCHES
from dittool.sampling.latents import SamplingCost, TextFeatures, guidance_rules, is_ever_guided, sampling_cost
from dittool.sampling.picture_file import Output, seen_from, write_picture
from dittool.sampling.pipeline import Pipeline
from dittool.sampling.prompts import warn_of_prompt
from dittool.sampling.repeat import DrawnImage, compare, made_with, warn_of_other_files
from dittool.sampling.request import DrawRequest
from dittool.storage import output_folder


def draw(request: DrawRequest, out: Path, talk: Talk = SILENT) -> list[DrawnImage]:
    """`draw_all` of one request."""
    return draw_all([request], out, talk)


def draw_all(requests: Sequence[DrawRequest], out: Path, talk: Talk = SILENT, force: bool = False) -> list[DrawnImage]:
    """Draws and writes the images of requests with one checkpoint. `out` is a file (for one image) or a folder, where
    nothing is overwritten; `force` replaces a file that is no picture of ours.

    Raises `UsageError`, `BadDataError`, `StorageError`.
    """
    count = sum(_pictures(request) for request in requests)
    inputs = [
        path for request in requests for path in (request.reference, request.init, request.checkpoint, request.weak)
    ]
    output = Output.of(out, count, inputs, force)
    output_folder(output.folder)
    pipeline = Pipeline.load(requests[0].checkpoint)
    if requests[0].weak:
        pipeline = pipeline.with_weak(requests[0].weak)
    digest = checkpoint_sha256(requests[0].checkpoint)
    drawn = []
    with talk.progress("sample", count, "image") as task:
        for request in requests:
            prepared = _PreparedRequest(pipeline, request, digest, talk)
            for seed, picture, settings in prepared.pictures(task):
                path = output.path(_stem(request, seed))
                same = compare(request.repeat, np.asarray(picture), made_with(pipeline.device), talk)
                write_picture(path, picture, seen_from(path.parent, settings))
                drawn.append(DrawnImage(path, settings, same))
    return drawn


class _PreparedRequest:
    """One request with everything that its images share."""

    def __init__(self, pipeline: Pipeline, request: DrawRequest, checkpoint_sha256: str, talk: Talk) -> None:
        self.pipeline, self.request = pipeline, request
        reference = pipeline.encode_reference(request.reference) if request.reference else None
        pixels = named_pixels(request.init) if request.init else None
        self.bucket = pipeline.sample_size(request.size, reference, pixels)
        self.init = None if pixels is None else pipeline.encode_init(pixels, self.bucket)
        for name, words in (("prompt", request.prompt), ("negative prompt", request.negative)):
            if words is not None:
                warn_of_prompt(words, pipeline.text_encoder, talk, name)
        encoded = None if request.negative is None else pipeline.encode_prompts([request.negative])
        self.negative = None if encoded is None else TextFeatures(*encoded)
        self.conditions = pipeline.conditions(request.prompt, reference, self.bucket, 1)
        self.settings = pipeline.settings.changed(request.changes)
        self.common: dict[str, object] = {
            "checkpoint": str(request.checkpoint),
            "checkpoint_sha256": checkpoint_sha256,
            "step": pipeline.step,
            "weights": pipeline.weights,
            "prompt": request.prompt,
            **({} if request.negative is None else {"negative": request.negative}),
            **_file("reference", request.reference),
            **_file("init", request.init),
            "strength": request.strength,
            "size": self.bucket.name,
            **({"grid": [str(axis) for axis in (request.grid.across, request.grid.down)]} if request.grid else {}),
            **self.settings.to_json(),
            **({"cfg_weak": self.settings.cfg_weak, **_file("weak", request.weak)} if request.weak else {}),
            "made_with": made_with(pipeline.device),
        }
        self.common |= asdict(self.cost)
        _announce(pipeline, request, self.bucket, self.settings, self.cost, talk)
        warn_of_other_files(request.repeat, self.common, talk)

    @property
    def cells(self) -> list[list[SampleSettings]]:
        """The settings of each cell of a picture, row by row; without a grid it has one."""
        return [
            [self.settings.changed(own) for own in row]
            for row in (self.request.grid.settings() if self.request.grid else [[{}]])
        ]

    @cached_property
    def cost(self) -> SamplingCost:
        """Of one picture."""
        text = self.request.prompt is not None or self.request.negative is not None
        there, weak = (text, self.request.reference is not None), self.request.weak is not None
        latent, start = self.bucket.latent_grid(self.pipeline.data.card.vae.stride), self.request.strength
        costs = [sampling_cost(cell, latent, *there, start, weak) for row in self.cells for cell in row]
        return SamplingCost(sum(cost.evaluations for cost in costs), sum(cost.passes for cost in costs))

    def pictures(self, task: Task) -> Iterator[tuple[int, Image.Image, dict[str, object]]]:
        """(seed, picture, settings) of each picture of the request."""
        request, keep = self.request, self.request.repeat.keep if self.request.repeat else None
        at_once = AT_ONCE if request.grid is None else 1
        for start in range(0, request.count, at_once):
            batch = [request.seed + index for index in range(start, min(start + at_once, request.count))]
            drawn = [[self._pixels(batch, cell) for cell in row] for row in self.cells]  # rows × columns × (B, H, W, 3)
            for index, seed in enumerate(batch):
                if keep in (None, seed):
                    yield (
                        seed,
                        self._picture(drawn, index),
                        self.common | {"seed": seed, "batch": [batch[0], len(batch)]},
                    )
                    task.advance()

    def _picture(self, drawn: list[list[np.ndarray]], index: int) -> Image.Image:
        grid = self.request.grid
        return (
            Image.fromarray(drawn[0][0][index])
            if grid is None
            else labelled([[cell[index] for cell in row] for row in drawn], grid)
        )

    def _pixels(self, seeds: list[int], settings: SampleSettings) -> np.ndarray:
        """(len(seeds), H, W, 3) uint8 of one cell."""
        strength, negative = self.request.strength, self.negative
        return self.pipeline.pixels(self.conditions, self.bucket, seeds, settings, self.init, strength, negative)


def _pictures(request: DrawRequest) -> int:
    return 1 if request.repeat and request.repeat.keep is not None else request.count


def _stem(request: DrawRequest, seed: int) -> str:
    """Of the file's name in a folder."""
    alone = request.repeat is not None and request.repeat.keep is not None
    return request.name if alone else f"{request.name}_seed{seed:06d}"


def _file(name: str, path: Path | None) -> dict[str, str | None]:
    return {name: str(path) if path else None, f"{name}_sha256": checkpoint_sha256(path) if path else None}


def _announce(
    pipeline: Pipeline, request: DrawRequest, bucket: Bucket, settings: SampleSettings, cost: SamplingCost, talk: Talk
) -> None:
    """What this will cost, and which settings have no effect."""
    size = bucket.name
    talk.note(
        f"{size}, {settings.steps} steps of {settings.solver}; a picture takes {cost.evaluations} evaluations,"
        f" {cost.passes} model passes"
    )
    if size not in (names := [bucket.name for bucket in pipeline.buckets]):
        talk.note(
            f"{size} is no size of the training ({', '.join(names)}); positions follow it, what the model learned of"
            " composition may not"
        )
    asked = request.changes.keys() if request.repeat is None else request.repeat.asked
    _warn_of_idle_conditions(request, settings, asked, talk)
    _warn_of_idle_guidance(request, settings, bucket.latent_grid(pipeline.data.card.vae.stride), asked, talk)
    if request.init is not None and request.strength == 0:
        talk.warn("at --strength 0 nothing is drawn: the picture is --init after the VAE, whatever else is asked for")
    elif request.init is not None and request.strength == 1:
        talk.warn("at --strength 1 nothing of --init is left but its size")


def _warn_of_idle_conditions(request: DrawRequest, settings: SampleSettings, asked: Set[str], talk: Talk) -> None:
    for scale, condition, option in (
        ("cfg_text", request.prompt, "--prompt"),
        ("cfg_dino", request.reference, "--ref"),
    ):
        if condition is None and scale in asked:
            talk.warn(f"{_option(scale)} has no effect without {option}")
        elif condition is not None and getattr(settings, scale) == 0 and request.grid is None:
            talk.warn(f"{option} has no effect at {_option(scale)} 0")
        if request.grid is not None and scale in asked:
            talk.warn(f"{_option(scale)} has no effect with --grid, whose axes say the scales")
    for option, given in (("--weak", request.weak is not None), ("--weak-routed", settings.weak_routed > 0)):
        if given and settings.cfg_weak == 1:
            talk.warn(f"{option} has no effect at --cfg-weak 1: nothing is drawn away from it")


def _warn_of_idle_guidance(
    request: DrawRequest, settings: SampleSettings, latent: Sequence[int], asked: Set[str], talk: Talk
) -> None:
    has_text, has_reference = request.prompt is not None or request.negative is not None, request.reference is not None
    inside, outside = guidance_rules(settings, has_text, has_reference, request.weak is not None)
    if "guidance" in asked and not (has_text and has_reference):
        talk.warn("--guidance has no effect without both --prompt and --ref: with one condition all rules are the same")
    if not is_ever_guided(settings, latent, request.strength):
        low, high = settings.guidance_interval
        talk.warn(
            f"--guidance-interval {low:g} {high:g}: no step lies in it, so nothing is guided: --cfg-text, --cfg-dino,"
            " --cfg-weak, --guidance, --guidance-parallel, --guidance-norm, --guidance-momentum and --negative have no"
            " effect"
        )
    elif request.grid is None and inside.weights == outside.weights and not inside.weak:
        for name in sorted(asked & {"guidance_interval", *LATER_SETTINGS}):
            talk.warn(f"{_option(name)} has no effect at scales of 1: nothing is guided")
    if request.negative is not None and request.grid is None and all(BRANCHES[name][0] for name in inside.branches):
        scales = "--cfg-text 1" if not has_reference else f"these scales of {settings.guidance} guidance"
        talk.warn(f"--negative has no effect at {scales}: nothing is drawn away from it")


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"
