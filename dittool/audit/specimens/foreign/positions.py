"""E2 on a foreign model: do positions follow the latent's height and width, and is nothing of them learned or stored?

B batch · C latent channels · N tokens · D width · h w grid in tokens
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.specimens.foreign.anatomy import Call, ending_with
from dittool.audit.specimens.foreign.attention import attention_logits
from dittool.audit.specimens.foreign.model import ForeignModel, answer
from dittool.audit.specimens.ours import relative_change

FIX = (
    "make positions on the fly from the batch's own rows and columns: 2-D sin-cos added to the tokens, or 2-D rotary"
    " angles"
)
_NOISE = 1e-4
_SHAPES_WANTED = 3
Grid = tuple[int, int]  # (rows, columns) in tokens


def check_positions(foreign: ForeignModel) -> list[Finding]:
    anatomy = foreign.anatomy
    if not anatomy.blocks or not anatomy.tokens:
        return skipped(
            "the latent's tokens were not found:"
            f" {anatomy.why_not or 'the latent does not reach the first block in one row'}"
        )
    faults = stored_positions(foreign)
    if not foreign.example.sizes_can_change:
        unseen = (
            "the latent comes as tokens, and --example does not take a height and width, so other shapes cannot be"
            " tried"
        )
        return _failures(faults) or skipped(unseen)
    patch = _patch_size(foreign)
    if patch is None:
        return _failures(faults) or skipped(
            f"{anatomy.tokens} tokens for a latent of {foreign.example.size}: the patch size cannot be told"
        )
    shapes, problem = _shapes_that_run(foreign, patch)
    if problem:
        faults.append(problem)
    odd = min((grid for grid in shapes if grid[0] != grid[1]), key=math.prod, default=None)
    if odd is not None:
        faults += _faults_on(foreign, odd, patch, stored=bool(faults))
    if faults:
        return _failures(faults)
    ran = ", ".join(f"{rows}×{columns}" for rows, columns in shapes)
    return passed(
        f"runs at {ran} tokens and answers in kind; positions are neither learned nor stored, and bind tokens to rows"
        " and columns"
    )


def stored_positions(foreign: ForeignModel) -> list[str]:
    """Tensors of the state dict that tell the first block's tokens apart, or that hold a table of the grid."""
    model = foreign.awake()
    inputs = foreign.example.inputs(batch=1)
    inputs[foreign.example.latent] = torch.zeros_like(inputs[foreign.example.latent])
    plain, plain_answer = _signature(foreign, model, inputs), _answer(model, inputs)
    stored, sides = [], {foreign.anatomy.tokens, math.isqrt(foreign.anatomy.tokens)}
    for name, tensor in _loose_tensors(model, foreign.anatomy.blocks):
        turns = not isinstance(tensor, nn.Parameter) and tensor.dim() >= 2 and bool(sides & set(tensor.shape))
        with _redrawn(tensor):
            other = _signature(foreign, model, inputs)
            moved = relative_change(plain, other) > _NOISE if plain.any() else bool(other.any())
            if moved or (turns and relative_change(plain_answer, _answer(model, inputs)) > _NOISE):
                stored.append(f"{name} {tuple(tensor.shape)}")
    return (
        [f"{len(stored)} tensors of the state dict hold positions of a fixed size, first {stored[0]}"] if stored else []
    )


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
    layers = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.LayerNorm, nn.GroupNorm))
    }
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    saved = model.state_dict()
    loose = {
        name: tensor for name, tensor in tensors.items() if name in saved and name.rpartition(".")[0] not in layers
    }
    inside = tuple(f"{block}." for block in blocks)
    outside = {name: tensor for name, tensor in loose.items() if not name.startswith(inside) or tensor.dim() >= 2}
    return [(name, tensor) for name, tensor in outside.items() if tensor.is_floating_point()]


