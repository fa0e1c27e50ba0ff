"""Models to try out: a configuration's network at step 0 or with its gates open, and small inputs of any grid.

Where a rule judges the architecture, the network is built with random weights; a very large one is built narrower and shallower, with
the same blocks, and the evidence says so. Feature widths are the data's where they are known.

B batch · C latent channels · L text tokens · N patches · h w grid in tokens
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from dittool.config.schema import Config
from dittool.models.build import build_model, parameter_count
from dittool.models.conditioning import Conditions
from dittool.models.dit import DiT

USUAL_DIMS = {"text": 64, "image": 64, "latent_channels": 16}  # for a preset without data; the rules' answers do not depend on them
LARGEST_BUILT = 20_000_000  # parameters; a larger network is tried as a twin
_TWIN_DEPTH, _TWIN_HEADS = 2, 2
_WAKING_STD = 0.05  # of parameters that begin at zero, when gates are opened
_ENTRIES_TRIED = 64
_TEXT_TOKENS = 6
GRID = (2, 3)  # (rows, columns) in tokens: not square, so that a transposition shows


@dataclass(frozen=True)
class Inputs:
    """One batch for a model."""

    z: Tensor  # (B, C, H, W)
    t: Tensor  # (B,)
    conditions: Conditions


class ModelProbe:
    """Builds the network of a configuration as often as a rule needs it, always with the same weights."""

    def __init__(self, config: Config, dims: dict[str, int] | None) -> None:
        self.config, self.dims = config, dims or USUAL_DIMS

    @cached_property
    def parameters(self) -> int:
        """Of the network at its real size."""
        return parameter_count(self.config, self.dims["text"], self.dims["image"], self.dims["latent_channels"])

    @property
    def note(self) -> str:
        """For the evidence: what was tried instead of the real size, "" when it was that."""
        if self.parameters <= LARGEST_BUILT:
            return ""
        twin = self._tried.model
        return f" (tried on a twin of depth {twin.depth}, width {twin.width}; the real one has {self.parameters:,} parameters)"

    @cached_property
    def _tried(self) -> Config:
        if self.parameters <= LARGEST_BUILT:
            return self.config
        model = self.config.model
        heads = min(_TWIN_HEADS, model.heads)
        smaller = {"depth": min(_TWIN_DEPTH, model.depth), "heads": heads, "width": model.width // model.heads * heads}
        return self.config.model_copy(update={"model": model.model_copy(update=smaller)})

    def at_real_size(self) -> DiT:
        """The network on the meta device: names and shapes, no memory."""
        with torch.device("meta"):
            return build_model(self.config, **_widths(self.dims))

    def fresh(self, seed: int = 0, **changes: object) -> DiT:
        """The network at step 0, in evaluation mode; `changes` are keys of `[model]`."""
        config = self._tried.model_copy(update={"model": self._tried.model.model_copy(update=changes)})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_model(config, **_widths(self.dims)).eval()

    def awake(self, seed: int = 0, **changes: object) -> DiT:
        """The network with everything that begins at zero drawn at random, as if training had opened its gates."""
        model = self.fresh(seed, **changes)
        wake(model, seed)
        return model

    @cached_property
    def shared_awake(self) -> DiT:
        """`awake()`, built once for all rules that only run it."""
        return self.awake()

    @cached_property
    def one_block(self) -> DiT:
        """The network at its real width with a single block, awake: small enough whatever the depth."""
        one = self.config.model_copy(update={"model": self.config.model.model_copy(update={"depth": 1})})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build_model(one, **_widths(self.dims))
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


def wake(model: nn.Module, seed: int) -> None:
    """Draws every parameter that is zero throughout from N(0, 0.05²)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if is_zero(parameter):
                parameter.normal_(std=_WAKING_STD, generator=generator)


def is_zero(tensor: Tensor) -> bool:
    """Whether a tensor is zero throughout; of one that is not, most often a few entries are read."""
    return not tensor.flatten()[:_ENTRIES_TRIED].any() and not tensor.any()


@contextmanager
def watch_blocks(model: DiT) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yields a list that receives each block's input and output tokens, (B, N, D), whenever the model runs."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [block.register_forward_hook(lambda _block, inputs, output: seen.append((inputs[0], output))) for block in model.blocks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def relative_change(a: Tensor, b: Tensor) -> float:
    """Root mean square of a − b over that of a."""
    return float((a - b).square().mean().sqrt() / a.square().mean().sqrt().clamp_min(1e-30))


def _widths(dims: dict[str, int]) -> dict[str, int]:
    return {"text_dim": dims["text"], "image_dim": dims["image"], "latent_channels": dims["latent_channels"]}
