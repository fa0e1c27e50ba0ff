"""What a one-step generator is judged by on the way: what it draws beside real samples, always from the same noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dittool.config.drift_schema import DriftConfig
from dittool.families.drift_data import ClassSamples
from dittool.models.drift_dit import ClassConditions
from dittool.objective.energy import energy_distance
from dittool.seeding import derive_seed

_LARGEST_SET = 256  # real samples
_BATCH = 64


class LatentEvaluation:
    """Energy distance between real latents and as many drawn ones of the same classes, without guidance (α = 1)."""

    def __init__(self, config: DriftConfig, samples: ClassSamples) -> None:
        self._config = config
        count = min(len(samples), _LARGEST_SET)
        numbers = torch.arange(count)
        self.real = samples.latents(numbers)  # (n, C, h, w)
        self.labels = torch.tensor([samples.label(number) for number in range(count)])

    def figures(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        drawn = self._draw(model, device)
        return {"eval_energy": energy_distance(drawn.flatten(1), self.real.flatten(1))}

    @torch.inference_mode()
    def _draw(self, model: nn.Module, device: torch.device) -> Tensor:
        config, generator = self._config.model, torch.Generator().manual_seed(derive_seed("latent evaluation"))
        noise = torch.randn(self.real.shape, generator=generator)
        style = torch.randint(config.style_codebook, (len(noise), config.style_tokens), generator=generator)
        parts = []
        for start in range(0, len(noise), _BATCH):
            rows = slice(start, start + _BATCH)
            z, labels, words = (each[rows].to(device) for each in (noise, self.labels, style))
            parts.append(model(z, torch.ones(len(z), device=device), ClassConditions(labels, words)).float().cpu())
        return torch.cat(parts)
