"""Models whose quality is known: they look their answers up instead of having learned them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dittool.config.schema import Config
from dittool.console import SILENT, Talk
from dittool.data.provenance import Provenance
from dittool.data.shards.read import ShardSet
from dittool.demo.checker import SCENE_CHECKER, parse_caption
from dittool.demo.drawing import BACKGROUNDS, COLOURS, PLACES, POSITIONS, SHAPES, Scene, draw_scene
from dittool.models.build import build_model
from dittool.models.conditioning import Conditions
from dittool.models.dit import DiT, DiTConfig
from dittool.sampling.pipeline import Pipeline
from dittool.validate.run import ValidateOptions, Validation, validate_pipeline
from dittool.validate.samples import Trial, choose
from dittool.validate.text_edit import CaptionChecker

READER = replace(SCENE_CHECKER, scenes=None)  # asks for no scenes of its own: quick


def judge(
    pipeline: Pipeline, shards: ShardSet, folder: Path, checker: CaptionChecker = READER, **options: object
) -> Validation:
    """A validation of a model that is loaded, as `dit demo` judges it: with the checker of drawn scenes."""
    return validate_pipeline(pipeline, shards, folder, ValidateOptions(checker=checker, **options))


def trial_of(pipeline: Pipeline, shards: ShardSet, folder: Path = Path(), limit: int = 0, talk: Talk = SILENT) -> Trial:
    """What the tests of a validation get: the hold-out of drawn shards."""
    split, subjects = choose(shards, limit, "holdout")
    return Trial(pipeline, shards, split, subjects, limit, folder, talk=talk)


class Memoriser(DiT):
    """The best velocity of the training latents without a condition: E[x0 | z_t] over them. What a model that only
    memorised tends to.
    """

    def __init__(self, config: DiTConfig, latents: list[Tensor]) -> None:
        super().__init__(config)
        self._latents = latents

    def context(self, *_: object) -> None:
        return None

    def keys_values(self, context: None) -> list:
        return []

    def velocity(self, z: Tensor, t: Tensor, context: None, keys_values: object = None, route: object = None) -> Tensor:
        # (M, C·H·W)
        known = torch.stack([latent for latent in self._latents if latent.shape == z.shape[1:]]).flatten(1)
        apart = (z.flatten(1)[:, None] - (1 - t)[:, None, None] * known).square().sum(dim=2)  # (B, M)
        guess = torch.softmax(-apart / (2 * t[:, None] ** 2), dim=1) @ known
        return (z - guess.view_as(z)) / t[:, None, None, None]


CAPTIONS = [
    f"a {c} {s} {p}, a {b} background" for c in COLOURS for s in SHAPES for p in PLACES.values() for b in BACKGROUNDS
]


class Oracle(Pipeline):
    """Draws the very latent whose reference it is given; from text alone, the scene that the caption describes.

    What `cut` names it does not see: "text", "reference", or of a caption the "shape". `shuffled` makes it answer with
    another sample's latent and another caption's scene, as a model does whose conditions were mixed up in training.
    """

    def __init__(self, shards: ShardSet, config: Config, cut: Iterable[str] = (), shuffled: bool = False) -> None:
        data = Provenance.of(shards, shards.split("train"), config)
        super().__init__(
            build_model(config, data.widths.text, data.widths.image, data.widths.latent_channels),
            config,
            data,
            step=1234,
        )
        self._cut, self._shuffled = set(cut), shuffled
        samples = [shards.read(ref) for ref in shards.samples]
        self._latents = [torch.from_numpy(sample.latent.astype(np.float32)) for sample in samples]
        self._cls = torch.from_numpy(np.stack([sample.cls for sample in samples]).astype(np.float32))
        self._words = self.encode_prompts(CAPTIONS)[0].flatten(1)  # each has nine words

    def memorised(self, shards: ShardSet) -> Pipeline:
        """The same data with a model that has learned the training latents by heart and looks at no condition."""
        trained = [latent for latent, ref in zip(self._latents, shards.samples, strict=True) if ref.split == "train"]
        memoriser = Memoriser(self.model.config, [self.data.norm.apply(latent) for latent in trained])
        return Pipeline(memoriser, self.config, self.data, self.step)

    def latents(self, conditions: Conditions, noise: Tensor, settings: object = None) -> Tensor:
        return torch.stack([self._answer(conditions, row, noise[row]) for row in range(len(noise))])

    def _answer(self, conditions: Conditions, row: int, noise: Tensor) -> Tensor:
        if conditions.cls is not None and "reference" not in self._cut:
            nearest = int(torch.cdist(conditions.cls[row][None], self._cls).argmin())
            if self._shuffled:
                same_size = [i for i, latent in enumerate(self._latents) if latent.shape == noise.shape]
                nearest = same_size[(same_size.index(nearest) + 1) % len(same_size)]
            if self._latents[nearest].shape == noise.shape:
                return self.data.norm.apply(self._latents[nearest])
        draw = int.from_bytes(hashlib.sha256(noise.numpy().tobytes()).digest()[:4], "big")  # all that noise decides
        caption = draw % len(CAPTIONS)
        if conditions.text is not None and "text" not in self._cut:
            words = conditions.text[row, :9].flatten()
            caption = int(torch.cdist(words[None], self._words).argmin())
            if self._shuffled:
                caption = (caption + 67) % len(CAPTIONS)
        said = CAPTIONS[caption]
        if "shape" in self._cut:
            said = re.sub("|".join(SHAPES), "triangle", said)
        return self.data.norm.apply(self.codec.encode(_scene(said, noise.shape, draw))[0])


def _scene(caption: str, shape: torch.Size, draw: int) -> np.ndarray:
    said = parse_caption(caption)
    size = 0.34 + 0.08 * (draw % 101) / 100
    scene = Scene(
        said.colour,
        said.shape,
        said.position,
        said.background,
        shape[2] * 8,
        shape[1] * 8,
        POSITIONS[said.position],
        size,
        COLOURS[said.colour],
        BACKGROUNDS[said.background],
    )
    return np.array(draw_scene(scene))[None]