def _signature(foreign: ForeignModel, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """(N, D): what tells the first block's latent tokens of equal content apart, relative to the first of them."""
    tokens = _first_tokens(foreign, model, inputs)[0]
    return tokens - tokens[:1]


def _first_tokens(foreign: ForeignModel, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """(B, N, D): the latent's tokens as the first block takes them."""
    with ending_with(model.get_submodule(foreign.anatomy.blocks[0])) as seen, torch.no_grad():
        answer(model, inputs)
    return foreign.anatomy.latent_tokens(seen[0])


@torch.no_grad()
def _answer(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return answer(model, inputs)


def _patch_size(foreign: ForeignModel) -> int | None:
    """Latent cells along a token's side; 1 for a latent that comes as tokens."""
    size, tokens = foreign.example.size, foreign.anatomy.tokens
    if size is None:
        return 1
    patch = math.isqrt(math.prod(size) // tokens)
    return patch if patch and patch**2 * tokens == math.prod(size) else None


def _shapes_that_run(foreign: ForeignModel, patch: int) -> tuple[list[Grid], str]:
    """Grids at which the model runs and answers in kind, and the first fault."""
    side = math.isqrt(foreign.anatomy.tokens)
    rows, columns = (
        (foreign.example.size[0] // patch, foreign.example.size[1] // patch) if foreign.example.size else (side, side)
    )
    wanted = list(
        dict.fromkeys(
            [(rows, columns), (2, 3), (rows, max(columns // 2, 1)), (max(rows // 2, 1), columns), (rows, columns * 2)]
        )
    )
    ran: list[Grid] = []
    problem = ""
    for grid in wanted:
        size = (grid[0] * patch, grid[1] * patch)
        try:
            inputs = foreign.example.inputs(size=size, batch=1)
            shape = tuple(_answer(foreign.shared_awake, inputs).shape)
        except Exception as error:  # whatever somebody else's model raises for a shape
            problem = problem or f"at {grid[0]}×{grid[1]} tokens it does not run: {_first_line(error)}"
            continue
        latent = inputs[foreign.example.latent]
        alike = shape[-2:] == tuple(latent.shape[-2:]) if latent.dim() == 4 else shape[1] == latent.shape[1]
        if alike:
            ran.append(grid)
        else:
            problem = (
                problem
                or f"at {grid[0]}×{grid[1]} tokens, a latent of {tuple(latent.shape)}, it answers in the shape {shape}"
            )
    if problem and len(ran) >= _SHAPES_WANTED and any(grid[0] != grid[1] for grid in ran):
        problem = ""  # a window or a stage may ask for multiples; the rule asks for three shapes
    return ran, problem


def _faults_on(foreign: ForeignModel, grid: Grid, patch: int, stored: bool) -> list[str]:
    """What is wrong with positions on a grid that is not square."""
    model, example = foreign.shared_awake, foreign.example
    size = (grid[0] * patch, grid[1] * patch)
    blank = example.inputs(size=size, batch=1)
    blank[example.latent] = torch.zeros_like(blank[example.latent])
    faults = []
    here = _signature(foreign, model, blank)
    scale, noise = float(here.abs().max()), max(_NOISE, 16 * torch.finfo(here.dtype).eps)
    if scale > 0 and not stored:
        elsewhere = _signature(foreign, foreign.under_other_weights(), blank)
        learned = float((here - elsewhere).abs().max()) / scale
        if learned > noise:
            faults.append(
                f"positions differ by {learned:.2g} of their size between two sets of weights: they are learned"
            )
        order = _token_of_patch(foreign, model, grid, patch)
        cells = here[order].unflatten(0, grid)  # (h, w, D)
        # zero when f(row, column) = a(row) + b(column)
        mixed = float((cells - cells[:1] - cells[:, :1] + cells[:1, :1]).abs().max()) / scale
        if mixed > noise and not faults:
            where = f"on {grid[0]}×{grid[1]} tokens"
            faults.append(
                f"{where} positions do not split into row and column (rest {mixed:.2g}): height and width are exchanged"
            )
    faults += _swap_fault(foreign, model, grid, patch)
    if scale == 0 and not faults:
        faults += _rotary_fault(foreign, model, grid, blank)
    return faults + _stray_fault(foreign, model, grid, patch)


def _token_of_patch(foreign: ForeignModel, model: nn.Module, grid: Grid, patch: int) -> list[int]:
    """For each patch of the latent in row-major order, the token that it becomes."""
    inputs = foreign.example.inputs(size=(grid[0] * patch, grid[1] * patch), batch=1)
    plain, order = _first_tokens(foreign, model, inputs), []
    for index in range(math.prod(grid)):
        changed = _with_patch(foreign, inputs, grid, patch, index, lambda old: old + 1)
        order.append(int((_first_tokens(foreign, model, changed) - plain).abs().amax(dim=(0, 2)).argmax()))
    return order


def _with_patch(
    foreign: ForeignModel, inputs: dict[str, Any], grid: Grid, patch: int, index: int, change: Any
) -> dict[str, Any]:
    """The inputs with one patch of the latent changed."""
    latent = inputs[foreign.example.latent].clone()
    _patch_of(latent, grid, patch, index)[...] = change(_patch_of(latent, grid, patch, index).clone())
    return {**inputs, foreign.example.latent: latent}


def _patch_of(latent: Tensor, grid: Grid, patch: int, index: int) -> Tensor:
    """A view of patch number `index`, row-major."""
    if latent.dim() == 3:
        return latent[:, index]
    row, column = divmod(index, grid[1])
    return latent[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]


def _swap_fault(foreign: ForeignModel, model: nn.Module, grid: Grid, patch: int) -> list[str]:
    inputs = foreign.example.inputs(size=(grid[0] * patch, grid[1] * patch), batch=1)
    last = math.prod(grid) - 1
    latent = inputs[foreign.example.latent]
    swapped = _with_patch(foreign, inputs, grid, patch, 0, lambda _: _patch_of(latent, grid, patch, last).clone())
    swapped = _with_patch(foreign, swapped, grid, patch, last, lambda _: _patch_of(latent, grid, patch, 0).clone())
    plain, other = _answer(model, inputs), _answer(model, swapped)
    expected = plain.clone()
    _patch_of(expected, grid, patch, 0)[...] = _patch_of(plain, grid, patch, last)
    _patch_of(expected, grid, patch, last)[...] = _patch_of(plain, grid, patch, 0)
    change = relative_change(expected, other)
    return (
        []
        if change > _NOISE
        else [
            f"exchanging two tokens merely exchanges their answers (relative change {change:.1g}): there are no"
            " positions"
        ]
    )


def _rotary_fault(foreign: ForeignModel, model: nn.Module, grid: Grid, blank: dict[str, Any]) -> list[str]:
    """Between tokens of equal content attention's logits depend on the step from row and column to row and column
    alone.
    """
    with torch.no_grad(), attention_logits() as seen:
        answer(model, blank)
    count = math.prod(grid)
    first = next(
        (logits for logits in seen if logits.shape[-1] >= count and logits.shape[-1] == logits.shape[-2]), None
    )
    if first is None:
        return []
    # other tokens stand in front, of this stream or of another
    offset = first.shape[-1] - count - foreign.anatomy.after
    # (N, N)
    logits = first.reshape(-1, *first.shape[-2:]).mean(dim=0)[offset : offset + count, offset : offset + count]
    steps: dict[tuple[int, int], list[float]] = {}
    apart: dict[int, list[float]] = {}
    for i in range(count):
        for j in range(count):
            (r, c), (s, d) = divmod(i, grid[1]), divmod(j, grid[1])
            steps.setdefault((s - r, d - c), []).append(float(logits[i, j]))
            apart.setdefault(j - i, []).append(float(logits[i, j]))
    spread = max(max(values) - min(values) for values in steps.values())
    whole = float(logits.max() - logits.min())
    if whole <= 0:
        return []
    if max(max(values) - min(values) for values in apart.values()) / whole <= 10 * _NOISE:
        return [
            "attention between equal tokens depends on their distance in the sequence alone: rows and columns are not"
            " told apart"
        ]
    if spread / whole <= 10 * _NOISE:
        return []
    return [
        f"on {grid[0]}×{grid[1]} tokens attention between equal tokens depends on more than their distance in rows and"
        f" columns ({spread / whole:.0%} of its range): height and width are exchanged, or the angles are not 2-D"
    ]


def _stray_fault(foreign: ForeignModel, model: nn.Module, grid: Grid, patch: int) -> list[str]:
    """With its blocks replaced by the identity a model answers to a token at the same place."""
    inputs = foreign.example.inputs(size=(grid[0] * patch, grid[1] * patch), batch=1)
    index = grid[1] - 1  # the last of the first row
    changed = _with_patch(foreign, inputs, grid, patch, index, lambda old: old + 1)

    def closed(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        pairs = {id(after): before for before, after in Call(args, kwargs, output).streams}
        return (
            type(output)(pairs.get(id(one), one) for one in output)
            if isinstance(output, (tuple, list))
            else pairs[id(output)]
        )

    hooks = [
        model.get_submodule(name).register_forward_hook(closed, with_kwargs=True) for name in foreign.anatomy.blocks
    ]
    try:
        before, after = _answer(model, inputs), _answer(model, changed)
    finally:
        for hook in hooks:
            hook.remove()
    moved = [
        one
        for one in range(math.prod(grid))
        if (_patch_of(before, grid, patch, one) - _patch_of(after, grid, patch, one)).abs().max() > 0
    ]
    if not moved or index in moved:
        return []
    return [f"with its blocks passed by, changing token {index} of the input changes token {moved[0]} of the output"]


def _failures(faults: list[str]) -> list[Finding]:
    return [finding for fault in faults for finding in failed(fault, FIX)]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
