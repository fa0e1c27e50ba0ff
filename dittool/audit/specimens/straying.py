"""Whether what is done to a token shows at the token's own place: with the blocks passed by, and inside of one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dittool.audit.specimens.anatomy import Anatomy
from dittool.audit.specimens.parts import part_of
from dittool.audit.specimens.specimen import Grid
from dittool.audit.specimens.watching import Call

_ROUNDING = 1e-5  # of the largest change
_LEAST = 1e-4  # of the token's own change, of what a window's tokens hand to each other
_REACH = 2  # rows or columns over which a convolution's kernel may leap
_AREA = 4  # places that are more than a lattice's


def ends(grid: Grid) -> tuple[int, ...]:
    """The last token of the first row and the first of the last."""
    return tuple(dict.fromkeys((grid[1] - 1, math.prod(grid) - grid[1])))


def inner(grid: Grid) -> tuple[int, ...]:
    """Two tokens away from the edges, which rows and columns exchanged put elsewhere."""
    rows, columns = grid
    places = ((rows // 4, columns - 1 - columns // 4), (rows - 1 - rows // 4, columns // 4))
    return tuple(dict.fromkeys(row * columns + column for row, column in places))


def elsewhere(moved: Tensor, index: int, grid: Grid) -> int | None:
    """A place that moves while the token's own does not, or that is not joined to it by others that do, where few do;
    None when there is none. `moved` (N,) are changes at each place.
    """
    shown = moved > _ROUNDING * moved.max()
    if not bool(shown.any()) or not bool(moved[index] > 0):
        return int(shown.nonzero()[0]) if bool(shown.any()) else None
    apart = shown & ~_joined(shown, index, grid, _REACH)
    if index not in inner(grid) or int(shown.sum()) > len(shown) // 2:
        return None
    return int(apart.nonzero()[0]) if bool(apart.any()) else None


def around_another(moved: Tensor, index: int, grid: Grid) -> int | None:
    """A place among several beside each other that move, where most do not, and none beside the token's own."""
    shown = moved > 0
    if int(_joined(shown, index, grid, 1).sum()) > 1 or int(shown.sum()) > len(shown) // 2:
        return None
    shown[index] = False
    if not bool(shown.any()) or float(moved[shown].max()) < _LEAST * float(moved[index]):
        return None  # all places move, and few by more than rounding hides
    found = (_joined(shown, int(place), grid, 1) for place in shown.nonzero().flatten())
    return next((int(area.nonzero()[0]) for area in found if int(area.sum()) >= _AREA), None)


def _joined(shown: Tensor, index: int, grid: Grid, reach: int) -> Tensor:
    """(N,): the places that show and are joined to one by steps of up to `reach` rows and columns."""
    cells, found = shown.unflatten(0, grid), torch.zeros(grid, dtype=torch.bool)
    found[divmod(index, grid[1])] = True
    while True:
        near = F.max_pool2d(found[None].float(), 2 * reach + 1, stride=1, padding=reach)[0] > 0
        wider = found | (near & cells)
        if torch.equal(wider, found):
            return found.flatten()
        found = wider


def passing_by(model: nn.Module, anatomy: Anatomy, but: nn.Module | None = None) -> Iterator[RemovableHandle]:
    """Hooks with which all blocks but one leave their tokens as they are, branches by adding nothing."""
    for name in anatomy.blocks:
        block, passed = part_of(model, name), _nothing if name in anatomy.branches else _as_identity
        if block is not but:
            yield block.register_forward_hook(passed, with_kwargs=True)


def _as_identity(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> object:
    """A block's output with each stream of tokens as it came in."""
    return _with_streams(output, {id(after): tokens for tokens, after in Call(args, kwargs, output).streams})


def _with_streams(output: object, others: Mapping[int, Tensor]) -> object:
    """A block's output with others in the place of some tensors, by their id."""
    if isinstance(output, Mapping):
        return {key: others.get(id(part), part) for key, part in output.items()}
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        return tuple(others.get(id(part), part) for part in output)
    if isinstance(output, list):
        return [others.get(id(part), part) for part in output]
    return others.get(id(output), output)


def _nothing(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> object:
    """A branch's output with zeros in the place of each stream of tokens."""
    empty = {id(after): torch.zeros_like(after) for _, after in Call(args, kwargs, output).streams}
    return _with_streams(output, empty)
