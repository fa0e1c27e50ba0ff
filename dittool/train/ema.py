"""Exponential moving average of the weights: what validation and sampling use."""

from __future__ import annotations

import copy

import torch
from torch import nn

from dittool.config.schema import Ema as EmaConfig
from dittool.objective.schedule import ema_decay


class EmaModel:
    """A second model that follows the first: ema ← decay·ema + (1 − decay)·weights, after every update."""

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._config = config

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """`updates` is the number of updates made before this one."""
        torch._foreach_lerp_(
            list(self.model.parameters()), list(model.parameters()), 1 - ema_decay(updates, self._config)
        )
