"""Tensors of a network's state dict that may hold positions of a fixed size, and other values for them."""

from __future__ import annotations

import math
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


@contextmanager
@torch.no_grad()
def split_by_rows_and_columns(tensor: Tensor) -> Iterator[bool]:
    """A table of positions with a(row) + b(column) in it for a while; False where it has no rows and columns: two equal
    axes beside each other, or one as long as a square, in the order of the sequence.
    """
    sizes, axes = tuple(tensor.shape), range(tensor.dim())
    pairs = [i for i in axes[:-1] if tensor.dim() > 2 and sizes[i] == sizes[i + 1] > 1]
    squares = [i for i in axes if sizes[i] > 3 and math.isqrt(sizes[i]) ** 2 == sizes[i]]
    squares.sort(key=lambda i: i == tensor.dim() - 1)  # the last is its width
    if not pairs and not squares:
        yield False
        return
    axis, kept, drawn = (pairs or squares)[0], tensor.clone(), torch.Generator().manual_seed(1)
    side = sizes[axis] if pairs else math.isqrt(sizes[axis])
    before, after = sizes[:axis], sizes[axis + (2 if pairs else 1) :]
    rows = torch.randn(*before, side, 1, *after, generator=drawn)
    columns = torch.randn(*before, 1, side, *after, generator=drawn)
    tensor.copy_((rows + columns).reshape(sizes))
    try:
        yield True
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
