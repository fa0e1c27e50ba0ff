"""Rotary positions (arXiv 2104.09864) for a row of registers followed by a grid of patches, made from the grid's own
rows and columns. Nothing here is learned or stored.

A pair of channels (a, b) of a query or key at position m is turned by the angle m·θ, so that a product of a query and a
key depends on the distance of their positions alone.

R registers · h w grid in tokens · N = R + h·w tokens · K channels of a head
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_BASE = 10_000.0  # θ_i = 10000^(−2i/K)


def rotary_angles(kind: str, registers: int, grid: tuple[int, int], channels: int, base: float = _BASE) -> Tensor:
    """The angle of each pair of channels at each token.

    Args:
        kind: "1d", the token's place in the whole row, registers included; "2d", half of the pairs by the patch's row
            and half by its column, registers at angle 0.
        channels: K, even for "1d", divisible by 4 for "2d".
        base: of the frequencies, base^(−i/n) for the i-th of n pairs of an axis.

    Returns: (N, K/2), float32, on the CPU.
    """
    if kind == "1d":
        return _angles(torch.arange(registers + grid[0] * grid[1]), channels // 2, base)
    rows, columns = (
        axis.flatten() for axis in torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    )
    by_row, by_column = (_angles(axis, channels // 4, base) for axis in (rows, columns))  # (h·w, K/4)
    patches = torch.cat([by_row, by_column], dim=1)
    return torch.cat([torch.zeros(registers, channels // 2), patches])


@lru_cache(maxsize=64)
def cached_angles(
    kind: str, registers: int, grid: tuple[int, int], channels: int, device: torch.device, base: float = _BASE
) -> Tensor:
    """`rotary_angles`, kept on the device for the models seen last."""
    with torch.inference_mode(False):  # sampling may ask first, and training must be able to use what it got
        return rotary_angles(kind, registers, grid, channels, base).to(device)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """(a, b) → (a·cos − b·sin, a·sin + b·cos), a from the first half of the channels and b from the second. x: (B,
    H, N, K); angles: (N, K/2).
    """
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _angles(places: Tensor, pairs: int, base: float) -> Tensor:
    frequencies = base ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    return (places.double()[:, None] * frequencies).float()  # (n, pairs)
