"""One-step generators to try out: as `probe.py` for the other family of models, with the same questions to ask.

B batch · C latent channels
"""

from __future__ import annotations

import torch
from torch import nn

from dittool.audit.specimens.ours import TWIN_DEPTH, TWIN_HEADS, Inputs, ModelProbe, Probe
from dittool.config.architectures import AnyConfig
from dittool.config.drift_schema import DriftConfig, ToyConfig
from dittool.models.build import build_generator, build_toy
from dittool.models.drift_dit import ClassConditions


class GeneratorProbe(Probe):
    """The one-step generators to try out."""

    def __init__(self, config: DriftConfig | ToyConfig) -> None:
        self.config = config

    def _built(self, config: DriftConfig | ToyConfig) -> nn.Module:
        return build_toy(config) if config.model.arch == "drift-toy" else build_generator(config)

    def _smaller(self) -> dict[str, int]:
        model = self.config.model
        heads = min(TWIN_HEADS, model.heads)
        width = model.width // model.heads * heads
        hidden = max(1, model.mlp_width * width // model.width)
        return {"depth": min(TWIN_DEPTH, model.depth), "heads": heads, "width": width, "mlp_width": hidden}

    def inputs(self, batch: int = 2, seed: int = 0) -> Inputs:
        """Random noise (as z), guidance scales (as t), classes and styles."""
        generator, model = torch.Generator().manual_seed(seed), self.config.model
        noise = torch.randn(batch, model.channels, *model.cells, generator=generator)
        labels = torch.randint(model.classes, (batch,), generator=generator)
        style = torch.randint(model.style_codebook, (batch, model.style_tokens), generator=generator)
        return Inputs(noise, 1 + 3 * torch.rand(batch, generator=generator), ClassConditions(labels, style))


def probe_of(config: AnyConfig, dims: dict[str, int] | None) -> ModelProbe | GeneratorProbe:
    """The probe for a configuration's family. `dims`: the widths that the first family takes from its data."""
    return ModelProbe(config, dims) if config.model.arch == "dit" else GeneratorProbe(config)
