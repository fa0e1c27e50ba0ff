"""Variants of `foreign_kinds.Net`: the residual stands outside of what its lists hold; a table of positions ends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.audit.foreign_kinds import HEADS, WIDTH, Net, norm, sincos


class Attend(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Branch(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.modulation = layer, nn.Linear(WIDTH, 3 * WIDTH)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x, c):
        shift, scale, gate = self.modulation(F.silu(c))[:, None].chunk(3, -1)
        return gate * self.layer(norm(x) * (1 + scale) + shift)


def pair():
    mlp = nn.Sequential(nn.Linear(WIDTH, 64, bias=False), nn.GELU(), nn.Linear(64, WIDTH, bias=False))
    return nn.ModuleList([Branch(Attend()), Branch(mlp)])


class ResidualOutside(Net):
    def __init__(self, depth=3):
        super().__init__(0)
        self.blocks = nn.ModuleList(pair() for _ in range(depth))

    def run(self, z, c):
        for attend, feed in self.blocks:
            z = attend(z, c) + z
            z = feed(z, c) + z
        return z


class ResidualOutsideOneOpen(ResidualOutside):
    def __init__(self, depth=3):
        super().__init__(depth)
        nn.init.normal_(self.blocks[1][1].modulation.weight, std=0.1)


class ResidualOutsideExchanged(ResidualOutside):
    def positions(self, rows, columns):
        return sincos(rows, columns, swapped=True)


class TableEnds(Net):
    """Rows and columns of a table each, with which grids within it run."""

    def __init__(self, depth=3, side=9):
        super().__init__(depth)
        self.rows, self.columns = (nn.Parameter(torch.randn(side, WIDTH) * 0.02) for _ in range(2))

    def positions(self, rows, columns):
        return (self.rows[:rows, None] + self.columns[:columns]).flatten(0, 1)[None]


KINDS: dict[str, dict[str, str]] = {  # what must be answered; all else passes or skips
    "ResidualOutside": {},
    "ResidualOutsideOneOpen": {"E1": "fail"},
    "ResidualOutsideExchanged": {"E2": "fail"},
    "TableEnds": {"E2": "warn"},
}
EXAMPLES: dict[str, str] = {}
