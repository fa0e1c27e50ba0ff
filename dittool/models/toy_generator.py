"""A small network from noise to points of the plane: what the drifting objective is tried on in seconds."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from dittool.models.drift_dit import ClassConditions

# where the points lie before training: centre (x, 0) and spread
STARTS = {"middle": (0.0, 1.0), "far": (6.0, 1.0), "collapsed": (0.0, 0.01)}


class ToyGenerator(nn.Module):
    """f(ε) ∈ ℝ²: an MLP behind a linear path, so that the points begin as a normal cloud of the wanted place and
    spread.
    """

    def __init__(self, depth: int, width: int, noise: int, start: str) -> None:
        super().__init__()
        sizes = [noise, *[width] * depth]
        self.blocks = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.output = nn.Linear(width, 2)
        self.skip = nn.Linear(noise, 2)
        centre, spread = STARTS[start]
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        with torch.no_grad():
            self.skip.weight.copy_(spread * torch.eye(2, noise))
            self.skip.bias.copy_(torch.tensor([centre, 0.0]))

    def forward(self, noise: Tensor, alpha: Tensor, conditions: ClassConditions) -> Tensor:
        """noise: (B, dimensions). The other two are the same for all points and are not read. Returns (B, 2)."""
        x = noise
        for layer in self.blocks:
            x = torch.nn.functional.silu(layer(x))
        return self.skip(noise) + self.output(x)
