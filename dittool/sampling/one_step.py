"""`dit sample --class`: a one-step generator read from a checkpoint, and its pictures as files.

Image i has seed + i. `--from` draws its whole batch again and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.load import require_fit
from dittool.ckpt.sharded import checkpoint_sha256
from dittool.ckpt.to_draw import load_to_draw
from dittool.config.architectures import of_kind
from dittool.config.drift_schema import DriftConfig
from dittool.config.load import config_from_dict
from dittool.console import SILENT, Talk
from dittool.data.provenance import Provenance
from dittool.devices import device_of_choice
from dittool.encoders.interfaces import LatentCodec
from dittool.encoders.pretrained import place_of_weights
from dittool.encoders.vae import load_codec
from dittool.errors import BadDataError, UsageError
from dittool.models.build import build_generator
from dittool.models.drift_dit import DriftDiT
from dittool.sampling.for_diffusers import DiffusersParts, parts
from dittool.sampling.one_step_drawing import OneStepDrawing, OneStepFacts, batches_of_seeds
from dittool.sampling.picture_file import (
    Output,
    file_of,
    is_of_one_step,
    read_one_step_settings,
    seen_from,
    write_picture,
)
from dittool.sampling.repeat import DrawnImage, Repeat, compare, made_with, warn_of_other_files
from dittool.sampling.request import SampleOptions
from dittool.storage import output_folder

_SHARED_OPTIONS = ("again", "checkpoint", "count", "seed")  # with drawing from prompts and references


@dataclass(frozen=True)
class OneStepRequest:
    """What `dit sample --class` was asked for."""

    checkpoint: Path
    classes: tuple[str, ...]  # names or numbers; empty: every class
    alpha: float | None  # guidance scale; None: the run's own
    count: int  # images of each class
    seed: int
    repeat: Repeat | None = None


class OneStepPipeline(OneStepDrawing):
    """A trained generator, ready to draw. Uses the EMA weights."""

    def __init__(self, model: DriftDiT, config: DriftConfig, data: Provenance, classes: list[str], step: int) -> None:
        device = device_of_choice()
        facts = OneStepFacts(
            step, config.train.precision, tuple(classes), config.sample.alpha, config.drift.alpha_max, data.norm
        )
        super().__init__(model.to(device).eval().requires_grad_(False), facts, device)
        self.config, self.data, self.classes, self.step = config, data, classes, step

    @staticmethod
    def load(checkpoint: Path) -> OneStepPipeline:
        """Raises `UnsafeFileError` or `BadDataError` for a file that is not one of our checkpoints, `UsageError`
        for one of another family.
        """
        content = load_to_draw(checkpoint)
        config = of_kind(
            config_from_dict(content["config"], str(checkpoint)),
            str(checkpoint),
            "--class and --alpha draw from a one-step generator",
            DriftConfig,
        )
        model = build_generator(config)
        require_fit(content["ema"], model.state_dict(), f"{checkpoint}: ema")
        model.load_state_dict(content["ema"])
        return OneStepPipeline(
            model,
            config,
            Provenance.from_json(content["data"], str(checkpoint)),
            content["classes"],
            content["step"],
        )

    @cached_property
    def codec(self) -> LatentCodec:
        card = self.data.card.vae
        codec = load_codec(place_of_weights(card.id))
        if codec.card.weights != card.weights:
            raise BadDataError(
                f"codec '{card.id}' has other weights than in training",
                "restore the weights of that time, or train again",
            )
        return codec

    def for_diffusers(self) -> DiffusersParts:
        """What an export says of it."""
        return parts("drift", "generator.", self.model.config, self.facts)


def asks_for_one_step(options: SampleOptions, classes: Sequence[str], alpha: float | None) -> bool:
    """Whether a command line is meant for a one-step generator: by --class, --alpha, or the picture that --from
    names.
    """
    return bool(classes) or alpha is not None or (options.again is not None and is_of_one_step(options.again))


def one_step_request(
    options: SampleOptions, classes: tuple[str, ...], alpha: float | None, talk: Talk = SILENT
) -> OneStepRequest:
    """The request behind a command line that asks for one step. Raises `UsageError` for options that one evaluation
    has no use for.
    """
    if strangers := [name for name in options.given() if name not in _SHARED_OPTIONS]:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in strangers)
        raise UsageError(
            f"{names}: no effect with --class and --alpha",
            "a one-step generator takes --class, --alpha, -n, --seed, --checkpoint",
        )
    if options.again is not None:
        return _again(options.again, options, classes, alpha, talk)
    return OneStepRequest(
        resolve_checkpoint(options.checkpoint, talk=talk), classes, alpha, options.count or 1, options.seed or 0
    )


def _again(
    path: Path, options: SampleOptions, classes: tuple[str, ...], alpha: float | None, talk: Talk
) -> OneStepRequest:
    """The request that a picture holds, with the options that were given in its place."""
    if not is_of_one_step(path):
        raise UsageError(
            f"--class and --alpha: no effect on {path}, which was drawn from a prompt or a reference", "leave them out"
        )
    inside = read_one_step_settings(path)
    checkpoint = file_of(path, inside.checkpoint, options.checkpoint, "--checkpoint")
    exact = not classes and all(option is None for option in (alpha, options.count, options.seed))
    if exact:
        seed, count = inside.batch or (inside.seed, 1)
    else:
        seed, count = inside.seed if options.seed is None else options.seed, options.count or 1
    return OneStepRequest(
        resolve_checkpoint(checkpoint, talk=talk),
        classes or (inside.label,),
        inside.alpha if alpha is None else alpha,
        count,
        seed,
        Repeat(path, inside, inside.seed if exact else None, exact),
    )


def draw_classes(request: OneStepRequest, out: Path, talk: Talk = SILENT, force: bool = False) -> list[DrawnImage]:
    """Draws and writes the images. `out` is a file (for one image) or a folder, where nothing is overwritten; `force`
    replaces a file that is no picture of ours.

    Raises `UsageError`, `BadDataError`, `StorageError`.
    """
    pipeline = OneStepPipeline.load(request.checkpoint)
    alpha, keep = pipeline.guidance_scale(request.alpha), request.repeat.keep if request.repeat else None
    names = [pipeline.classes[pipeline.label(name)] for name in request.classes] or pipeline.classes
    total = 1 if keep is not None else request.count * len(names)
    output = Output.of(out, total, [request.checkpoint], force)
    output_folder(output.folder)
    drawn_with = made_with(pipeline.device)
    common: dict[str, object] = {
        "checkpoint": str(request.checkpoint),
        "checkpoint_sha256": checkpoint_sha256(request.checkpoint),
        "step": pipeline.step,
        "weights": "ema",
        "alpha": alpha,
        "evaluations": 1,
        "made_with": drawn_with,
    }
    warn_of_other_files(request.repeat, common, talk)
    drawn = []
    with talk.progress("sample", total, "image") as task:
        for name, seeds in ((name, seeds) for name in names for seeds in batches_of_seeds(request.seed, request.count)):
            images = pipeline.decode(pipeline.latents([pipeline.label(name)] * len(seeds), alpha, seeds))
            for seed, pixels in zip(seeds, images, strict=True):
                if keep not in (None, seed):
                    continue
                settings = common | {"class": name, "seed": seed, "batch": [seeds[0], len(seeds)]}
                path = output.path(_stem(request, pipeline.label(name), seed))
                same = compare(request.repeat, pixels, drawn_with, talk)
                write_picture(path, Image.fromarray(pixels), seen_from(path.parent, settings))
                drawn.append(DrawnImage(path, settings, same))
                task.advance()
    return drawn


def _stem(request: OneStepRequest, label: int, seed: int) -> str:
    if request.repeat is not None and request.repeat.exact:
        return f"{request.repeat.path.stem}_again"
    return f"class{label:04d}_seed{seed:06d}"
