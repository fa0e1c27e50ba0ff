"""What tells a network's tokens of equal content apart, measured by running it at several grids.

B batch · C latent channels · N tokens · D width · h w grid in tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dittool.audit.specimens.anatomy import Anatomy
from dittool.audit.specimens.specimen import Grid, Positions, relative_change
from dittool.audit.specimens.trial import Inputs, answer
from dittool.audit.specimens.watching import Call, attention_logits, ending_with

STORED_MOVES = 1e-4  # relative change of the first tokens by which a redrawn tensor holds positions


class Placed(Protocol):
    """A network whose latent's place in its tokens is known."""

    @property
    def anatomy(self) -> Anatomy: ...

    @property
    def shared_awake(self) -> nn.Module: ...

    @property
    def latent(self) -> str:
        """Which of forward's arguments."""
        ...

    @property
    def patch_size(self) -> int:
        """Latent cells along one side of a token."""
        ...

    def under_other_weights(self) -> nn.Module:
        """`awake()` with other weights."""
        ...

    def at_grid(self, grid: Grid) -> Inputs:
        """One sample of this size."""
        ...


def grids_that_run(network: Placed, grids: list[Grid]) -> tuple[list[Grid], str]:
    """Grids at which the network runs and answers in kind, and the first fault."""
    ran: list[Grid] = []
    problem = ""
    for grid in grids:
        where = f"at {grid[0]}×{grid[1]} tokens"
        try:
            inputs = network.at_grid(grid)
            shape = tuple(_answer(network.shared_awake, inputs).shape)
        except Exception as error:  # whatever somebody else's model raises for a shape
            first_line = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            problem = problem or f"{where} it does not run: {first_line}"
            continue
        latent = inputs[network.latent]
        alike = shape[-2:] == tuple(latent.shape[-2:]) if latent.dim() == 4 else shape[1] == latent.shape[1]
        if alike:
            ran.append(grid)
        else:
            problem = problem or f"{where}, a latent of {tuple(latent.shape)}, it answers in the shape {shape}"
    return ran, problem


def measure(
    network: Placed, grid: Grid, ran: list[Grid], problem: str, stored: dict[str, tuple[int, ...]]
) -> Positions:
    """Everything that is to be seen on one grid, which must not be square."""
    model, blank = network.shared_awake, network.at_grid(grid)
    blank[network.latent] = torch.zeros_like(blank[network.latent])
    here = token_differences(network, model, blank)  # (N, D)
    largest, learned, mixed = float(here.abs().max()), None, None
    if largest > 0 and not stored and not problem:
        elsewhere = token_differences(network, network.under_other_weights(), blank)
        learned = float((here - elsewhere).abs().max()) / largest
        cells = here[_token_of_patch(network, model, grid)].unflatten(0, grid)  # (h, w, D)
        # zero when f(row, column) = a(row) + b(column)
        mixed = float((cells - cells[:1] - cells[:, :1] + cells[:1, :1]).abs().max()) / largest
    by_step, by_distance = (None, None) if largest else _logit_spreads(network, model, grid, blank)
    return Positions(
        stored,
        ran,
        problem,
        grid,
        torch.finfo(here.dtype).eps,
        largest,
        learned,
        mixed,
        _exchanged(network, model, grid),
        by_step,
        by_distance,
        _strayed(network, model, grid),
    )


