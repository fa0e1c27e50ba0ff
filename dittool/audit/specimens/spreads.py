"""How values at the places of a grid differ from each other: by row and column, by steps between them, not at all.

N places of a grid of rows and columns, in row-major order
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dittool.audit.specimens.specimen import Grid

_SAME = 1e-6  # relative difference of two places that are given the same


def mixed(values: Tensor, grid: Grid) -> float:
    """Of one row of values for each place: zero when f(row, column) = a(row) + b(column)."""
    cells = values.unflatten(0, grid)  # (h, w, …)
    return float((cells - cells[:1] - cells[:, :1] + cells[:1, :1]).abs().max())


def same_rows(values: Tensor, most: float = 1.0) -> tuple[int, int] | None:
    """Two places of the same values; None when there are none, or for more than a share `most` of all places."""
    distances = torch.cdist(values.float(), values.float(), p=torch.inf)
    distances.fill_diagonal_(torch.inf)
    twins = (distances.amin(1) <= _SAME * float(values.abs().max())).nonzero().flatten().tolist()
    if not twins or len(twins) > most * len(values):
        return None
    return twins[0], int(distances[twins[0]].argmin())


def logit_spreads(logits: Tensor, grid: Grid) -> tuple[float, float]:
    """How much logits (N, N) between equal tokens vary between pairs the same rows and columns apart, and between
    pairs the same distance in the sequence apart.
    """
    (rows, columns), index = grid, torch.arange(math.prod(grid))
    down = (index // columns)[None] - (index // columns)[:, None] + rows
    right = (index % columns)[None] - (index % columns)[:, None] + columns

    def spread(kind: Tensor) -> float:
        """Over pairs of the same kind."""
        flat, size = kind.flatten(), int(kind.max()) + 1
        most = torch.full((size,), -torch.inf).scatter_reduce(0, flat, logits.flatten(), "amax")
        least = torch.full((size,), torch.inf).scatter_reduce(0, flat, logits.flatten(), "amin")
        return float((most - least)[flat].max())

    return spread(down * 2 * columns + right), spread(index[None] - index[:, None] + len(index))
