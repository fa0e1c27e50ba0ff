"""Tensors of a network's state dict that may hold positions of a fixed size, and other values for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
@torch.no_grad()
def redrawn(tensor: Tensor) -> Iterator[None]:
    """A tensor with other values for a while."""
    kept = tensor.clone()
    tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    try:
        yield
    finally:
        tensor.copy_(kept)


def loose_tensors(model: nn.Module, blocks: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    """Floating-point tensors of the state dict outside of the blocks that are no layer's weight: parameters,
    buffers, embedding tables.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.GroupNorm)
    layers = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    saved, inside = model.state_dict(), tuple(f"{block}." for block in blocks)
    return [
        (name, tensor)
        for name, tensor in tensors.items()
        if name in saved
        and name.rpartition(".")[0] not in layers
        and (not name.startswith(inside) or tensor.dim() >= 2)
        and tensor.is_floating_point()
    ]
