"""Which token and which query and key of attention belong to which patch of the latent.

Found by raising patches, half of them at a time: after ⌈log₂(N + 1)⌉ runs each row that answers spells its patch's
number. Where a patch reaches its neighbours' tokens too, some are raised by themselves: what answers must lie around
each, in row-major order; else, of few, each patch has the row that it moves most.

N tokens · D width · h w grid in tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dittool.audit.specimens.specimen import Grid

_FEW = 64  # patches: where numbers cannot be spelled, each of so few is raised by itself


@dataclass(frozen=True)
class Seen:
    """What a network's first block was given, and the logits of attention up to its end."""

    tokens: list[Tensor]  # each of the block's inputs of tokens, as (rows, D) of the first sample
    logits: list[Tensor]  # (heads, queries, keys) of each attention


@dataclass(frozen=True)
class Places:
    """Where patches of the latent stand, in row-major order; None where that was not found."""

    stream: int | None  # which of the first block's inputs of tokens
    rows: Tensor | None  # (N,) of that input
    attention: int | None  # which attention
    queries: Tensor | None  # (N,) of its rows
    keys: Tensor | None  # (N,) of its columns
    reach: int = 0  # rows or columns over which a patch reaches other tokens

    def inside(self, grid: Grid) -> tuple[Places, Grid]:
        """Without the tokens that an edge's padding reaches, and how many rows and columns are left."""
        if self.rows is None or not self.reach:
            return self, grid
        rows, columns = (slice(self.reach, max(side - self.reach, self.reach)) for side in grid)
        within = self.rows.unflatten(0, grid)[rows, columns]
        return replace(self, rows=within.flatten()), (within.shape[0], within.shape[1])


def places_of(plain: Seen, raised: Callable[[Sequence[int], bool], Seen], grid: Grid) -> Places:
    """`raised` gives what is seen with some patches raised, with logits or without."""
    count, logits = math.prod(grid), bool(plain.logits)
    bits = [[code for code in range(count) if (code + 1) >> bit & 1] for bit in range(count.bit_length())]
    halves = [raised(patches, logits) for patches in bits]

    def first(
        kind: Callable[[Seen], list[Tensor]], spelled: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[int | None, Tensor | None]:
        """The first tensor of a kind in which every patch answers in one row, and these rows."""
        for index, tensor in enumerate(kind(plain)):
            others = [kind(seen)[index] for seen in halves if index < len(kind(seen))]
            if len(others) == len(halves) and all(other.shape == tensor.shape for other in others):
                codes = sum(spelled(tensor, other).long() << bit for bit, other in enumerate(others))
                if (rows := _rows_of(codes, count)) is not None:
                    return index, rows
        return None, None

    stream, rows = first(lambda seen: seen.tokens, lambda a, b: (a != b).any(-1))
    reach = 0
    if stream is None:
        stream, rows, reach = _rows_around(plain, lambda patch: raised([patch], False), grid)
    if stream is None and count <= _FEW:
        stream, rows = _nearest_rows(plain, [raised([patch], False) for patch in range(count)])
    attention, queries = first(lambda seen: seen.logits, lambda a, b: (a != b).any(0).all(1))
    keys = None
    if attention is not None:
        others = [seen.logits[attention] for seen in halves]
        changed = [(plain.logits[attention] != other).any(0).all(0).long() << bit for bit, other in enumerate(others)]
        keys = _rows_of(sum(changed), count)
    return Places(stream, rows, attention, queries, keys, reach)


def _rows_of(codes: Tensor | int, count: int) -> Tensor | None:
    """(N,): the row that spells 1, 2, … N; None unless each is spelled by one row."""
    if isinstance(codes, int):
        return None
    rows = ((codes > 0) & (codes <= count)).nonzero().flatten()
    if len(rows) != count or len(codes[rows].unique()) != count:
        return None
    found = torch.empty(count, dtype=torch.long)
    found[codes[rows] - 1] = rows
    return found


def _rows_around(plain: Seen, raised: Callable[[int], Seen], grid: Grid) -> tuple[int | None, Tensor | None, int]:
    """Rows in row-major order, the first or the last of a tensor, where each of nine patches moves those of a rectangle
    around its own place, as through a stem of convolutions; and how far it reaches.
    """
    (rows, columns), count = grid, math.prod(grid)
    places = [(row, column) for row in {0, rows // 2, rows - 1} for column in {0, columns // 2, columns - 1}]
    each = [raised(row * columns + column) for row, column in places]
    for index, tokens in enumerate(plain.tokens):
        if len(tokens) < count or any(seen.tokens[index].shape != tokens.shape for seen in each):
            continue
        for start in dict.fromkeys((0, len(tokens) - count)):
            shown = [(seen.tokens[index] != tokens).any(-1)[start : start + count].unflatten(0, grid) for seen in each]
            reaches = [_reach_around(area, place) for area, place in zip(shown, places, strict=True)]
            if None not in reaches and not shown[0].all():
                return index, torch.arange(start, start + count), max(reach or 0 for reach in reaches)
    return None, None, 0


def _reach_around(area: Tensor, place: Grid) -> int | None:
    """How far what shows reaches from a place that is in its middle, as far as the grid goes; None where it is not."""
    found = area.nonzero()
    if not len(found):
        return None
    (top, left), (bottom, right) = found.amin(0).tolist(), found.amax(0).tolist()
    down, across = max(place[0] - top, bottom - place[0]), max(place[1] - left, right - place[1])
    whole = torch.zeros_like(area)
    whole[max(place[0] - down, 0) : place[0] + down + 1, max(place[1] - across, 0) : place[1] + across + 1] = True
    return max(down, across) if torch.equal(area, whole) else None


def _nearest_rows(plain: Seen, each: Sequence[Seen]) -> tuple[int | None, Tensor | None]:
    """Of each patch the row that it moves most, where these are all different."""
    for index, tokens in enumerate(plain.tokens):
        if all(seen.tokens[index].shape == tokens.shape for seen in each):
            rows = torch.stack([(seen.tokens[index] - tokens).abs().amax(-1).argmax() for seen in each])
            if len(rows.unique()) == len(rows):
                return index, rows
    return None, None
