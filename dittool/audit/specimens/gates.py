"""What one block of a network does with its gates closed: how far it moves its tokens, and whether it can ever learn.

B batch · N tokens · D width
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dittool.audit.specimens.anatomy import Anatomy, modulation_tables
from dittool.audit.specimens.one_call import not_linear
from dittool.audit.specimens.parts import parameter_of, part_of
from dittool.audit.specimens.watching import Call

_NEARLY_CLOSED = 1e-3  # a LayerScale begins at 1e-4 to 1e-6
_ENTRIES_TRIED = 64
_WAKING_STD = 0.05  # of parameters that begin at zero
_REDRAWN_STD = 0.05  # of weights that are drawn again


@torch.no_grad()
def moved_without_modulation(model: nn.Module, anatomy: Anatomy, name: str, call: Call, timed: Call) -> float:
    """How far a block moves tokens when its modulation is zero and every other weight is drawn again.

    Args:
        call, timed: of the block, the latter at another time: what it is given that differs, and is no tokens, is
        its modulation too. Vectors are closed first, then tables of a few vectors.
    """
    block = copy.deepcopy(part_of(model, name))
    modulation = {layer.removeprefix(f"{name}.") for layer in anatomy.modulation[name]}
    held = set(modulation_tables(block))
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in block.named_parameters():
        layer = parameter_name.rpartition(".")[0]
        a_gate_of_its_own = parameter.dim() == 1 and not parameter.any() and not parameter_name.endswith("bias")
        if layer in modulation or parameter_name in held or a_gate_of_its_own:
            parameter.zero_()
        else:
            is_positive = bool((parameter > 0).all())  # it may stand under a root
            parameter.normal_(std=_REDRAWN_STD, generator=generator)
            parameter.abs_() if is_positive else None
    streams = {id(before) for before in call.carried}
    given = [
        value
        for value, other in zip(call.tensors, timed.tensors, strict=True)
        if value.is_floating_point() and id(value) not in streams and not torch.equal(value, other)
    ]
    vectors = [
        value
        for value in given
        if value.dim() <= 2 or value.numel() == max(value.shape[0], value.shape[1]) * value.shape[-1]
    ]
    moved = torch.inf
    for closing in ([], vectors, given):
        closed = call.again(block, {id(value): torch.zeros_like(value) for value in closing})
        moved = min(moved, moved_by(closed, block, name in anatomy.branches))
    return moved


def moved_by(call: Call, block: nn.Module, is_branch: bool = False) -> float:
    """max |block(x) − x| over the streams of tokens, of a branch max |block(x)|, or what is not linear in tokens that
    change their shape; a NaN counts as a change.
    """
    if not call.streams:
        return not_linear(call, block)
    added = [after if is_branch else after - before for before, after in call.streams]
    return max(float(each.abs().max().nan_to_num(torch.inf, torch.inf)) for each in added)


def is_stuck(block: nn.Module, call: Call) -> bool:
    """Whether no gradient reaches a block's weights or what it is given beside tokens, whatever stands behind it."""
    block = copy.deepcopy(block).requires_grad_(True)
    streams = {id(before) for before in call.carried}
    beside = [value for value in call.tensors if value.is_floating_point() and id(value) not in streams]
    leaves_of = {id(value): value.detach().clone().requires_grad_(True) for value in beside}
    again = call.again(block, leaves_of)
    drawn = torch.Generator().manual_seed(0)
    given = [after for _, after in again.streams] or again.outputs
    ends = [after for after in given if after.requires_grad]
    if not ends:
        return True
    total = torch.stack([(after.float() * torch.randn(after.shape, generator=drawn)).sum() for after in ends]).sum()
    gradients = torch.autograd.grad(total, [*block.parameters(), *leaves_of.values()], allow_unused=True)
    return all(gradient is None or is_zero(gradient) for gradient in gradients)


def is_normed(call: Call) -> bool:
    """Whether a block returns its tokens normed and otherwise as they were."""
    for before, after in call.streams:
        width = before.shape[-1:]
        for norm in (F.layer_norm, F.rms_norm):
            if torch.allclose(norm(before.float(), width), after.float(), atol=1e-3):
                return True
    return False


def is_closed(parameter: Tensor) -> bool:
    """Whether a parameter is zero throughout, or one small number."""
    first = float(parameter.detach().flatten()[0]) if parameter.numel() else 1.0
    if first == 0 or abs(first) > _NEARLY_CLOSED or parameter.numel() == 1:
        return is_zero(parameter)
    return not bool((parameter != first).any())


def is_zero(tensor: Tensor) -> bool:
    """Whether a tensor is zero throughout; of one that is not, most often a few entries are read."""
    return not tensor.flatten()[:_ENTRIES_TRIED].any() and not tensor.any()


@contextmanager
def woken_for_now(model: nn.Module, names: Iterable[str]) -> Iterator[nn.Module]:
    """A model whose closed parameters, by their names, are drawn at random; behind the `with` they are as they were."""
    closed = [parameter_of(model, name) for name in names]
    first = [float(parameter.detach().flatten()[0]) for parameter in closed]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in closed:
                parameter.normal_(std=_WAKING_STD, generator=generator)
        yield model
    finally:
        with torch.no_grad():
            for parameter, value in zip(closed, first, strict=True):
                parameter.fill_(value)


def wake(model: nn.Module, seed: int) -> None:
    """Draws every parameter that is zero throughout, or as small as a LayerScale begins, from N(0, 0.05²)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if is_closed(parameter):
                parameter.normal_(std=_WAKING_STD, generator=generator)
