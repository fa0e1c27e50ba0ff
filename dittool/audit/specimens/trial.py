"""Waking a network: what begins at zero is drawn at random, as if training had opened its gates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

_WAKING_STD = 0.05  # of parameters that begin at zero
_ENTRIES_TRIED = 64


class Wakeable(ABC):
    """Something that builds the same network as often as a rule needs it."""

    @abstractmethod
    def fresh(self, seed: int = 0, **changes: Any) -> nn.Module:
        """The network at step 0, in evaluation mode; `changes` are settings of it by name."""

    def awake(self, seed: int = 0, **changes: Any) -> nn.Module:
        """The network with everything that begins at zero drawn at random."""
        model = self.fresh(seed, **changes)
        wake(model, seed)
        return model

    @cached_property
    def shared_awake(self) -> nn.Module:
        """`awake()`, built once for all rules that only run it."""
        return self.awake()


def wake(model: nn.Module, seed: int) -> None:
    """Draws every parameter that is zero throughout from N(0, 0.05²)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if is_zero(parameter):
                parameter.normal_(std=_WAKING_STD, generator=generator)


def is_zero(tensor: Tensor) -> bool:
    """Whether a tensor is zero throughout; of one that is not, most often a few entries are read."""
    return not tensor.flatten()[:_ENTRIES_TRIED].any() and not tensor.any()
