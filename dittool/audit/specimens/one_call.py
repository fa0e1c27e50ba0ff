"""What one call of a module shows of it: whether it keeps its tokens beside what it adds, mixes their places, is fed by
a condition, or hands its tokens on to another.

B batch · N tokens · D width
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dittool.audit.specimens.watching import Call, is_tokens, is_vector

MOST_VECTORS = 12  # of a modulation
_ROUNDING = 1e-4  # of a sum of answers, relative


def moves(plain: Call, other: Call | None) -> bool:
    """Whether tokens that a module takes differ between two of its calls."""
    if other is None or len(plain.tensors) != len(other.tensors):
        return other is not None
    pairs = zip(plain.tensors, other.tensors, strict=True)
    return any(is_tokens(a) and (a.shape != b.shape or not torch.equal(a, b)) for a, b in pairs)


def is_fed(module: nn.Module, plain: Call, other: Call, batch: int) -> bool:
    """Whether a vector, or a table of a few for each sample, differs between two calls of a module, and that shows."""
    carried = {id(tokens) for tokens in plain.carried}
    changed = {
        id(a): b
        for a, b in zip(plain.tensors, other.tensors, strict=False)
        if a.is_floating_point() and id(a) not in carried and (is_vector(a, batch) or _is_table(a))
        if a.shape == b.shape and not torch.equal(a, b)
    }
    if not changed:
        return False
    with torch.no_grad():
        pairs = zip(plain.outputs, plain.again(module, changed).outputs, strict=False)
        return any(a.shape == b.shape and not torch.equal(a, b) for a, b in pairs)


def _is_table(tensor: Tensor) -> bool:
    """(B, n, D) with a few vectors."""
    return tensor.dim() == 3 and tensor.shape[1] <= MOST_VECTORS


def has_residual(module: nn.Module, call: Call) -> bool:
    """Whether a module with every weight at zero returns the tokens that it takes, or these times a number."""
    try:
        empty = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in empty.parameters():
                parameter.zero_()
            outputs = call.again(empty).outputs
    except Exception:  # it cannot be copied, or divides by a weight
        return False
    taken = [tensor for tensor in call.tensors if is_tokens(tensor)]
    return any(given.shape == tokens.shape and _is_multiple(given, tokens) for given in outputs for tokens in taken)


def _is_multiple(given: Tensor, tokens: Tensor) -> bool:
    """Whether one is the other, or this times a number, as of (x + block(x)) / √2."""
    if torch.equal(given, tokens):
        return True
    times = given.flatten()[tokens.abs().argmax()] / tokens.abs().max().clamp_min(1e-30)
    return bool(given.any()) and torch.allclose(given.abs(), tokens.abs() * times.abs(), rtol=1e-4, atol=1e-6)


def mixes(module: nn.Module, call: Call) -> bool:
    """Whether each place's answer depends on far places, as an MLP's or a convolution's does not."""
    tokens = call.streams[0][0]
    axes = range(1, tokens.dim()) if tokens.dim() > 3 else [0 if tokens.shape[0] > tokens.shape[1] else 1]
    for axis in axes:
        moved = tokens.clone()
        last = moved.select(axis, -1)
        last += torch.randn(last.shape, generator=torch.Generator().manual_seed(0)).to(last)
        with torch.no_grad():
            outputs = call.again(module, {id(tokens): moved}).outputs
        pairs = zip(call.outputs, outputs, strict=True)
        if not any(a.shape == tokens.shape and not torch.equal(a.select(axis, 0), b.select(axis, 0)) for a, b in pairs):
            return False
    return True


def linked(before: Call, after: Call) -> bool:
    """Whether one call takes tokens that the other gave."""
    return any(
        taken.shape == given.shape and torch.equal(given, taken)
        for _, given in before.streams
        for taken in after.tensors
    )


def added_before(before: Call, after: Call) -> bool:
    """Whether one call takes the sum of the tokens that the other took and those that it gave."""
    return any(
        taken.shape == given.shape and torch.allclose(tokens + given, taken, rtol=1e-4, atol=1e-5)
        for tokens, given in before.streams
        for taken in after.carried
    )


@torch.no_grad()
def not_linear(call: Call, block: nn.Module) -> float:
    """max |block(x + y) − block(x) − block(y) + block(0)|: zero where a block that gives its tokens another shape is no
    more than its shortcut.
    """
    x = call.carried[0]
    y = x.flip(0, -1)
    answers = [call.again(block, {id(x): given}).outputs for given in (x + y, x, y, torch.zeros_like(x))]
    both, first, second, none = (next(filter(is_tokens, outputs)) for outputs in answers)
    rest = float((both - first - second + none).abs().max().nan_to_num(torch.inf, torch.inf))
    return rest if rest > _ROUNDING * float(first.abs().max()) else 0.0
