"""The head that a block's tokens are aligned with the reference's patches by (REPA, arXiv 2410.06940, section 3.3).

It serves training alone: checkpoints and averages hold it, drawing leaves it out.

B batch · N tokens · D width · F width of the image encoder's features
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

_HEAD = "alignment_head."  # what the names of its tensors begin with


class AlignmentHead(nn.Module):
    """out·SiLU(middle·SiLU(up·x)), twice the model's width in between."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.middle = nn.Linear(2 * width, 2 * width)
        self.out = nn.Linear(2 * width, features)
        for layer in (self.up, self.middle, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) → (B, N, F)
        return self.out(F.silu(self.middle(F.silu(self.up(x)))))


def is_training_only(name: str) -> bool:
    """Whether a model's tensor of this name has no part in what it draws."""
    return name.startswith(_HEAD)


def drawing_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a model's tensors that drawing needs."""
    return {name: tensor for name, tensor in weights.items() if not is_training_only(name)}