def stored_positions(network: Placed, model: nn.Module, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    """Tensors of the state dict that tell the first block's tokens apart, or that hold a table of the grid."""
    inputs[network.latent] = torch.zeros_like(inputs[network.latent])
    plain, plain_answer = token_differences(network, model, inputs), _answer(model, inputs)
    stored, sides = {}, {network.anatomy.tokens, math.isqrt(network.anatomy.tokens)}
    for name, tensor in _loose_tensors(model, network.anatomy.blocks):
        turns = not isinstance(tensor, nn.Parameter) and tensor.dim() >= 2 and bool(sides & set(tensor.shape))
        with _redrawn(tensor):
            other = token_differences(network, model, inputs)
            moved = relative_change(plain, other) > STORED_MOVES if plain.any() else bool(other.any())
            if moved or (turns and relative_change(plain_answer, _answer(model, inputs)) > STORED_MOVES):
                stored[name] = tuple(tensor.shape)
    return stored


@contextmanager
@torch.no_grad()
def _redrawn(tensor: Tensor) -> Iterator[None]:
    """A tensor with other values for a while."""
    kept = tensor.clone()
    tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    try:
        yield
    finally:
        tensor.copy_(kept)


def _loose_tensors(model: nn.Module, blocks: tuple[str, ...]) -> list[tuple[str, Tensor]]:
    """Floating-point tensors of the state dict outside of the blocks that are no layer's weight: parameters,
    buffers, embedding tables.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.GroupNorm)
    layers = {name for name, module in model.named_modules() if isinstance(module, kinds)}
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    saved = model.state_dict()
    loose = {
        name: tensor for name, tensor in tensors.items() if name in saved and name.rpartition(".")[0] not in layers
    }
    inside = tuple(f"{block}." for block in blocks)
    outside = {name: tensor for name, tensor in loose.items() if not name.startswith(inside) or tensor.dim() >= 2}
    return [(name, tensor) for name, tensor in outside.items() if tensor.is_floating_point()]


def token_differences(network: Placed, model: nn.Module, inputs: Inputs) -> Tensor:
    """(N, D): what tells the first block's latent tokens of equal content apart, relative to the first of them."""
    tokens = _first_tokens(network, model, inputs)[0]
    return tokens - tokens[:1]


def _first_tokens(network: Placed, model: nn.Module, inputs: Inputs) -> Tensor:
    """(B, N, D): the latent's tokens as the first block takes them."""
    with ending_with(model.get_submodule(network.anatomy.blocks[0])) as seen, torch.no_grad():
        answer(model, inputs)
    return network.anatomy.latent_tokens(seen[0])


def _token_of_patch(network: Placed, model: nn.Module, grid: Grid) -> list[int]:
    """For each patch of the latent in row-major order, the token that it becomes."""
    inputs = network.at_grid(grid)
    plain, order = _first_tokens(network, model, inputs), []
    for index in range(math.prod(grid)):
        changed = _with_patch(network, inputs, grid, index, lambda old: old + 1)
        order.append(int((_first_tokens(network, model, changed) - plain).abs().amax(dim=(0, 2)).argmax()))
    return order


def _with_patch(network: Placed, inputs: Inputs, grid: Grid, index: int, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with one patch of the latent changed."""
    latent = inputs[network.latent].clone()
    patch = _patch_of(latent, grid, network.patch_size, index)
    patch[...] = change(patch.clone())
    return {**inputs, network.latent: latent}


def _patch_of(latent: Tensor, grid: Grid, patch: int, index: int) -> Tensor:
    """A view of patch number `index`, row-major."""
    if latent.dim() == 3:
        return latent[:, index]
    row, column = divmod(index, grid[1])
    return latent[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]


def _exchanged(network: Placed, model: nn.Module, grid: Grid) -> float:
    """Relative change between the answer with its first and last patch exchanged and the answer to them exchanged."""
    inputs, patch, last = network.at_grid(grid), network.patch_size, math.prod(grid) - 1
    latent = inputs[network.latent]
    swapped = _with_patch(network, inputs, grid, 0, lambda _: _patch_of(latent, grid, patch, last).clone())
    swapped = _with_patch(network, swapped, grid, last, lambda _: _patch_of(latent, grid, patch, 0).clone())
    plain, other = _answer(model, inputs), _answer(model, swapped)
    expected = plain.clone()
    _patch_of(expected, grid, patch, 0)[...] = _patch_of(plain, grid, patch, last)
    _patch_of(expected, grid, patch, last)[...] = _patch_of(plain, grid, patch, 0)
    return relative_change(expected, other)


def _logit_spreads(network: Placed, model: nn.Module, grid: Grid, blank: Inputs) -> tuple[float | None, float | None]:
    """How much the first attention's logits between equal tokens vary, as a share of their range, between pairs the
    same rows and columns apart, and between pairs the same distance in the sequence apart.
    """
    with torch.no_grad(), attention_logits() as seen:
        answer(model, blank)
    count = math.prod(grid)
    square = (logits for logits in seen if logits.shape[-1] >= count and logits.shape[-1] == logits.shape[-2])
    first = next(square, None)
    if first is None:
        return None, None
    # other tokens stand in front, of this stream or of another
    start = first.shape[-1] - count - network.anatomy.after
    here = slice(start, start + count)
    logits = first.reshape(-1, *first.shape[-2:]).mean(dim=0)[here, here]  # (N, N)
    span = float(logits.max() - logits.min())
    if span <= 0:
        return None, None
    steps: dict[Any, list[float]] = {}
    distances: dict[Any, list[float]] = {}
    for i in range(count):
        for j in range(count):
            (r, c), (s, d) = divmod(i, grid[1]), divmod(j, grid[1])
            steps.setdefault((s - r, d - c), []).append(float(logits[i, j]))
            distances.setdefault(j - i, []).append(float(logits[i, j]))
    by_step, by_distance = (
        max(max(values) - min(values) for values in groups.values()) / span for groups in (steps, distances)
    )
    return by_step, by_distance


def _strayed(network: Placed, model: nn.Module, grid: Grid) -> tuple[int, int] | None:
    """With the blocks replaced by the identity a network answers to a token at the same place; None when it does."""
    inputs, patch = network.at_grid(grid), network.patch_size
    index = grid[1] - 1  # the last of the first row
    changed = _with_patch(network, inputs, grid, index, lambda old: old + 1)

    def closed(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        pairs = {id(after): before for before, after in Call(args, kwargs, output).streams}
        if isinstance(output, (tuple, list)):
            return type(output)(pairs.get(id(one), one) for one in output)
        return pairs[id(output)]

    blocks = (model.get_submodule(name) for name in network.anatomy.blocks)
    hooks = [block.register_forward_hook(closed, with_kwargs=True) for block in blocks]
    try:
        before, after = _answer(model, inputs), _answer(model, changed)
    finally:
        for hook in hooks:
            hook.remove()
    moved = [
        place
        for place in range(math.prod(grid))
        if (_patch_of(before, grid, patch, place) - _patch_of(after, grid, patch, place)).abs().max() > 0
    ]
    return None if not moved or index in moved else (index, moved[0])


@torch.no_grad()
def _answer(model: nn.Module, inputs: Inputs) -> Tensor:
    return answer(model, inputs)
