"""On which grids a foreign model is run, and what its positions do there."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from dittool.audit.specimens.positions import OnGrids
from dittool.audit.specimens.specimen import Grid, NotAnswered, Positions

if TYPE_CHECKING:
    from dittool.audit.specimens.foreign.model import ForeignModel

_SHAPES_WANTED = 3
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
    )
    found = Positions(grids.stored_positions(grid), chance=foreign.forward_run().chance)
    if not feed.sizes_can_change:
        if found.stored:
            return found
        why = "--example does not take a height and width, so other shapes cannot be tried"
        raise NotAnswered(f"the latent comes as tokens, and {why}")
    ran, problems = grids.grids_that_run(_usual_grids(grid, foreign.large))
    oblong = [grid for grid in ran if grid[0] != grid[1]]
    if len(ran) >= _SHAPES_WANTED and oblong:
        # a window or a stage may ask for multiples of something; of the example's own grid they are that
        problems = [each for each in problems if each.grid[0] % grid[0] == 0 == each.grid[1] % grid[1]]
    weights = None if found.stored or problems else foreign.under_other_weights
    first = min(oblong or ran, key=math.prod)
    others = sorted(set(ran) - {first}, key=math.prod)[: _GRIDS_OF_LARGE if foreign.large else None]
    measured = [grids.measured(first, weights), *(grids.measured(grid, None) for grid in others)]
    return replace(found, ran=ran, problems=problems, grids=measured)


def patch_and_grid(foreign: ForeignModel) -> tuple[int, Grid]:
    """Latent cells along one side of a token, and the example's rows and columns of tokens."""
    feed, inputs = foreign.feed, foreign.inputs()
    probe = OnGrids(foreign.shared_awake, foreign.anatomy, feed.latent, 1, lambda _grid: inputs, feed.without_content)
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


def _usual_grids(grid: Grid, large: bool) -> list[Grid]:
    """The example's own, small ones, with half and twice as many rows or columns, and odd ones, wide and tall."""
    rows, columns = grid
    halves = [(rows, max(columns // 2, 1)), (max(rows // 2, 1), columns)]
    more = [] if large else [(3, 2), (5, 9), (9, 5), (rows * 2, columns), (rows + 1, columns * 2 + 1)]
    return list(dict.fromkeys([grid, (2, 3), *halves, (rows, columns * 2), *more]))
