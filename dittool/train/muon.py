"""Muon: the momentum of a matrix, made orthogonal, is its update (Jordan et al., https://kellerjordan.github.io/posts/muon).

It acts on the matrices of the blocks (`objective/schedule.py:update_rule`); AdamW does the rest (`train/optim.py`).
torch's own, `torch.optim.Muon`, computes in bf16 on every device, one matrix after the other, and knows nothing of
matrices that lie on several processes. On a CPU without bf16 instructions its update of the demo's blocks was measured
at 3.2 s where fp32 takes 0.25 s; on one that has them it takes 0.7 to 0.8 of the time of what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor, nn

from dittool.train.distributed import Ranks, gathered, own_part, parts_like

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the polynomial that takes singular values to about 1 fastest
_ITERATIONS = 5
_EPSILON = 1e-7


class MuonState(TypedDict):
    """What a checkpoint holds of it."""

    momentum: dict[str, Tensor]  # by the parameter's name, of its shape


class Muon:
    """The updates of some matrices.

        B ← μ·B + (1 − μ)·G                                  momentum; G: gradient
        O = orthogonal((1 − μ)·G + μ·B)                      Nesterov's look ahead
        W ← (1 − η·λ)·W − η·√max(1, rows/columns)·O          decoupled decay, equal size of update for every shape

    Matrices of one shape are made orthogonal together, and shared out among the processes: each computes some, whole,
    and all get the results. fp32 on a CPU, bf16 on a GPU.
    """

    def __init__(
        self, matrices: Mapping[str, nn.Parameter], momentum: float, weight_decay: float, ranks: Ranks
    ) -> None:
        self.matrices = dict(matrices)
        self.momentum = {name: torch.zeros_like(matrix) for name, matrix in matrices.items()}
        self._share, self._weight_decay, self._ranks = momentum, weight_decay, ranks
        self._same_shape: dict[torch.Size, list[str]] = {}
        for name, matrix in matrices.items():
            self._same_shape.setdefault(matrix.shape, []).append(name)

    @torch.no_grad()
    def step(self, rate: float, made: Tensor) -> None:
        """One update at rate η. Every matrix has its gradient. `made` () bool, on the device: where it is False,
        matrices and momentum stay, whatever the gradients.
        """
        kept = torch.where(made, 1 - rate * self._weight_decay, 1.0)
        for (rows, columns), names in self._same_shape.items():
            ahead = torch.stack([gathered(self._look_ahead(name, made)) for name in names])  # (n, rows, columns)
            for name, direction in zip(names, torch.where(made, self._orthogonal(ahead), 0.0), strict=True):
                matrix = self.matrices[name]
                matrix.mul_(kept)
                matrix.add_(own_part(direction, matrix), alpha=-rate * max(1, rows / columns) ** 0.5)

    def _look_ahead(self, name: str, made: Tensor) -> Tensor:
        gradient, momentum = self.matrices[name].grad, self.momentum[name]
        assert gradient is not None, f"{name} has no gradient"
        gradient = torch.where(made, gradient, momentum)
        momentum.lerp_(gradient, 1 - self._share)
        return gradient.lerp(momentum, self._share)

    def _orthogonal(self, matrices: Tensor) -> Tensor:
        """(n, rows, columns) → the same of them all, each process having computed its share."""
        count = len(matrices)
        each = -(-count // self._ranks.count)
        own = matrices.new_zeros((each, *matrices.shape[1:]))
        mine = matrices[self._ranks.rank * each : (self._ranks.rank + 1) * each]
        own[: len(mine)] = mine
        return self._ranks.gather(orthogonal(own))[:count]

    def state(self) -> MuonState:
        return {"momentum": dict(self.momentum)}

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Momentum by name, each matrix in one piece. Raises KeyError for a name that is missing."""
        for name, part in parts_like({name: saved[name] for name in self.matrices}, self.momentum).items():
            self.momentum[name].copy_(part)


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, rows, columns) → the same: each matrix with its singular values brought to between about 0.7 and 1.2.

    Newton and Schulz's iteration on X = M/‖M‖, with A = X·Xᵀ:  X ← a·X + (b·A + c·A²)·X
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    upright = x.shape[-2] > x.shape[-1]
    x = x.mT if upright else x  # the smaller A
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + _EPSILON)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if upright else x).to(matrices.dtype)
