"""Models to try out: a configuration's network at step 0 or with its gates open, and small inputs of any grid.

Where a rule judges the architecture, the network is built with random weights; a very large one is built narrower and
shallower, with the same blocks, and the evidence says so. Feature widths are the data's where they are known.

B batch · C latent channels · L text tokens · N patches · h w grid in tokens
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from dittool.audit.specimens.trial import Wakeable, wake
from dittool.config.architectures import AnyConfig
from dittool.config.schema import Config
from dittool.models.build import build_model
from dittool.models.conditioning import Conditions
from dittool.models.dit import DiT

# for a preset without data; the rules' answers do not depend on them
USUAL_DIMS = {"text": 64, "image": 64, "latent_channels": 16}
LARGEST_BUILT = 20_000_000  # parameters; a larger network is tried as a twin
TWIN_DEPTH, TWIN_HEADS = 2, 2
_TEXT_TOKENS = 6
GRID = (2, 3)  # (rows, columns) in tokens: not square, so that a transposition shows


@dataclass(frozen=True)
class Inputs:
    """One batch for a model."""

    z: Tensor  # (B, C, H, W)
    t: Tensor  # (B,)
    conditions: Conditions


class Probe(Wakeable):
    """Builds the network of a configuration, always with the same weights; a very large one as a twin."""

    config: AnyConfig

    def at_real_size(self) -> nn.Module:
        """The network on the meta device: names and shapes, no memory."""
        with torch.device("meta"):
            return self._built(self.config)

    @abstractmethod
    def _built(self, config: AnyConfig) -> nn.Module:
        """The network of a configuration of this family."""

    @abstractmethod
    def _smaller(self) -> dict[str, int]:
        """Keys of `[model]` that make a twin."""

    @cached_property
    def parameters(self) -> int:
        """Of the network at its real size."""
        return sum(parameter.numel() for parameter in self.at_real_size().parameters())

    @property
    def note(self) -> str:
        """For the evidence: what was tried instead of the real size, "" when it was that."""
        if self.parameters <= LARGEST_BUILT:
            return ""
        twin = self._tried.model
        return (
            f" (tried on a twin of depth {twin.depth}, width {twin.width}; the real one has {self.parameters:,}"
            " parameters)"
        )

    @cached_property
    def _tried(self) -> AnyConfig:
        return self.config if self.parameters <= LARGEST_BUILT else with_model(self.config, self._smaller())

    def fresh(self, seed: int = 0, **changes: object) -> nn.Module:
        """The network at step 0, in evaluation mode; `changes` are keys of `[model]`."""
        return self._seeded(with_model(self._tried, changes), seed).eval()

    def _seeded(self, config: AnyConfig, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._built(config)


def with_model(config: AnyConfig, changes: dict[str, object]) -> AnyConfig:
    """The configuration with other keys of `[model]`, which are not validated."""
    return config.model_copy(update={"model": config.model.model_copy(update=changes)})


class ModelProbe(Probe):
    """The first family's networks to try out, with inputs of any grid."""

    def __init__(self, config: Config, dims: dict[str, int] | None) -> None:
        self.config, self.dims = config, dims or USUAL_DIMS

    def _built(self, config: Config) -> DiT:
        dims = self.dims
        return build_model(
            config, text_dim=dims["text"], image_dim=dims["image"], latent_channels=dims["latent_channels"]
        )

    def _smaller(self) -> dict[str, int]:
        model = self.config.model
        heads = min(TWIN_HEADS, model.heads)
        return {"depth": min(TWIN_DEPTH, model.depth), "heads": heads, "width": model.width // model.heads * heads}

    @cached_property
    def one_block(self) -> DiT:
        """The network at its real width with a single block, awake: small enough whatever the depth."""
        model = self._seeded(with_model(self.config, {"depth": 1}), seed=0)
        wake(model, 0)
        return model.eval()

    def inputs(self, grid: tuple[int, int] = GRID, batch: int = 2, seed: int = 0) -> Inputs:
        """Random latents, timesteps and conditions; the captions of a batch have different lengths."""
        generator = torch.Generator().manual_seed(seed)
        (rows, columns), p = grid, self.config.model.patch_size

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        lengths = torch.tensor([_TEXT_TOKENS - i % 3 for i in range(batch)])
        mask = torch.arange(_TEXT_TOKENS)[None] < lengths[:, None]  # (B, L)
        text = normal(batch, _TEXT_TOKENS, self.dims["text"]) * mask[..., None]
        patches = normal(batch, rows * columns, self.dims["image"]) if self.config.model.patches else None
        conditions = Conditions(text, mask, normal(batch, self.dims["image"]), patches, grid)
        z = normal(batch, self.dims["latent_channels"], rows * p, columns * p)
        return Inputs(z, torch.rand(batch, generator=generator) * 0.8 + 0.1, conditions)


@contextmanager
def watch_blocks(model: DiT) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yields a list that receives each block's input and output tokens, (B, N, D), whenever the model runs."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        block.register_forward_hook(lambda _block, inputs, output: seen.append((inputs[0], output)))
        for block in model.blocks
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def relative_change(a: Tensor, b: Tensor) -> float:
    """Root mean square of a − b over that of a."""
    return float((a - b).square().mean().sqrt() / a.square().mean().sqrt().clamp_min(1e-30))
