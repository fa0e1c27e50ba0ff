"""The figures that papers print, of a checkpoint: captions of the judged split are drawn from text alone, and stand
against the images of that split or against a reference that a file holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dittool.console import Talk
from dittool.data.shards.columns import SampleRef
from dittool.devices import in_parts
from dittool.encoders.metric_networks import FeatureNetwork, load_network
from dittool.errors import BadDataError, UsageError
from dittool.geometry import Bucket
from dittool.models.conditioning import Conditions
from dittool.validate.figures.figure import FIGURE_TESTS, SetFigures, measure_figures, networks_of
from dittool.validate.figures.image_sets import (
    FEWEST,
    TEXTS,
    ImageSet,
    SetFile,
    open_set,
    read_set,
    require_features_file,
    write_features,
)
from dittool.validate.reconstruction import originals_of
from dittool.validate.samples import Trial, bucket_batches, choose, draw, noise_of


@dataclass(frozen=True)
class FigureOptions:
    """What is asked of the figures, beside their tests."""

    reference: Path | None = None  # an `.npz`; None: the images of the judged split
    images: int | None = None  # to draw; None: `validate.set_images`, at most one for each caption
    features_out: Path | None = None  # where the features of the drawn images go

    def given(self) -> list[str]:
        """The options that were given, as they are called on a command line."""
        named = {"--reference": self.reference, "--images": self.images, "--features-out": self.features_out}
        return [name for name, value in named.items() if value is not None]


@dataclass(frozen=True)
class FigurePlan:
    """Everything that can be missing, found before anything is drawn."""

    tests: list[str]
    networks: dict[str, FeatureNetwork]
    reference: SetFile | None
    options: FigureOptions


def plan_figures(tests: Sequence[str], options: FigureOptions, talk: Talk) -> FigurePlan | None:
    """None where no figure is asked for. Raises `WeightsMissingError`, `UsageError`, `BadDataError`."""
    asked = [test for test in FIGURE_TESTS if test in tests]
    if not asked:
        if vain := options.given():
            raise UsageError(
                f"{', '.join(vain)}: no effect with --tests {','.join(tests)}", f"name one of {', '.join(FIGURE_TESTS)}"
            )
        return None
    if options.images is not None and options.images < FEWEST:
        raise UsageError(f"--images {options.images}: a set has at least {FEWEST}", "10,000 is usual, 50,000 for FID")
    if options.features_out is not None:
        require_features_file(options.features_out, [options.reference] if options.reference else [])
    reference = open_set(options.reference, "--reference") if options.reference else None
    wanted = [network for network in networks_of(asked) if network != TEXTS]
    return FigurePlan(asked, {name: load_network(name) for name in wanted}, reference, options)


def measure_drawn(trial: Trial, plan: FigurePlan) -> SetFigures:
    """Draws the captions of the judged split and measures. Where more images are asked for than there are captions,
    captions are drawn again from other noise. Raises `BadDataError`.
    """
    config, talk = trial.pipeline.config.validate_, trial.talk
    refs = [subject.ref for subject in choose(trial.shards, plan.options.images or config.set_images, trial.split)[1]]
    count = plan.options.images or len(refs)
    if count < FEWEST:
        raise BadDataError(
            f"{trial.shards.folder}: {count} {trial.split} images, a set has at least {FEWEST}",
            "draw more from each caption: --images N, with --reference F.npz; or hold more out",
        )
    drawn, captions = _drawn_features(trial, plan, refs, count)
    if "clip" in plan.tests and (read := plan.networks["clip-crop"].texts) is not None:
        drawn[TEXTS] = torch.cat(in_parts(lambda rows: read(captions[rows]), len(captions), FEWEST))
    made_by = {name: network.to_json() for name, network in plan.networks.items()}
    sampling = {**trial.pipeline.settings.to_json(), "conditions": "captions alone", "noise": "by image id"}
    found = ImageSet("drawn images", "", count, drawn, networks=made_by, sampling=sampling)
    if plan.reference is not None:
        reference = read_set(plan.reference, [*_compared(plan)], plan.networks, talk)
    else:
        reference = _own_images(trial, plan, refs)
    if plan.options.features_out is not None:
        write_features(plan.options.features_out, found)
    figures = measure_figures(plan.tests, found, reference)
    for figure in figures:
        talk.note(str(figure))
    return SetFigures(figures)


def _compared(plan: FigurePlan) -> list[str]:
    """Networks whose features of the reference are needed: a CLIP score has none."""
    return [name for name in plan.networks if name != "clip-crop"]


def _drawn_features(
    trial: Trial, plan: FigurePlan, refs: Sequence[SampleRef], count: int
) -> tuple[dict[str, Tensor], list[str]]:
    """(N, F) of each network, and the caption of each image."""
    parts: dict[str, list[Tensor]] = {name: [] for name in plan.networks}
    captions: list[str] = []
    with trial.talk.progress("draw", count, "image") as task:
        for turn in range(math.ceil(count / len(refs))):
            asked = refs[: count - turn * len(refs)]
            for bucket, batch in bucket_batches(asked, lambda ref: ref):
                said = [trial.shards.read_record(ref).caption for ref in batch]
                pixels = _draw(trial, bucket, said, [ref.id for ref in batch], turn)
                for name, network in plan.networks.items():
                    parts[name].append(network.features(pixels))
                captions += said
                task.advance(len(batch))
    return {name: torch.cat(rows) for name, rows in parts.items()}, captions


def _draw(trial: Trial, bucket: Bucket, captions: list[str], ids: list[str], turn: int) -> np.ndarray:
    """(B, H, W, 3) uint8."""
    text, mask = trial.pipeline.encode_prompts(captions)
    conditions = Conditions(text, mask, None, None, trial.pipeline.reference_grid(bucket))
    return draw(trial.pipeline, conditions, noise_of(trial.pipeline, bucket, ids, f"figures {turn}"))


def _own_images(trial: Trial, plan: FigurePlan, refs: Sequence[SampleRef]) -> ImageSet:
    """The originals where they are still there, else their decoded latents."""
    parts: dict[str, list[Tensor]] = {name: [] for name in _compared(plan)}
    shards, codec, decoded = trial.shards, trial.pipeline.codec, 0
    if parts:
        for _, batch in bucket_batches(refs, lambda ref: ref):
            latents = np.stack([shards.read(ref, patches=False).latent for ref in batch]).astype(np.float32)
            records = [shards.read_record(ref) for ref in batch]
            pixels, kinds = originals_of(shards.source, records, codec.decode(torch.from_numpy(latents)))
            decoded += sum(kind != "pixels" for kind in kinds)
            for name, rows in parts.items():
                rows.append(plan.networks[name].features(pixels))
    name = f"{trial.split} images" + (f", {decoded} of them decoded latents" if decoded else "")
    features = {network: torch.cat(rows) for network, rows in parts.items()}
    return ImageSet(name, shards.identity_hash, len(refs), features)
