"""Prompt and reference → image: a model with the encoders that its data were made with, wherever they come from.

`sampling/pipeline.py` draws so from a checkpoint, `export/loaded` from a folder of diffusers, in which the source of
this file travels: what it imports travels too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dittool.config.schema import SampleSettings
from dittool.console import PythonWarnings
from dittool.data.normalisation import LatentNorm
from dittool.data.patch_storage import FP16, NONE, decode_patches, encode_patches, stored_grid
from dittool.data.source.images import LARGEST_ASPECT, SHORTEST_SIDE, ImageRefused, fit_to_bucket, open_image, pixels_of
from dittool.devices import as_in_training, in_parts
from dittool.encoders.interfaces import ImageEncoder, LatentCodec, TextEncoder
from dittool.errors import BadDataError, UsageError
from dittool.geometry import LARGEST_AREA, Bucket, nearest_bucket, parse_size, patch_grid
from dittool.models.conditioning import Conditions
from dittool.models.dit import DiT
from dittool.objective.flow import interpolate
from dittool.sampling.arguments import require_prompts, require_seeds, require_size, require_strength
from dittool.sampling.latents import TextFeatures, sample_latents
from dittool.sampling.prompts import warn_of_prompt
from dittool.seeding import derive_seed

AT_ONCE = 4  # pictures of one prompt that are drawn together: rounding depends on it, so one number for all who draw
_LARGEST_BATCH = 16

Picture = Path | str | Image.Image | np.ndarray  # an array: (H, W, 3) uint8


@dataclass(frozen=True)
class DrawingFacts:
    """What drawing has to know of a model and of its data, as plain values."""

    step: int  # of the training
    precision: str  # of the training: "fp32" or "bf16"
    buckets: tuple[str, ...]  # "WIDTHxHEIGHT"
    patch_size: int  # latent cells along one side of a token
    reads_patches: bool  # of a reference, beside its CLS token
    patch_fusion: str  # "attended" or "added"
    image_patch_size: int  # pixels along one side of the image encoder's patch
    patch_storage: str  # how the patches of the training were stored
    latent_channels: int
    stride: int  # pixels along one side of a latent cell
    norm: LatentNorm


@dataclass(frozen=True)
class Reference:
    """A reference image's features."""

    cls: Tensor  # (image width,)
    patches: Tensor  # (N, image width), row-major, as the shards would give them back
    grid: tuple[int, int]  # (rows, columns)
    bucket: Bucket


