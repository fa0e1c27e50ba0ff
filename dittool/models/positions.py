"""2-D sin-cos positions, made on the fly from a grid's own shape. Nothing here is learned or stored.

h, w: rows and columns of a grid · D: model width
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# A token grid has at most about a hundred cells a side. The 10,000 of language models would leave half of the channels
# constant over an image; from 100 every channel tells cells apart, and attention finds the place that belongs to a
# token much sooner.
LARGEST_SCALE = 100.0


def sincos(coordinates: Tensor, width: int) -> Tensor:
    """Sines and cosines of coordinates at geometrically spaced frequencies ("Attention Is All You Need", section 3.5).

    Args:
        coordinates: (n,), any real numbers.
        width: even.

    Returns: (n, width).
    """
    frequencies = LARGEST_SCALE ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = coordinates.double()[:, None] * frequencies  # (n, width/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def grid_positions(grid: tuple[int, int], width: int, span: tuple[int, int] | None = None) -> Tensor:
    """Positions of a grid's cells in row-major order: the first half of the width tells the row, the second the column.

    Coordinates are centred on the image and measured in cells of `span` (default: the grid itself). A reference's patch
    grid laid over the latent's token grid, `grid_positions(patch_grid, D, span=token_grid)`, therefore has equal
    vectors where a patch and a token lie at the same place of the image, whatever the two resolutions are.

    Returns: (h·w, D), float32, on the CPU.
    """
    rows, columns = grid
    row_span, column_span = span or grid
    y = ((torch.arange(rows) + 0.5) / rows - 0.5) * row_span
    x = ((torch.arange(columns) + 0.5) / columns - 0.5) * column_span
    by_row = sincos(y, width // 2)[:, None].expand(rows, columns, -1)  # (h, w, D/2)
    by_column = sincos(x, width // 2)[None].expand(rows, columns, -1)  # (h, w, D/2)
    return torch.cat([by_row, by_column], dim=-1).reshape(rows * columns, width)


@lru_cache(maxsize=64)
def cached_positions(grid: tuple[int, int], width: int, span: tuple[int, int] | None, device: torch.device) -> Tensor:
    """`grid_positions`, kept on the device for the shapes seen last."""
    with torch.inference_mode(False):  # sampling may ask first, and training must be able to use what it got
        return grid_positions(grid, width, span).to(device)
