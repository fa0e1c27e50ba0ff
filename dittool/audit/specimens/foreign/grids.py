"""On which grids a foreign model is run, and what its positions do there."""

from __future__ import annotations

import math
from dataclasses import replace
from time import thread_time
from typing import TYPE_CHECKING

from dittool.audit.specimens.parts import part_of
from dittool.audit.specimens.positions import OnGrids
from dittool.audit.specimens.specimen import Grid, NotAnswered, OnGrid, Positions
from dittool.audit.specimens.watching import Inputs, answers_without_gradient, ending_with

if TYPE_CHECKING:
    from dittool.audit.specimens.foreign.model import ForeignModel

_SHAPES_WANTED = 3
_SECONDS = 8.0  # of this thread's work, to look at attention of blocks beside the first
_MOST_ASTRAY = 4  # blocks in which it is looked at where answers stand
_TOKENS = (256, 64)
_USUAL_TOKENS = 32  # of the grid on which that is
_GRIDS_OF_LARGE = 1  # more, on which positions of a large model are measured


def positions_of(foreign: ForeignModel) -> Positions:
    """On several grids. Raises `NotAnswered` where the latent's tokens are not found or no other size can be tried."""
    anatomy, feed = foreign.anatomy, foreign.feed
    if not anatomy.of_latent:
        why = anatomy.why_not or "the latent reaches none of the blocks"
        raise NotAnswered(f"the latent's tokens were not found: {why}")
    patch, grid = foreign.patch_and_grid
    grids = OnGrids(
        foreign.shared_awake,
        anatomy,
        feed.latent,
        patch,
        lambda grid: feed.inputs(size=(grid[0] * patch, grid[1] * patch)) if feed.sizes_can_change else feed.inputs(),
        feed.without_content,
        channels_first=foreign.channels_first,
    )
    found = Positions(grids.stored_positions(grid), not_fed=tuple(feed.positions_not_fed))
    if not feed.sizes_can_change:
        if found.stored:
            return found
        why = "in how many rows and columns is not known: name with --example a function of the model, height and width"
        raise NotAnswered(f"the latent comes as tokens, and {why}")
    ran, problems = grids.grids_that_run(_usual_grids(grid, foreign.large))
    oblong = [grid for grid in ran if grid[0] != grid[1]]
    if len(ran) >= _SHAPES_WANTED and oblong:
        # a window or a stage may ask for multiples of something; of the example's own grid they are that
        problems = [each for each in problems if each.kind == "infinite" or _is_multiple(each.grid, grid)]
    weights = None if found.stored or problems else foreign.under_other_weights
    first = min(oblong or ran, key=math.prod)
    others = sorted(set(ran) - {first}, key=math.prod)[: _GRIDS_OF_LARGE if foreign.large else None]
    measured: list[OnGrid] = []
    for each in (first, *others):
        learned = any(on.learned is not None for on in measured)
        measured.append(grids.measured(each, None if learned else weights))
    tables: dict[Grid, float] = {}
    for grid in dict.fromkeys([first, *others[-1:]]) if len(found.stored) == 1 and not problems else ():
        rest = grids.mixed_by_table(grid, next(iter(found.stored)))
        tables |= {} if rest is None else {grid: rest}
    if oblong:
        measured += _in_other_blocks(foreign, grids, min(oblong, key=lambda grid: abs(math.prod(grid) - _USUAL_TOKENS)))
    measured += _astray(grids, ran)
    return replace(found, ran=ran, problems=problems, grids=measured, tables=tables)


