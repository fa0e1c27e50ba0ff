"""Prompt and reference → image: a checkpoint with the encoders that its data were made with."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.load import load_to_draw, require_fit
from dittool.config.architectures import of_kind
from dittool.config.load import config_from_dict, config_to_dict
from dittool.config.schema import Config, SampleSettings
from dittool.console import PythonWarnings
from dittool.data.identity import differences
from dittool.data.patch_storage import FP16, NONE, decode_patches, encode_patches, stored_grid
from dittool.data.provenance import Provenance
from dittool.data.source.images import LARGEST_ASPECT, SHORTEST_SIDE, ImageRefused, fit_to_bucket, open_image, pixels_of
from dittool.devices import as_in_training, device_of_choice, in_parts
from dittool.encoders.cards import EncoderCard
from dittool.encoders.image import load_image_encoder
from dittool.encoders.interfaces import ImageEncoder, LatentCodec, TextEncoder
from dittool.encoders.pretrained import place_of_weights
from dittool.encoders.text import load_text_encoder
from dittool.encoders.vae import load_codec
from dittool.errors import BadDataError, UsageError
from dittool.geometry import LARGEST_AREA, Bucket, nearest_bucket, parse_size, patch_grid
from dittool.models.alignment import drawing_weights
from dittool.models.build import build_model
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
Encoder = TypeVar("Encoder", ImageEncoder, TextEncoder, LatentCodec)


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


class Pipeline:
    """A trained model, ready to draw. Uses the EMA weights."""

    def __init__(self, model: DiT, config: Config, data: Provenance, step: int) -> None:
        self.device = device_of_choice()
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.config, self.data, self.step = config, data, step
        self.buckets = [Bucket(*parse_size(name)) for name in data.card.buckets]
        self.image_patch_size = data.card.image.patch_size
        self.weak: DiT | None = None  # to go away from: `with_weak`

    @staticmethod
    def load(checkpoint: Path) -> Pipeline:
        """Raises `UnsafeFileError` or `BadDataError` for a file that is not one of our checkpoints or exports,
        `UsageError` for a one-step generator.
        """
        content = load_to_draw(checkpoint)
        config = of_kind(
            config_from_dict(content["config"], str(checkpoint)),
            str(checkpoint),
            "prompts and references are drawn and judged with a rectified-flow transformer",
            Config,
        )
        data = Provenance.from_json(content["data"], str(checkpoint))
        model = build_model(config, data.widths.text, data.widths.image, data.widths.latent_channels)
        weights = drawing_weights(content["ema"])
        require_fit(weights, model.state_dict(), f"{checkpoint}: ema")
        model.load_state_dict(weights)
        return Pipeline(model, config, data, content["step"])

    def with_weak(self, checkpoint: Path | str) -> Pipeline:
        """The same, drawing away from a weak model by `cfg_weak`: an earlier checkpoint of the run, or a smaller or
        less trained run on the same data; autoguidance, arXiv 2406.02507.

        Raises `UsageError` and `BadDataError` as `load` does, and for a model of other data.
        """
        path = resolve_checkpoint(Path(checkpoint), optional=False)
        other, guided = Pipeline.load(path), copy(self)
        _require_same_latents(self, other, str(path))
        guided.weak = other.model
        return guided

    @property
    def settings(self) -> SampleSettings:
        """The run's own sampling settings."""
        return SampleSettings.of(self.config)

    @cached_property
    def codec(self) -> LatentCodec:
        return _checked(self.data.card.vae, load_codec(place_of_weights(self.data.card.vae.id)))

    @cached_property
    def text_encoder(self) -> TextEncoder:
        card = self.data.card.text
        return _checked(card, load_text_encoder(place_of_weights(card.id), card.dtype, card.max_tokens))

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        card = self.data.card.image
        return _checked(card, load_image_encoder(place_of_weights(card.id), card.dtype))

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
        return self.data.norm.apply(self.codec.encode(fitted[None]))[0]

    def reference_from_pixels(self, pixels: np.ndarray) -> list[Reference]:
        """References from bucketed images of one size, (B, H, W, 3) uint8."""
        features, stored_as = self.image_encoder.encode(pixels), self.data.card.patch_storage
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
        return stored_grid(patch_grid(bucket.width, bucket.height, self.image_patch_size), self.data.card.patch_storage)

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
            patches = reference.patches[None] if self.config.model.patches else None
            single = Conditions(text, mask, reference.cls[None], patches, reference.grid)
        return single.map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def _require_addable(self, reference: Reference, bucket: Bucket) -> None:
        cell = self.data.card.vae.stride * self.config.model.patch_size
        tokens = bucket.height // cell, bucket.width // cell
        if self.config.model.patch_fusion == "added" and reference.grid != tokens:
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
        multiple = self.data.card.vae.stride * self.config.model.patch_size
        if size[0] % multiple or size[1] % multiple:
            raise UsageError(
                f"--size {size[0]}x{size[1]}: sides must be multiples of {multiple}",
                f"this model was trained at {', '.join(b.name for b in self.buckets)}",
            )
        return Bucket(*size)

    def noise(self, bucket: Bucket, seeds: list[int]) -> Tensor:
        """(B, C, H, W) N(0, 1), one seed a sample: a sample does not depend on its neighbours in the batch."""
        stride = self.data.card.vae.stride
        shape = (self.data.widths.latent_channels, bucket.height // stride, bucket.width // stride)
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
            with as_in_training(self.device, self.config.train.precision):
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
        values = self.data.norm.invert(latents)
        return np.concatenate(in_parts(lambda rows: self.codec.decode(values[rows]), len(values), _LARGEST_BATCH))

    def decode_drawn(self, latents: Tensor) -> np.ndarray:
        """`decode` of what the model has drawn. Raises `BadDataError` when that holds NaN or infinity."""
        if bad := int((~torch.isfinite(latents)).flatten(1).any(dim=1).sum()):
            raise BadDataError(
                f"step {self.step}: {bad} of {len(latents)} drawn latents hold NaN or infinity",
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
        chosen, strength = self._settings_with(settings), require_strength(strength, init is not None)
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

    def _settings_with(self, changes: dict[str, object]) -> SampleSettings:
        """The run's own with these keys of `[sample]` changed. Raises `UsageError` for an unknown key and a value
        that it cannot have.
        """
        if not changes:
            return self.settings
        tree = config_to_dict(self.config)
        tree["sample"] |= changes
        return SampleSettings.of(of_kind(config_from_dict(tree, "the call"), "the call", "a pipeline samples", Config))


def _require_same_latents(pipeline: Pipeline, weak: Pipeline, source: str) -> None:
    """Raises `BadDataError` unless a weak model can be given what the model is given, and answers in its latents."""
    ours, theirs = pipeline.data, weak.data
    patch_sizes = weak.config.model.patch_size, pipeline.config.model.patch_size
    same_data = ours.identity_hash == theirs.identity_hash or ours.is_same_data(theirs)
    reasons = {
        "it was trained on other features: "
        + (
            "; ".join(differences(theirs.identity.to_json(), ours.identity.to_json())) or "the identity hashes differ"
        ): (same_data),
        "its latents are normalised otherwise": ours.norm == theirs.norm,
        "it reads a reference's patches and this one does not": (
            pipeline.config.model.patches or not weak.config.model.patches
        ),
        f"its patch size {patch_sizes[0]} does not divide this one's {patch_sizes[1]}": (
            patch_sizes[1] % patch_sizes[0] == 0
        ),
        f"it adds patches to tokens of {patch_sizes[0]} cells, and this one's have {patch_sizes[1]}": (
            weak.config.model.patch_fusion == "attended" or patch_sizes[0] == patch_sizes[1]
        ),
    }
    if wrong := [reason for reason, fits in reasons.items() if not fits]:
        raise BadDataError(
            f"{source} cannot be the weak model: {'; '.join(wrong)}",
            "name an earlier checkpoint of this run, or a smaller model of the same shards",
        )


def _checked(trained: EncoderCard, encoder: Encoder) -> Encoder:
    """Refuses an encoder whose weights are not those that made the training features."""
    found = encoder.card
    if trained.weights != found.weights:
        raise BadDataError(
            f"encoder '{found.id}' has weights {found.weights[:12]}…, this checkpoint was trained with"
            f" {trained.weights[:12]}…",
            "restore the encoder's weights of that time, or embed and train again with these",
        )
    return encoder
