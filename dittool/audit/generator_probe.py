"""One-step generators to try out: as `probe.py` for the other family of models, with the same questions to ask.

B batch · C latent channels
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import nn

from dittool.audit.probe import LARGEST_BUILT, Inputs, ModelProbe, wake
from dittool.config.drift_schema import AnyConfig, DriftConfig, ToyConfig
from dittool.models.build import build_generator, parameter_count
from dittool.models.drift_dit import ClassConditions

_TWIN_DEPTH, _TWIN_HEADS = 2, 2


class GeneratorProbe:
    """Builds the generator of a configuration as often as a rule needs it, always with the same weights."""

    def __init__(self, config: DriftConfig | ToyConfig) -> None:
        self.config = config

    @cached_property
    def parameters(self) -> int:
        """Of the network at its real size."""
        return parameter_count(self.config, 0, 0, 0)

    @property
    def note(self) -> str:
        """For the evidence: what was tried instead of the real size, "" when it was that."""
        if self.parameters <= LARGEST_BUILT:
            return ""
        twin = self._tried.model
        return f" (tried on a twin of depth {twin.depth}, width {twin.width}; the real one has {self.parameters:,} parameters)"

    @cached_property
    def _tried(self) -> DriftConfig | ToyConfig:
        if self.parameters <= LARGEST_BUILT:
            return self.config
        model = self.config.model
        heads = min(_TWIN_HEADS, model.heads)
        width = model.width // model.heads * heads
        hidden = max(1, model.mlp_width * width // model.width)
        smaller = {"depth": min(_TWIN_DEPTH, model.depth), "heads": heads, "width": width, "mlp_width": hidden}
        return self.config.model_copy(update={"model": model.model_copy(update=smaller)})

    def at_real_size(self) -> nn.Module:
        """The network on the meta device: names and shapes, no memory."""
        with torch.device("meta"):
            return build_generator(self.config)

    def fresh(self, seed: int = 0, **changes: object) -> nn.Module:
        """The network at step 0, in evaluation mode; `changes` are keys of `[model]`."""
        config = self._tried.model_copy(update={"model": self._tried.model.model_copy(update=changes)})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_generator(config).eval()

    def awake(self, seed: int = 0, **changes: object) -> nn.Module:
        """The network with everything that begins at zero drawn at random, as if training had opened its gates."""
        model = self.fresh(seed, **changes)
        wake(model, seed)
        return model

    @cached_property
    def shared_awake(self) -> nn.Module:
        """`awake()`, built once for all rules that only run it."""
        return self.awake()

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
