"""Prompt and reference → image as a pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from dittool.config.schema import SampleSettings
from dittool.data.normalisation import LatentNorm
from dittool.encoders.interfaces import ImageEncoder, LatentCodec, TextEncoder
from dittool.errors import UsageError
from dittool.export.loaded.encoders import Encoders, moved
from dittool.sampling.drawing import Drawing, DrawingFacts, Picture


class FlowPipeline(DiffusionPipeline):
    """Draws images from a prompt, a reference image, or both.

    Args:
        transformer: the model; `transformer.dit` is what draws.
        scheduler: says the shift of the time grid; the steps are taken by `SOLVERS`.
        facts: of the model and its data (`DrawingFacts`).
        sample: its own sampling settings (`SampleSettings`), all but the shift.
        encoders: the cards of the encoders that its data were made with: their ids, revisions and hashes.
    """

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: SchedulerMixin,
        facts: dict[str, Any] | None = None,
        sample: dict[str, Any] | None = None,
        encoders: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(facts=facts, sample=sample, encoders=encoders)
        self._encoders = Encoders(encoders or {})

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        reference: Picture | None = None,
        num_images_per_prompt: int = 1,
        seed: int = 0,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        image: Picture | None = None,
        strength: float | None = None,
        return_dict: bool = True,
        **settings: Any,
    ) -> ImagePipelineOutput | tuple[list[Any]]:
        """The pictures that `dit sample` draws of the same arguments; picture i of a prompt has seed + i.

        Args:
            prompt: or a list of them, whose pictures follow each other.
            reference: an image of any shape, as a path, a PIL image or (H, W, 3) uint8: what to draw like.
            height, width: in pixels, both or neither; by default those of `image` or `reference`, else square.
            num_inference_steps, guidance_scale: `steps` and `cfg_text` in the words of diffusers.
            image: where drawing begins instead of at noise; `strength`: how much of it is drawn anew, 0 to 1.
            settings: other fields of `SampleSettings`: solver, cfg_dino, guidance, guidance_interval, …
        """
        words = {"steps": num_inference_steps, "cfg_text": guidance_scale}
        settings |= {name: value for name, value in words.items() if value is not None}
        if (height is None) != (width is None):
            raise UsageError(f"height {height} and width {width}: one without the other", "give both or neither")
        size = None if height is None or width is None else (width, height)
        drawing = _LoadedDrawing(self)
        pictures = drawing(
            prompt, reference, num_images_per_prompt, seed, size, negative_prompt, image, strength, **settings
        )
        return ImagePipelineOutput(pictures) if return_dict else (pictures,)


class _LoadedDrawing(Drawing):
    """Drawing with what a pipeline of diffusers has loaded."""

    def __init__(self, pipeline: FlowPipeline) -> None:
        held = dict(pipeline.config["facts"])
        norm, buckets = LatentNorm.from_json(held.pop("norm"), "model_index.json"), tuple(held.pop("buckets"))
        facts, transformer = DrawingFacts(norm=norm, buckets=buckets, **held), pipeline.transformer
        super().__init__(transformer.dit, facts, transformer.device)
        self._pipeline = pipeline

    @property
    def settings(self) -> SampleSettings:
        shift = {"shift": self._pipeline.scheduler.config.shift}
        return SampleSettings(**{**shift, **self._pipeline.config["sample"]})  # "per-bucket" stands in `sample`

    def settings_with(self, changes: Mapping[str, object]) -> SampleSettings:
        return self.settings.changed(changes)

    @property
    def codec(self) -> LatentCodec:
        return moved(self._pipeline._encoders.vae, self.device)

    @property
    def text_encoder(self) -> TextEncoder:
        return moved(self._pipeline._encoders.text, self.device)

    @property
    def image_encoder(self) -> ImageEncoder:
        return moved(self._pipeline._encoders.image, self.device)

    def latents(self, *inputs: Any, **named: Any) -> Tensor:
        """Of a transformer in half precision under autocast, as it was trained."""
        dtype = self._pipeline.transformer.dtype
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return super().latents(*inputs, **named)
