"""What an update does to the weights: AdamW with its weight-decay groups, the learning rate, and the exponential moving
average that validation and sampling use.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from dittool.config.schema import Ema, Train
from dittool.objective.schedule import ema_decay, is_decayed, learning_rate


def build_optimizer(model: nn.Module, train: Train) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) in two groups: the decayed parameters in the model's order, then the others."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if is_decayed(name, parameter.dim()) else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=train.lr, betas=(train.betas[0], train.betas[1]), eps=1e-8, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, train: Train) -> float:
    """Gives all groups the rate of update `step`, counted from 0, and returns it."""
    rate = learning_rate(step, train)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


class EmaModel:
    """A second model that follows the first: ema ← decay·ema + (1 − decay)·weights, after every update."""

    def __init__(self, model: nn.Module, config: Ema) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._config = config

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """`updates` is the number of updates made before this one."""
        torch._foreach_lerp_(
            list(self.model.parameters()), list(model.parameters()), 1 - ema_decay(updates, self._config)
        )
