"""Class and guidance scale → image in one evaluation, as a pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from dittool.data.normalisation import LatentNorm
from dittool.encoders.interfaces import LatentCodec
from dittool.export.loaded.encoders import loaded_codec, moved
from dittool.sampling.one_step_drawing import OneStepDrawing, OneStepFacts


class DriftPipeline(DiffusionPipeline):
    """Draws images of classes, each in one evaluation of the network.

    Args:
        transformer: the model; `transformer.generator` is what draws.
        facts: of the model and its data (`OneStepFacts`).
        encoders: the cards of the encoders that its data were made with: their ids, revisions and hashes.
    """

    def __init__(
        self, transformer: ModelMixin, facts: dict[str, Any] | None = None, encoders: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)
        self.register_to_config(facts=facts, encoders=encoders)

    @cached_property
    def codec(self) -> LatentCodec:
        """From latents to pixels; loaded when it is first needed."""
        return loaded_codec(self.config["encoders"])

    @torch.inference_mode()
    def __call__(
        self,
        class_labels: str | int | Sequence[str | int] | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[list[Any]]:
        """The pictures that `dit sample --class` draws of the same arguments; picture i of a class has seed + i.

        Args:
            class_labels: names or numbers of classes; None: of every class.
            guidance_scale: alpha, 1 is none; None: the model's own.
        """
        drawing = _LoadedDrawing(self)
        pictures = drawing(class_labels, guidance_scale, num_images_per_prompt, seed)
        return ImagePipelineOutput(pictures) if return_dict else (pictures,)


class _LoadedDrawing(OneStepDrawing):
    """Drawing with what a pipeline of diffusers has loaded."""

    def __init__(self, pipeline: DriftPipeline) -> None:
        held = dict(pipeline.config["facts"])
        norm, classes = LatentNorm.from_json(held.pop("norm"), "model_index.json"), tuple(held.pop("classes"))
        facts, transformer = OneStepFacts(norm=norm, classes=classes, **held), pipeline.transformer
        super().__init__(transformer.generator, facts, transformer.device)
        self._pipeline = pipeline

    @property
    def codec(self) -> LatentCodec:
        return moved(self._pipeline.codec, self.device)

    def latents(self, labels: list[int], alpha: float, seeds: list[int]) -> Tensor:
        """Of a transformer in half precision under autocast, as it was trained."""
        dtype = self._pipeline.transformer.dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return super().latents(labels, alpha, seeds)
