"""Averages of the weights over power functions of the past, followed during training, from which an average of any
length is made afterwards (`ckpt/chosen_average.py`; Karras et al., arXiv 2312.02696, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dittool.objective.schedule import power_decay
from dittool.train.distributed import parts_like
from dittool.train.optim import move_towards


class PowerAverages:
    """θ̂ ← β·θ̂ + (1 − β)·θ after update n, counted from 1, with β = (1 − 1/n)^(γ + 1), for each relative width."""

    def __init__(self, model: nn.Module, widths: Sequence[float]) -> None:
        self.begun = 0  # updates before them, which they see as one
        self._widths = {f"{width:g}": width for width in widths}
        self.weights: dict[str, dict[str, Tensor]] = {}
        self.begin(model, 0)

    def begin(self, model: nn.Module, updates: int) -> None:
        """From these weights on, in a run of so many updates."""
        self.begun = updates
        self.weights = {
            name: {key: tensor.detach().clone() for key, tensor in model.named_parameters()} for name in self._widths
        }

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int, made: Tensor) -> None:
        """`updates` is the number of updates made before this one; `made` as for `optim.move_towards`."""
        for name, width in self._widths.items():
            move_towards(self.weights[name].values(), model.parameters(), 1 - power_decay(updates, width), made)

    def state(self) -> dict[str, Any]:
        """For a checkpoint; empty where nothing is followed."""
        return {"snapshots": {"begun": self.begun, "weights": self.weights}} if self._widths else {}

    def load(self, saved: Mapping[str, Any], model: nn.Module, updates: int) -> None:
        """What a checkpoint holds; widths that it does not hold, all of them, begin anew at its weights."""
        if saved and saved["weights"].keys() == self._widths.keys():
            self.begun = saved["begun"]
            self.weights = {name: parts_like(weights, self.weights[name]) for name, weights in saved["weights"].items()}
        else:
            self.begin(model, updates)
