"""AdamW with its weight-decay groups, and the learning rate of each update."""

from __future__ import annotations

import torch
from torch import nn

from dittool.config.schema import Train
from dittool.objective.schedule import is_decayed, learning_rate


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