def _in_other_blocks(foreign: ForeignModel, grids: OnGrids, grid: Grid) -> list[OnGrid]:
    """What attention of other blocks knows of places, all others passed by: the first and the last of each list, then
    the others, as long as there is time.
    """
    lists: dict[str, list[str]] = {}
    for block in foreign.anatomy.of_latent:
        lists.setdefault(block.rpartition(".")[0], []).append(block)
    ends = [block for blocks in lists.values() for block in (blocks[0], *blocks[:-2:-1])]
    others = list(dict.fromkeys([*ends, *foreign.anatomy.of_latent]))
    inputs, found, until = grids.at_grid(grid), list[OnGrid](), thread_time() + _SECONDS
    for block in others[1:]:
        if thread_time() > until:
            break
        at = replace(grids, block=block, passed_by=True)
        try:
            tokens = at.tokens_of_latent(inputs)
            size = [side * grids.patch_size for side in grid]
            patch = math.isqrt(math.prod(size) // max(tokens, 1))  # a stage may have merged tokens
            if patch % grids.patch_size or patch**2 * tokens != math.prod(size) or not all(size):
                continue
            merged = patch // grids.patch_size
            if merged > 1 and (foreign.feed.size is None or any(side % merged for side in grid)):
                continue
            at = replace(at, patch_size=patch, at_grid=lambda _grid: inputs)
            found.append(at.measured_in_block((grid[0] // merged, grid[1] // merged)))
        except Exception:  # what stands between the blocks needs what they do
            continue
    return found


def _astray(grids: OnGrids, ran: list[Grid]) -> list[OnGrid]:
    """The first of the blocks in which what is done to a token shows around another place, on the largest grid on which
    places are found by spelling, and on which they are by raising each.
    """
    largest = [max((grid for grid in ran if math.prod(grid) <= most), key=math.prod, default=None) for most in _TOKENS]
    for block in grids.anatomy.of_latent[:_MOST_ASTRAY]:
        for grid in filter(None, dict.fromkeys(largest)):
            try:
                astray = replace(grids, block=block, passed_by=True).strayed_in_block(grid)
            except Exception:  # what stands between the blocks needs what they do
                continue
            if astray is not None:
                return [OnGrid(grid, astray=astray, block=block)]
    return []


def patch_and_grid(foreign: ForeignModel) -> tuple[int, Grid]:
    """Latent cells along one side of a token, and the example's rows and columns of tokens."""
    feed, inputs = foreign.feed, foreign.inputs()
    probe = OnGrids(
        foreign.shared_awake,
        foreign.anatomy,
        feed.latent,
        1,
        lambda _grid: inputs,
        feed.without_content,
        channels_first=foreign.channels_first,
    )
    tokens, size = probe.tokens_of_latent(inputs), feed.size
    if not tokens:
        raise NotAnswered("the latent's tokens were not found among what the first block takes")
    if size is None:
        side = math.isqrt(tokens)
        if not feed.sizes_can_change:
            return 1, (side, side) if side * side == tokens else (1, tokens)
        size = (2 * side, 2 * side)
        tokens = probe.tokens_of_latent(feed.inputs(size=size))
    patch = math.isqrt(math.prod(size) // tokens)
    if patch**2 * tokens != math.prod(size):
        raise NotAnswered(f"{tokens} tokens for a latent of {size}: no patch size gives that number")
    return patch, (size[0] // patch, size[1] // patch)


def _is_multiple(grid: Grid, of: Grid) -> bool:
    return grid[0] % of[0] == 0 == grid[1] % of[1]


def has_channels_first(foreign: ForeignModel) -> bool:
    """Whether the first block takes (B, D, H, W): of another width of the latent its last axis is another, and of
    another height the one before; where no other size runs, whether these two alone are the latent's by one factor.
    """
    feed, block = foreign.feed, part_of(foreign.shared_awake, foreign.anatomy.of_latent[0])

    def shape_of(inputs: Inputs) -> tuple[int, ...]:
        with ending_with(block) as calls:
            answers_without_gradient(foreign.shared_awake, inputs)
        return tuple(next((tokens.shape for tokens in calls[0].carried if tokens.dim() > 3), ()))

    plain, size = shape_of(foreign.inputs()), feed.size
    if not plain or size is None:
        return False
    try:
        other = shape_of(feed.inputs(size=(size[0], 2 * size[1])))
        return other[-1] != plain[-1]
    except Exception:  # whatever the model raises for another size
        (rows, columns), last = size, [size[0] // side for side in plain[-3:]]
        fits = [rows % side == 0 == columns % side for side in plain[-3:]]
        return all(fits[1:]) and last[1] == last[2] and not (fits[0] and last[0] == last[1])


def _usual_grids(grid: Grid, large: bool) -> list[Grid]:
    """The example's own, small ones, with half and twice as many rows or columns, and odd ones, wide and tall."""
    rows, columns = grid
    halves = [(rows, max(columns // 2, 1)), (max(rows // 2, 1), columns)]
    more = [] if large else [(3, 2), (5, 9), (9, 5), (rows * 2, columns), (rows + 1, columns * 2 + 1)]
    return list(dict.fromkeys([grid, (2, 3), *halves, (rows, columns * 2), *more]))
