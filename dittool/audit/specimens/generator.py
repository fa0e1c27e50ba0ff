"""The one-step generators as specimens.

B batch · C latent channels · H W latent rows and columns
"""

from __future__ import annotations

from typing import ClassVar, NoReturn

import torch
from torch import Tensor, nn

from dittool.audit.specimens.changes import changes
from dittool.audit.specimens.ours import TWIN_DEPTH, TWIN_HEADS, OurNetwork
from dittool.audit.specimens.specimen import Attention, Liveness, NotAnswered, Scope, relative_change
from dittool.audit.specimens.watching import Inputs, answer, answer_without_gradient, hooked
from dittool.config.drift_schema import DriftConfig, MaeConfig, ToyConfig
from dittool.models.build import build_generator, build_mae, build_toy
from dittool.models.drift_dit import ClassConditions, DriftDiT, RotaryAttention, attention_entropy
from dittool.models.latent_mae import LatentMAE
from dittool.models.toy_generator import ToyGenerator

_LARGE = 20.0  # factor on the projections: norms take it away again, and without a norm it is what training may reach


class GeneratorNetwork(OurNetwork[DriftDiT, DriftConfig]):
    """The drifting transformer."""

    scopes: ClassVar[frozenset[Scope]] = frozenset({"generator", "plan"})

    def _built(self, config: DriftConfig) -> DriftDiT:
        return build_generator(config)

    def _smaller(self) -> dict[str, int]:
        model = self.config.model
        heads = min(TWIN_HEADS, model.heads)
        width = model.width // model.heads * heads
        hidden = max(1, model.mlp_width * width // model.width)
        return {"depth": min(TWIN_DEPTH, model.depth), "heads": heads, "width": width, "mlp_width": hidden}

    def generator(self) -> DriftConfig:
        return self.config

    def features(self) -> DriftConfig:
        return self.config

    def inputs(self, seed: int = 0, batch: int = 2) -> Inputs:
        """Random noise, guidance scales, classes and styles."""
        generator, model = torch.Generator().manual_seed(seed), self.config.model
        noise = torch.randn(batch, model.channels, *model.cells, generator=generator)
        labels = torch.randint(model.classes, (batch,), generator=generator)
        style = torch.randint(model.style_codebook, (batch, model.style_tokens), generator=generator)
        alpha = 1 + 3 * torch.rand(batch, generator=generator)
        return {"noise": noise, "alpha": alpha, "conditions": ClassConditions(labels, style)}

    def _training_inputs(self, seed: int) -> Inputs:
        return self.inputs(seed, batch=4)

    def liveness(self) -> Liveness:
        model, weights = self._live_network()
        inputs = self._training_inputs(seed=0)
        found = changes(model, inputs, self._exchanged(inputs))
        if self.config.model.cells != (self.config.model.patch_size,) * 2:
            swapped = {**inputs, "noise": self._corners_exchanged(inputs["noise"])}
            plain, exchanged = (answer_without_gradient(model, given) for given in (inputs, swapped))
            found["places"] = relative_change(plain, self._corners_exchanged(exchanged))
        return Liveness(found, self.dead_parameters(model), weights)

    def _exchanged(self, inputs: Inputs) -> dict[str, Inputs]:
        """For each input, what differs when each sample has another's."""
        model = self.config.model
        labels, style = inputs["conditions"].labels, inputs["conditions"].style
        others: dict[str, Inputs] = {
            "noise": {"noise": inputs["noise"].roll(1, 0)},
            "guidance scale": {"alpha": inputs["alpha"] + 1},
        }
        if model.classes > 1:
            others["class"] = {"conditions": ClassConditions((labels + 1) % model.classes, style)}
        if model.style_tokens and model.style_codebook > 1:
            others["style"] = {"conditions": ClassConditions(labels, (style + 1) % model.style_codebook)}
        return others

    def _corners_exchanged(self, z: Tensor) -> Tensor:
        """(B, C, H, W) with the first and the last patch in each other's place."""
        other, p = z.clone(), self.config.model.patch_size
        other[..., :p, :p], other[..., -p:, -p:] = z[..., -p:, -p:], z[..., :p, :p]
        return other

    @torch.no_grad()
    def attention(self) -> Attention:
        model = self.awake()
        for attention in _attentions(model):
            for tensor in (attention.qkv.weight, attention.qkv.bias):
                queries, keys, _ = tensor.chunk(3)
                queries.mul_(_LARGE)
                keys.copy_(queries)
        trained = self.trained()
        own = [] if trained is None else _entropies(trained, self.inputs(batch=2))
        return Attention(_entropies(model, self.inputs(batch=1)), own)


def _attentions(model: DriftDiT) -> list[RotaryAttention]:
    return [module for module in model.blocks.modules() if isinstance(module, RotaryAttention)]


def _entropies(model: DriftDiT, inputs: Inputs) -> list[float]:
    """Mean entropy share of each block when the model runs."""
    seen: list[float] = []

    def look(attention: nn.Module, given: tuple[Tensor, Tensor | None]) -> None:
        assert isinstance(attention, RotaryAttention)
        seen.append(float(attention_entropy(attention, *given).mean()))

    with hooked(attention.register_forward_pre_hook(look) for attention in _attentions(model)):
        answer(model, inputs)
    return seen


class MaeNetwork(OurNetwork[LatentMAE, MaeConfig]):
    """The feature encoder: it has no blocks of a transformer to ask for."""

    scopes: ClassVar[frozenset[Scope]] = frozenset({"plan"})

    def _built(self, config: MaeConfig) -> LatentMAE:
        return build_mae(config)

    def inputs(self, seed: int = 0) -> Inputs:
        raise NotAnswered(self._unanswered())

    def features(self) -> MaeConfig:
        return self.config


class ToyNetwork(OurNetwork[ToyGenerator, ToyConfig]):
    """The small network that draws points of the plane: it has no blocks to ask for."""

    scopes: ClassVar[frozenset[Scope]] = frozenset({"plan"})

    def _built(self, config: ToyConfig) -> ToyGenerator:
        return build_toy(config)

    def inputs(self, seed: int = 0) -> Inputs:
        raise NotAnswered(self._unanswered())

    def features(self) -> NoReturn:
        raise NotAnswered("it was trained on points that its family draws itself: there are no features to identify")
