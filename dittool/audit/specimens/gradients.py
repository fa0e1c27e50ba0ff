"""Gradients of whatever a network answers, what is kept of them, and how far those of two passes differ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dittool.audit.specimens.specimen import TrainingPass

_KEPT_ENTRIES = 100_000  # of a large network's gradients


def backward(given: Sequence[Tensor]) -> None:
    """Gradients of the sum of squares of all answers that have any."""
    torch.stack([tensor.float().square().sum() for tensor in given if tensor.requires_grad]).sum().backward()


def largest_gradient_difference(a: TrainingPass, b: TrainingPass) -> tuple[str, float]:
    """The parameter whose gradients differ most between two passes, and by how much of the largest gradient."""
    if missing := a.gradients.keys() ^ b.gradients.keys():
        return min(missing), float("inf")
    filled = {name: gradient for name, gradient in a.gradients.items() if gradient.numel()}
    largest = max(float(gradient.abs().max()) for gradient in filled.values())
    differences = {name: float((gradient - b.gradients[name]).abs().max()) for name, gradient in filled.items()}
    name = max(differences, key=differences.__getitem__)
    return name, differences[name] / max(largest, 1e-30)


@torch.no_grad()
def some_entries(gradient: Tensor) -> Tensor:
    """A gradient, or of a large one its mean and some 100,000 entries from all its rows and columns."""
    if gradient.numel() <= _KEPT_ENTRIES:
        return gradient
    step = gradient.numel() // _KEPT_ENTRIES | 1  # odd, so that widths of an even number do not hide columns
    return torch.cat([gradient.flatten()[::step], gradient.mean()[None]])
