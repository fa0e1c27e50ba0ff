"""Prompt and reference → image, from a checkpoint: its weights, its settings, and the encoders that its data were made
with.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from functools import cached_property
from pathlib import Path

from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.load import require_fit
from dittool.ckpt.to_draw import load_to_draw
from dittool.config.architectures import of_kind
from dittool.config.load import config_from_dict, config_to_dict
from dittool.config.schema import Config, SampleSettings
from dittool.data.identity import differences
from dittool.data.provenance import Provenance
from dittool.devices import device_of_choice
from dittool.encoders.image import load_image_encoder
from dittool.encoders.interfaces import ImageEncoder, LatentCodec, TextEncoder, same_weights
from dittool.encoders.pretrained import place_of_weights
from dittool.encoders.text import load_text_encoder
from dittool.encoders.vae import load_codec
from dittool.errors import BadDataError
from dittool.models.alignment import drawing_weights
from dittool.models.build import build_model
from dittool.models.dit import DiT
from dittool.sampling.drawing import Drawing, DrawingFacts
from dittool.sampling.for_diffusers import DiffusersParts, parts


class Pipeline(Drawing):
    """A trained model, ready to draw. Uses the EMA weights, of an export those that it holds."""

    weights = "ema"  # which they are

    def __init__(self, model: DiT, config: Config, data: Provenance, step: int) -> None:
        device = device_of_choice()
        super().__init__(model.to(device).eval().requires_grad_(False), facts_of(config, data, step), device)
        self.config, self.data, self.step = config, data, step

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
        pipeline = Pipeline(model, config, data, content["step"])
        pipeline.weights = content.get("weights", pipeline.weights)
        return pipeline

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
        return same_weights(self.data.card.vae, load_codec(place_of_weights(self.data.card.vae.id)))

    @cached_property
    def text_encoder(self) -> TextEncoder:
        card = self.data.card.text
        return same_weights(
            card, load_text_encoder(place_of_weights(card.id), card.dtype, card.max_tokens, layer=card.layer)
        )

    @cached_property
    def image_encoder(self) -> ImageEncoder:
        card = self.data.card.image
        return same_weights(card, load_image_encoder(place_of_weights(card.id), card.dtype))

    def for_diffusers(self) -> DiffusersParts:
        """What an export says of it."""
        return parts("flow", "dit.", self.model.config, self.facts, self.settings.model_dump())

    def settings_with(self, changes: Mapping[str, object]) -> SampleSettings:
        """The run's own with these keys of `[sample]` changed. Raises `UsageError` for an unknown key and a value
        that it cannot have.
        """
        if not changes:
            return self.settings
        tree = config_to_dict(self.config)
        tree["sample"] |= changes
        return SampleSettings.of(of_kind(config_from_dict(tree, "the call"), "the call", "a pipeline samples", Config))


def facts_of(config: Config, data: Provenance, step: int) -> DrawingFacts:
    """Of a run and its data."""
    card, model = data.card, config.model
    return DrawingFacts(
        step=step,
        precision=config.train.precision,
        buckets=card.buckets,
        patch_size=model.patch_size,
        reads_patches=model.patches,
        patch_fusion=model.patch_fusion,
        image_patch_size=card.image.patch_size,
        patch_storage=card.patch_storage,
        latent_channels=data.widths.latent_channels,
        stride=card.vae.stride,
        norm=data.norm,
    )


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
