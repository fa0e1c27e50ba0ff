"""One-step generation: a class, a guidance scale and a seed become an image in one evaluation of the network.

Image i has seed + i and depends on nothing else, so that one of several can be drawn again alone, but for rounding.
`sampling/one_step.py` draws so from a checkpoint, `export/loaded` from a folder of diffusers, in which the source of
this file travels: what it imports travels too.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dittool.data.normalisation import LatentNorm
from dittool.devices import as_in_training, in_parts
from dittool.encoders.interfaces import LatentCodec
from dittool.errors import UsageError, listed
from dittool.models.drift_dit import ClassConditions, DriftDiT
from dittool.sampling.arguments import require_seeds
from dittool.seeding import derive_seed

_BATCH = 32


@dataclass(frozen=True)
class OneStepFacts:
    """What drawing has to know of a generator and of its data, as plain values."""

    step: int  # of the training
    precision: str  # of the training: "fp32" or "bf16"
    classes: tuple[str, ...]  # their names, by number
    alpha: float  # guidance scale where none is asked for
    alpha_max: float  # largest of the training
    norm: LatentNorm


class OneStepDrawing(ABC):
    """A trained generator, ready to draw."""

    def __init__(self, model: DriftDiT, facts: OneStepFacts, device: torch.device) -> None:
        self.model, self.facts, self.device = model, facts, device

    @property
    @abstractmethod
    def codec(self) -> LatentCodec:
        """That of the data."""

    def label(self, name: str) -> int:
        """The number of a class given by its name or number. Raises `UsageError` with the nearest name."""
        if name in self.facts.classes:
            return self.facts.classes.index(name)
        if name.isdecimal() and int(name) < len(self.facts.classes):
            return int(name)
        close = difflib.get_close_matches(name, self.facts.classes, n=1)
        shown = listed(self.facts.classes, most=8)
        guess = f"did you mean '{close[0]}'? " if close else ""
        raise UsageError(
            f"--class {name}: not one of the {len(self.facts.classes)} classes ({shown})",
            f"{guess}give a name, or a number from 0",
        )

    def guidance_scale(self, alpha: float | None) -> float:
        """The run's own, or the wanted one. Raises `UsageError` outside of what was trained."""
        alpha = self.facts.alpha if alpha is None else alpha
        if not 1 <= alpha <= self.facts.alpha_max:
            largest = self.facts.alpha_max
            raise UsageError(
                f"--alpha {alpha:g}: trained were scales from 1 to {largest:g}", "choose one between; 1 is no guidance"
            )
        return alpha

    @torch.inference_mode()
    def latents(self, labels: list[int], alpha: float, seeds: list[int]) -> Tensor:
        """Normalised latents (n, C, h, w), one evaluation each."""

        def drawn(rows: slice) -> Tensor:
            noise, style = self._draws(seeds[rows])
            conditions = ClassConditions(torch.tensor(labels[rows], device=self.device), style.to(self.device))
            scales = torch.full((len(noise),), alpha, device=self.device)
            with as_in_training(self.device, self.facts.precision):
                made = self.model(noise.to(self.device), scales, conditions)
            return made.float().cpu()

        return torch.cat(in_parts(drawn, len(seeds), _BATCH))

    def decode(self, latents: Tensor) -> np.ndarray:
        """Normalised latents → pixels (n, H, W, 3) uint8."""
        values = self.facts.norm.invert(latents)
        return np.concatenate(in_parts(lambda rows: self.codec.decode(values[rows]), len(values), _BATCH))

    def __call__(
        self,
        label: str | int | Sequence[str | int] | None = None,
        alpha: float | None = None,
        count: int = 1,
        seed: int = 0,
        **others: object,
    ) -> list[Image.Image]:
        """`count` pictures of each class (None: of every class), as `dit sample --class` draws them. Picture i of a
        class has seed + i.

        Args:
            label: name or number of a class, or a list of them.
            alpha: guidance scale; None: the run's own.

        Raises `UsageError` for what cannot be meant.
        """
        if others:
            raise UsageError(
                f"{', '.join(others)}: no effect on a one-step generator, which knows classes and neither prompts nor"
                " references",
                'for example: pipe("red-circle", alpha=1.5, count=4)',
            )
        chosen = label if isinstance(label, (list, tuple)) else self.facts.classes if label is None else [label]
        seeds, scale = require_seeds(count, seed), self.guidance_scale(alpha)
        drawn: list[Image.Image] = []
        for number in [self.label(str(name)) for name in chosen]:
            for batch in batches_of_seeds(seeds[0], count):
                drawn += map(Image.fromarray, self.decode(self.latents([number] * len(batch), scale, batch)))
        return drawn

    def _draws(self, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Noise (n, C, h, w) and style (n, S): one seed a sample."""
        config = self.model.config
        generators = [torch.Generator().manual_seed(derive_seed("one step", seed)) for seed in seeds]
        noise = torch.stack(
            [torch.randn(config.channels, *config.cells, generator=generator) for generator in generators]
        )
        return noise, torch.stack(
            [
                torch.randint(config.style_codebook, (config.style_tokens,), generator=generator)
                for generator in generators
            ]
        )


def batches_of_seeds(first: int, count: int) -> list[list[int]]:
    """The seeds of images that are drawn together."""
    return [list(range(start, min(start + _BATCH, first + count))) for start in range(first, first + count, _BATCH)]
