"""How much a network's answers change under other inputs, and those of each sample under one sample's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dittool.audit.specimens.leaves import leaves, with_leaves
from dittool.audit.specimens.specimen import NotAnswered, relative_change
from dittool.audit.specimens.watching import Inputs, answers_without_gradient

_TRIED = 2  # samples of a batch
OWN = 1e-5  # relative change of a sample that is none
_APART = 1e-5  # relative change of another sample's answer that is rounding


def changes(model: nn.Module, inputs: Inputs, others: Mapping[str, Inputs]) -> dict[str, float]:
    """Largest relative change of an answer under each of other inputs, of which only what differs is given."""
    plain = answers_without_gradient(model, inputs)
    return {
        name: largest_change(plain, answers_without_gradient(model, {**inputs, **other}))
        for name, other in others.items()
    }


def largest_change(plain: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Of several answers that of the one that changes most; other shapes or another number of them count as 1."""
    if [tensor.shape for tensor in plain] != [tensor.shape for tensor in other]:
        return 1.0
    return max(relative_change(a.float(), b.float()) for a, b in zip(plain, other, strict=True))


@dataclass(frozen=True)
class Shift:
    """Largest change of other samples' answers, and that of each sample's own."""

    others: float
    own: tuple[float, ...]


def sample_shifts(model: nn.Module, inputs: Inputs, name: str, other: Tensor, batch: int) -> Shift:
    """What each sample's exchanged input does, along the axis of the input that holds the samples: of several of that
    length the one whose samples answer to nothing of each other. Raises `NotAnswered` for answers that do not tell the
    samples apart.
    """
    tensor, found = leaves(inputs)[name], []
    plain = answers_without_gradient(model, inputs)
    if not _by_sample(plain, plain, batch):
        raise NotAnswered("no answer has an axis of the batch's length")
    for axis in (axis for axis, length in enumerate(tensor.shape) if length == batch):
        others, own = 0.0, []
        for sample in range(min(batch, _TRIED)):
            changed = tensor.clone()
            changed.select(axis, sample).copy_(other.select(axis, sample))
            shifted = answers_without_gradient(model, with_leaves(inputs, {name: changed}))
            by_sample = _by_sample(plain, shifted, batch)
            own.append(max(float(each[sample]) for each in by_sample))
            others = max([others, *(float(each[i]) for each in by_sample for i in range(batch) if i != sample)])
        found.append(Shift(others, tuple(own)))
        if found[-1].others <= _APART:
            break
    least = min(found, key=lambda shift: shift.others)
    # of a network that keeps something between calls
    drift = largest_change(plain, answers_without_gradient(model, inputs))
    return least if least.others > 2 * drift else replace(least, others=0.0)


def neighbours_shift(model: nn.Module, inputs: Inputs, others: Mapping[str, Tensor], batch: int) -> float:
    """Largest change of other samples' answers when everything of the first sample is exchanged at once; inputs with
    several axes of the batch's length stay.
    """
    exchanged = {}
    for name, other in others.items():
        tensor = leaves(inputs)[name]
        if tuple(tensor.shape).count(batch) == 1:
            axis, exchanged[name] = tensor.shape.index(batch), tensor.clone()
            exchanged[name].select(axis, 0).copy_(other.select(axis, 0))
    plain, shifted = (answers_without_gradient(model, given) for given in (inputs, with_leaves(inputs, exchanged)))
    return max([float(each[1:].max()) for each in _by_sample(plain, shifted, batch)], default=0.0)


def _by_sample(plain: Sequence[Tensor], other: Sequence[Tensor], batch: int) -> list[Tensor]:
    """(B,) of each answer: relative changes of the samples' parts. Samples lie along an axis, or each is an answer."""
    found = [_of_samples(a, b, batch) for a, b in zip(plain, other, strict=True) if batch in a.shape]
    if not found and len(plain) == batch:
        found = [torch.tensor([relative_change(a.float(), b.float()) for a, b in zip(plain, other, strict=True)])]
    return found


def _of_samples(plain: Tensor, other: Tensor, batch: int) -> Tensor:
    """(B,): relative change of each sample's answer."""
    axis = plain.shape.index(batch)
    before, after = (tensor.float().movedim(axis, 0).flatten(1) for tensor in (plain, other))
    return (before - after).square().mean(1).sqrt() / before.square().mean(1).sqrt().clamp_min(1e-30)