def named_pixels(image: Picture) -> np.ndarray:
    """An image that somebody wants to draw from, (H, W, 3) uint8; an array is (H, W), (H, W, 3) or (H, W, 4) uint8.
    Raises `BadDataError` with what can be read, `UsageError` for an array of another kind.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)):
            raise UsageError(
                f"an image as an array of shape {image.shape} and type {image.dtype}",
                "give (H, W, 3) uint8, of 0 to 255: (255 * array).round().astype('uint8') for one of 0 to 1",
            )
        image = Image.fromarray(image)
    try:
        return pixels_of(image) if isinstance(image, Image.Image) else open_image(Path(image)).pixels
    except ImageRefused as refused:
        kinds = (
            f"JPEG, PNG, WebP, GIF, BMP or TIFF of at least {SHORTEST_SIDE} pixels a side and at most"
            f" {LARGEST_ASPECT:g}:1"
        )
        raise BadDataError(refused.message, f"crop or convert it, or name another: {kinds}") from refused


class Drawing(ABC):
    """A trained model and its encoders, ready to draw."""

    weak: DiT | None = None  # to go away from by `cfg_weak`

    def __init__(self, model: DiT, facts: DrawingFacts, device: torch.device) -> None:
        self.model, self.facts, self.device = model, facts, device
        self.buckets = [Bucket(*parse_size(name)) for name in facts.buckets]
        self.image_patch_size = facts.image_patch_size

    @property
    @abstractmethod
    def codec(self) -> LatentCodec:
        """That of the data; the two below likewise."""

    @property
    @abstractmethod
    def text_encoder(self) -> TextEncoder: ...

    @property
    @abstractmethod
    def image_encoder(self) -> ImageEncoder: ...

    @property
    @abstractmethod
    def settings(self) -> SampleSettings:
        """The model's own sampling settings."""

    @abstractmethod
    def settings_with(self, changes: Mapping[str, object]) -> SampleSettings:
        """The same with these changed. Raises `UsageError` for what is no setting."""

    def encode_reference(self, image: Picture) -> Reference:
        """The features of a reference image of any shape, bucketed as the training images were. Raises
        `BadDataError`.
        """
        pixels = named_pixels(image)
        fitted, _ = fit_to_bucket(pixels, self.bucket_of(pixels))
        return self.reference_from_pixels(fitted[None])[0]

    def bucket_of(self, pixels: np.ndarray) -> Bucket:
        """The bucket that training would have put an image (H, W, 3) into."""
        return nearest_bucket(pixels.shape[1], pixels.shape[0], self.buckets)

    def encode_init(self, pixels: np.ndarray, bucket: Bucket) -> Tensor:
        """Normalised latents (C, h, w) of an image (H, W, 3) uint8 of any shape, bucketed: where sampling may begin
        instead of at noise.
        """
        fitted, _ = fit_to_bucket(pixels, bucket)
        return self.facts.norm.apply(self.codec.encode(fitted[None]))[0]

    def reference_from_pixels(self, pixels: np.ndarray) -> list[Reference]:
        """References from bucketed images of one size, (B, H, W, 3) uint8."""
        features, stored_as = self.image_encoder.encode(pixels), self.facts.patch_storage
        storage = FP16 if stored_as == NONE else stored_as  # of a model that reads none
        bucket = Bucket(width=pixels.shape[2], height=pixels.shape[1])
        full_grid, grid = patch_grid(bucket.width, bucket.height, self.image_patch_size), self.reference_grid(bucket)
        stored = [encode_patches(patches.numpy(), full_grid, storage) for patches in features.patches]
        as_trained = [torch.from_numpy(decode_patches(patches, storage)) for patches in stored]
        return [Reference(cls, patches, grid, bucket) for cls, patches in zip(features.cls, as_trained, strict=True)]

    def reference_grid(self, bucket: Bucket) -> tuple[int, int]:
        """(rows, columns) of a reference's patches as the model was trained on them: pooled ones fill a smaller
        grid.
        """
        return stored_grid(patch_grid(bucket.width, bucket.height, self.image_patch_size), self.facts.patch_storage)

    def encode_prompts(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Text features (B, L, D), padded, and their mask (B, L)."""
        hidden = [features.hidden for features in self.text_encoder.encode(prompts)]
        lengths = torch.tensor([len(row) for row in hidden])
        text = torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True)
        return text, torch.arange(text.shape[1])[None] < lengths[:, None]

    def conditions(self, prompt: str | None, reference: Reference | None, bucket: Bucket, count: int) -> Conditions:
        """`count` times the same prompt and reference; either may be absent. Raises `UsageError` for a reference
        whose patches cannot be added to the tokens of this bucket.
        """
        text, mask = (None, None) if prompt is None else self.encode_prompts([prompt])
        if reference is None:
            single = Conditions(text, mask, None, None, self.reference_grid(bucket))
        else:
            self._require_addable(reference, bucket)
            patches = reference.patches[None] if self.facts.reads_patches else None
            single = Conditions(text, mask, reference.cls[None], patches, reference.grid)
        return single.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def _require_addable(self, reference: Reference, bucket: Bucket) -> None:
        cell = self.facts.stride * self.facts.patch_size
        tokens = bucket.height // cell, bucket.width // cell
        if self.facts.patch_fusion == "added" and reference.grid != tokens:
            raise UsageError(
                f"a reference of {reference.bucket.name} has {reference.grid[0]}×{reference.grid[1]} patches, and a"
                f" picture of {bucket.name} has {tokens[0]}×{tokens[1]} tokens: this model adds one to each",
                f"draw at the reference's size (leave --size and --init out, or --size {reference.bucket.name}), or"
                " crop the reference to that of the picture",
            )

    def sample_size(
        self, size: tuple[int, int] | None, reference: Reference | None, init: np.ndarray | None = None
    ) -> Bucket:
        """The size to draw at: as asked for, else the bucket of the image to begin with, else the reference's, else the
        most square one.

        Raises `UsageError` for a size that is not whole tokens or too large.
        """
        if size is None:
            if init is not None:
                return self.bucket_of(init)
            return reference.bucket if reference else nearest_bucket(1, 1, self.buckets)
        if size[0] * size[1] > LARGEST_AREA:
            raise UsageError(
                f"--size {size[0]}x{size[1]}: {size[0] * size[1]:,} pixels, at most {LARGEST_AREA:,}",
                "choose a smaller size",
            )
        multiple = self.facts.stride * self.facts.patch_size
        if size[0] % multiple or size[1] % multiple:
            raise UsageError(
                f"--size {size[0]}x{size[1]}: sides must be multiples of {multiple}",
                f"this model was trained at {', '.join(b.name for b in self.buckets)}",
            )
        return Bucket(*size)

    def noise(self, bucket: Bucket, seeds: list[int]) -> Tensor:
        """(B, C, H, W) N(0, 1), one seed a sample: a sample does not depend on its neighbours in the batch."""
        stride = self.facts.stride
        shape = (self.facts.latent_channels, bucket.height // stride, bucket.width // stride)
        return torch.stack(
            [
                torch.randn(shape, generator=torch.Generator().manual_seed(derive_seed("sampling", seed)))
                for seed in seeds
            ]
        )

    def latents(
        self,
        conditions: Conditions,
        noise: Tensor,
        settings: SampleSettings | None = None,
        init: Tensor | None = None,
        strength: float = 1.0,
        negative: TextFeatures | None = None,
    ) -> Tensor:
        """Normalised latents for each row of noise; with `init` (C, h, w) on the way from it: z_t = (1 − t)·init +
        t·noise at t = strength. `negative` is of a negative prompt, for each row.
        """
        z = noise if init is None else interpolate(init, noise, noise.new_tensor([strength]))

        def drawn(rows: slice) -> Tensor:
            part = conditions.map(lambda tensor: tensor[rows].to(self.device))
            avoided = None if negative is None else negative.rows(rows, self.device)
            begin, chosen = z[rows].to(self.device), settings or self.settings
            with as_in_training(self.device, self.facts.precision):
                made = sample_latents(self.model, part, begin, chosen, strength, avoided, self.weak)
            return made.cpu()

        return torch.cat(in_parts(drawn, len(z), _LARGEST_BATCH))

    def pixels(
        self,
        conditions: Conditions,
        bucket: Bucket,
        seeds: list[int],
        settings: SampleSettings,
        init: Tensor | None = None,
        strength: float = 1.0,
        negative: TextFeatures | None = None,
    ) -> np.ndarray:
        """(len(seeds), H, W, 3) uint8, drawn from the conditions, and the negative prompt, of one sample. Raises
        `BadDataError` when the model draws NaN or infinity.
        """
        repeated = conditions.map(lambda tensor: tensor.expand(len(seeds), *tensor.shape[1:]))
        avoided = None if negative is None else negative.expand(len(seeds))
        return self.decode_drawn(self.latents(repeated, self.noise(bucket, seeds), settings, init, strength, avoided))

    def decode(self, latents: Tensor) -> np.ndarray:
        """Normalised latents (B, C, H, W) → pixels (B, 8·H, 8·W, 3) uint8."""
        values = self.facts.norm.invert(latents)
        return np.concatenate(in_parts(lambda rows: self.codec.decode(values[rows]), len(values), _LARGEST_BATCH))

    def decode_drawn(self, latents: Tensor) -> np.ndarray:
        """`decode` of what the model has drawn. Raises `BadDataError` when that holds NaN or infinity."""
        if bad := int((~torch.isfinite(latents)).flatten(1).any(dim=1).sum()):
            raise BadDataError(
                f"step {self.facts.step}: {bad} of {len(latents)} drawn latents hold NaN or infinity",
                "audit it: dit audit CHECKPOINT",
            )
        return self.decode(latents)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        reference: Picture | Reference | None = None,
        count: int = 1,
        seed: int = 0,
        size: tuple[int, int] | str | None = None,
        negative: str | None = None,
        init: Picture | None = None,
        strength: float | None = None,
        **settings: object,
    ) -> list[Image.Image]:
        """`count` pictures of each prompt, of a reference, or of both, as `dit sample` draws them. Picture i of a
        prompt has seed + i.

        Args:
            prompt: or a list of them, whose pictures follow each other.
            reference, init: a path, a PIL image or (H, W, 3) uint8. `init` is where drawing begins instead of at noise.
            size: (width, height) in pixels or "WxH".
            negative: what to draw away from.
            strength: how much of `init` is drawn anew, 0 to 1.
            settings: keys of `[sample]` (steps, solver, cfg_text, cfg_dino, guidance, …: docs/sampling.md); what is
            not given is the run's own.

        Raises `UsageError` for what cannot be meant, `BadDataError` for an image that cannot be read and a model that
        draws NaN.
        """
        prompts = require_prompts(prompt, reference is not None)
        avoiding = [] if negative is None else require_prompts(negative, True)[:1]
        chosen, strength = self.settings_with(settings), require_strength(strength, init is not None)
        seeds = require_seeds(count, seed)
        for words in (*prompts, *avoiding):
            warn_of_prompt(words, self.text_encoder, PythonWarnings())
        avoided = TextFeatures(*self.encode_prompts(avoiding)) if avoiding else None
        seen = reference if reference is None or isinstance(reference, Reference) else self.encode_reference(reference)
        begin = None if init is None else named_pixels(init)
        bucket = self.sample_size(require_size(size), seen, begin)
        latent = None if begin is None else self.encode_init(begin, bucket)
        drawn = []
        each: list[str | None] = [*prompts] or [None]
        for prompt_or_none in each:
            conditions = self.conditions(prompt_or_none, seen, bucket, 1)
            for start in range(0, count, AT_ONCE):
                batch = seeds[start : start + AT_ONCE]
                drawn += list(self.pixels(conditions, bucket, batch, chosen, latent, strength, avoided))
        return [Image.fromarray(picture) for picture in drawn]
