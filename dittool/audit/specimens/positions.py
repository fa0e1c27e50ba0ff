"""What makes a network's tokens of equal content differ, measured by running it at several grids.

B batch · C latent channels · N tokens · D width · h w grid in tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dittool.audit.specimens.anatomy import Anatomy
from dittool.audit.specimens.interventions import SharpAttention
from dittool.audit.specimens.parts import part_of
from dittool.audit.specimens.places import Places, Seen, places_of
from dittool.audit.specimens.specimen import OF_LOGITS, Grid, OnGrid, Problem, relative_change
from dittool.audit.specimens.spreads import logit_spreads, mixed, same_rows
from dittool.audit.specimens.stored import loose_tensors, redrawn, split_by_rows_and_columns
from dittool.audit.specimens.straying import around_another, elsewhere, ends, inner, passing_by
from dittool.audit.specimens.turns import CONTENTS, AttentionQueries, stretch_of_turn
from dittool.audit.specimens.watching import (
    AttentionLogits,
    Call,
    Inputs,
    answer_without_gradient,
    ending_with,
    hooked,
    is_tokens,
)

STORED_MOVES = 1e-4  # relative change of the first tokens by which a redrawn tensor holds positions
_SHOWS = 1e-3  # relative change of an answer that is surely more than rounding


@dataclass(frozen=True)
class OnGrids:
    """A network with open gates that takes a latent on any grid."""

    model: nn.Module
    anatomy: Anatomy
    latent: str  # which of forward's arguments
    patch_size: int  # latent cells along one side of a token
    at_grid: Callable[[Grid], Inputs]  # one batch of this size
    blank: Callable[[Inputs, int], Inputs]  # the inputs without content, for a number of tokens
    block: str = ""  # whose tokens and attention are looked at; by default the first that the latent passes
    passed_by: bool = False  # whether all other blocks are replaced by the identity
    channels_first: bool = False  # whether tokens in rows and columns come as (B, D, H, W)

    def grids_that_run(self, grids: Sequence[Grid]) -> tuple[list[Grid], list[Problem]]:
        """Grids at which the network runs and answers in kind, and the problems at others."""
        ran: list[Grid] = []
        problems: list[Problem] = []
        for grid in grids:
            where = f"at {grid[0]}×{grid[1]} tokens"
            try:
                inputs = self.at_grid(grid)
                answered = self._answer(self.model, inputs)
            except Exception as error:  # whatever somebody else's model raises for a shape
                message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                refused = isinstance(error, (AssertionError, ValueError))
                failed = f"{where} it does not run: {message}"
                problems.append(Problem(grid, failed, "refused" if refused else "broke"))
                continue
            if many := int((~torch.isfinite(answered)).sum()):
                infinite = f"{where} {many:,} of {answered.numel():,} values of its answer are NaN or infinite"
                problems.append(Problem(grid, infinite, "infinite"))
                continue
            shape = tuple(answered.shape)
            latent = inputs[self.latent]
            if shape[-2:] == tuple(latent.shape[-2:]) if latent.dim() >= 4 else set(latent.shape[1:]) & set(shape[1:]):
                ran.append(grid)
            else:
                wrong = f"{where}, a latent of {tuple(latent.shape)}, it answers in the shape {shape}"
                problems.append(Problem(grid, wrong, "wrong"))
        return ran, problems

    def measured(self, grid: Grid, other_weights: Callable[[], nn.Module] | None) -> OnGrid:
        """Everything that is to be seen on one grid.

        Args:
            other_weights: makes the network with open gates and other weights; None where what is learned is known.
        """
        inputs = self.at_grid(grid)
        blank = self._equal(inputs, grid)
        plain = self._seen(blank)
        places = self._places(grid, blank, plain)
        found = OnGrid(grid, exchanged=self._exchanged(grid, inputs), strayed=self._strayed(grid, inputs))
        if places.rows is None or places.stream is None:
            return found
        places, within = places.inside(grid)
        if min(within) < 2:
            return found
        here = self._differences(plain, places)  # (N, D)
        largest = float(here.abs().max())
        found = replace(found, rounding=torch.finfo(here.dtype).eps)
        if largest > 0 and self._is_of_edges(inputs, grid):
            return found
        if largest > 0:
            learned = None
            if other_weights is not None:
                other = replace(self, model=other_weights())._seen(blank)
                learned = float((here - self._differences(other, places)).abs().max()) / largest
            return replace(
                found, learned=learned, mixed=mixed(here, within) / largest, same_place=same_rows(here, most=0.75)
            )
        return self._of_attention(found, plain, places)

    def _of_attention(self, found: OnGrid, plain: Seen, places: Places) -> OnGrid:
        grid = found.grid
        if places.attention is None or places.queries is None or places.keys is None:
            return found
        logits = plain.logits[places.attention].mean(0)[places.queries][:, places.keys]  # (N, N)
        span = float(logits.max() - logits.min())
        if span <= 1e-5 * float(logits.abs().max()):
            return found  # attention knows no places
        by_step, by_distance = logit_spreads(logits, grid)
        stretch = None
        if by_step > OF_LOGITS * span and (split := mixed(logits, grid)) < by_step:
            stretch = self._stretch(grid, places)
            by_step = split if stretch is None else by_step  # of positions that are added in a block, queries split
        either = torch.cat([logits, logits.T], dim=1)
        return replace(
            found, by_step=by_step / span, by_distance=by_distance / span, same_place=same_rows(either), stretch=stretch
        )

    def _stretch(self, grid: Grid, places: Places) -> float | None:
        """How much positions that turn the picture's queries change their lengths; None where they do not turn them."""
        assert places.attention is not None and places.queries is not None
        blank, drawn = self.blank(self.at_grid(grid), math.prod(grid)), torch.Generator().manual_seed(3)
        shape = self._content_shape(blank[self.latent], grid)
        directions = torch.randn(2, *shape, generator=drawn)
        found = []
        for weights in torch.randn(CONTENTS, 2, generator=drawn):
            content = torch.einsum("i,i...->...", weights, directions).to(blank[self.latent])
            queries = AttentionQueries()
            with self._looked_at.register_forward_pre_hook(queries.begin):
                self._ended({**blank, self.latent: content.expand_as(blank[self.latent]).clone()}, queries)
            seen = queries.seen[places.attention] if places.attention < len(queries.seen) else None
            if seen is None:
                return None
            found.append(seen[:, places.queries])
        return stretch_of_turn(found)

    def stored_positions(self, grid: Grid) -> dict[str, tuple[int, ...]]:
        """Tensors of the state dict that make the first block's tokens differ, or that hold a table of the grid."""
        blank = self._equal(self.at_grid(grid), grid)
        plain = self._seen(blank, logits=False)
        places = self._places(grid, blank, plain)
        if places.rows is None or places.stream is None:
            return {}
        here, plain_answer = self._differences(plain, places), self._answer(self.model, blank)
        stored, sides = {}, {math.prod(grid), *grid}
        for name, tensor in loose_tensors(self.model, self.anatomy.blocks):
            turns = not isinstance(tensor, nn.Parameter) and tensor.dim() >= 2 and bool(sides & set(tensor.shape))
            with redrawn(tensor):
                other = self._differences(self._seen(blank, logits=False), places)
                moved = relative_change(here, other) > STORED_MOVES if here.any() else bool(other.any())
                if moved or (turns and relative_change(plain_answer, self._answer(self.model, blank)) > STORED_MOVES):
                    stored[name] = tuple(tensor.shape)
        return stored

    def mixed_by_table(self, grid: Grid, name: str) -> float | None:
        """What is left of the first block's positions, relative, when a row's and a column's part are taken away while
        a stored table holds such parts alone; None where it holds none, or they do not show.
        """
        table = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}[name]
        with split_by_rows_and_columns(table) as is_split:
            blank = self._equal(self.at_grid(grid), grid)
            plain = self._seen(blank, logits=False)
            places, within = self._places(grid, blank, plain).inside(grid)
            if not is_split or places.rows is None or min(within) < 2:
                return None
            here = self._differences(plain, places)
            largest = float(here.abs().max())
            return mixed(here, within) / largest if largest > 0 else None

    def tokens_of_latent(self, inputs: Inputs) -> int:
        """How many rows of the first block's tokens answer to the latent; 0 when none do."""
        other = {
            **inputs,
            self.latent: inputs[self.latent] + torch.randn(inputs[self.latent].shape).to(inputs[self.latent]),
        }
        plain, moved = self._seen(inputs, logits=False), self._seen(other, logits=False)
        counts = [
            int(((a - b).abs().amax(-1) > 0).sum()) if a.shape == b.shape else 0
            for a, b in zip(plain.tokens, moved.tokens, strict=True)
        ]
        return next((count for count in counts if count), 0)

    def token_differences(self, grid: Grid) -> Tensor:
        """(N, D): what tokens of equal content are given in the first block, relative to the first of them."""
        blank = self._equal(self.at_grid(grid), grid)
        plain = self._seen(blank, logits=False)
        return self._differences(plain, self._places(grid, blank, plain))

    def _answer(self, model: nn.Module, inputs: Inputs) -> Tensor:
        return answer_without_gradient(model, inputs, self.latent)

    def _differences(self, seen: Seen, places: Places) -> Tensor:
        assert places.stream is not None and places.rows is not None
        tokens = seen.tokens[places.stream][places.rows]
        return tokens - tokens[:1]

    def measured_in_block(self, grid: Grid) -> OnGrid:
        """What attention of a later block knows of places, with all other blocks passed by."""
        inputs = self.at_grid(grid)
        blank = self._equal(inputs, grid)
        plain = self._seen(blank)
        places, found = self._places(grid, blank, plain), OnGrid(grid, block=self.block)
        if places.rows is None or bool(self._differences(plain, places).any()):
            return found  # its tokens are not of equal content
        return self._of_attention(found, plain, places)

    def _equal(self, inputs: Inputs, grid: Grid) -> Inputs:
        """The inputs with equal content everywhere: zero, or where that makes tokens of zero, which know no angles, one
        number a channel.
        """
        blank = self.blank(inputs, math.prod(grid))
        pairs = zip(*(self._seen(each, logits=False).tokens for each in (blank, inputs)), strict=False)
        moved = [tokens for tokens, other in pairs if tokens.shape == other.shape and not torch.equal(tokens, other)]
        if any(bool(tokens.any()) for tokens in moved):
            return blank
        latent = blank[self.latent]
        shape = self._content_shape(latent, grid)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(latent)
        return {**blank, self.latent: drawn.expand_as(latent).clone()}

    def _content_shape(self, latent: Tensor, grid: Grid) -> list[int]:
        """Of one number a channel."""
        axis = 2 if latent.dim() == 3 and latent.shape[1] == math.prod(grid) else 1
        return [length if i == axis else 1 for i, length in enumerate(latent.shape)]

    def _is_of_edges(self, inputs: Inputs, grid: Grid) -> bool:
        """Whether tokens without content are zero everywhere: what differs between others is what padding does."""
        return not any(bool(tokens.any()) for tokens in self._seen(self.blank(inputs, math.prod(grid)), False).tokens)

    def _seen(self, inputs: Inputs, logits: bool = True) -> Seen:
        """Of the block that is looked at."""
        attention = AttentionLogits()
        with self._looked_at.register_forward_pre_hook(attention.begin):
            calls = self._ended(inputs, attention if logits else nullcontext())
        batch = len(inputs[self.latent])
        tokens = [tensor for tensor in calls[0].tensors if is_tokens(tensor)]
        return Seen([self._rows(tensor, batch) for tensor in tokens], attention.seen)

    @property
    def _looked_at(self) -> nn.Module:
        return part_of(self.model, self.block or self.anatomy.of_latent[0])

    def _ended(self, inputs: Inputs, mode: AbstractContextManager[object]) -> list[Call]:
        """Runs the network as far as to the end of the block that is looked at; its call."""
        looked_at = self._looked_at
        with (
            hooked(passing_by(self.model, self.anatomy, looked_at) if self.passed_by else ()),
            ending_with(looked_at) as calls,
            mode,
        ):
            answer_without_gradient(self.model, inputs)
        return calls

    def _places(self, grid: Grid, blank: Inputs, plain: Seen) -> Places:
        def raised(patches: Sequence[int], logits: bool) -> Seen:
            return self._seen(self._raised(blank, grid, patches), logits)

        return places_of(plain, raised, grid)

    def _raised(self, inputs: Inputs, grid: Grid, patches: Sequence[int]) -> Inputs:
        """The inputs with 1 added to some patches of the latent, numbered in row-major order."""
        latent = inputs[self.latent].clone()
        for patch in patches:
            self._patch_of(latent, grid, patch).add_(1)
        return {**inputs, self.latent: latent}

    def _patch_of(self, latent: Tensor, grid: Grid, index: int) -> Tensor:
        """A view of patch number `index`, row-major."""
        if latent.dim() == 3:
            return latent[:, index] if latent.shape[1] == math.prod(grid) else latent[..., index]
        (row, column), p = divmod(index, grid[1]), self.patch_size
        return latent[..., row * p : (row + 1) * p, column * p : (column + 1) * p]

    def _with_ends_exchanged(self, latent: Tensor, grid: Grid) -> Tensor:
        """With the first and the last patch in each other's place."""
        exchanged, last = latent.clone(), math.prod(grid) - 1
        self._patch_of(exchanged, grid, 0)[...] = self._patch_of(latent, grid, last)
        self._patch_of(exchanged, grid, last)[...] = self._patch_of(latent, grid, 0)
        return exchanged

    def _exchanged(self, grid: Grid, inputs: Inputs) -> float:
        """Relative change between the answer with its ends exchanged and the answer to the ends exchanged; where it is
        small that under sharp attention, in which positions show that only turn queries and keys.
        """
        swapped = {**inputs, self.latent: self._with_ends_exchanged(inputs[self.latent], grid)}
        plain, other = (self._answer(self.model, given) for given in (inputs, swapped))
        change = relative_change(self._with_ends_exchanged(plain, grid), other)
        if change > _SHOWS:
            return change
        with SharpAttention() as sharp:
            plain = self._answer(self.model, inputs)
            sharp.again()
            other = self._answer(self.model, swapped)
        return max(change, relative_change(self._with_ends_exchanged(plain, grid), other))

    def _strayed(self, grid: Grid, inputs: Inputs) -> tuple[int, int] | None:
        """With the blocks replaced by the identity a network answers to a token at its place; None when it does, or
        when it does not run so.
        """
        try:
            with hooked(passing_by(self.model, self.anatomy)):
                plain = self._answer(self.model, inputs)
                for index in dict.fromkeys((*ends(grid), *inner(grid))):
                    change = (plain - self._answer(self.model, self._raised(inputs, grid, [index]))).abs()
                    moved = torch.stack([self._patch_of(change, grid, i).max() for i in range(math.prod(grid))])
                    if (place := elsewhere(moved, index, grid)) is not None:
                        return index, place
        except Exception:  # what stands between its blocks needs what they do
            return None
        return None

    @torch.no_grad()
    def strayed_in_block(self, grid: Grid) -> tuple[int, int] | None:
        """A token whose change moves, in the block that is looked at, tokens around another place and none beside its
        own, as windows do that are put back in another order.
        """
        blank = self._equal(inputs := self.at_grid(grid), grid)
        places = self._places(grid, blank, self._seen(blank, logits=False))
        call, batch = self._ended(inputs, nullcontext())[0], len(inputs[self.latent])
        if places.stream is None or places.rows is None:
            return None
        tokens = list(filter(is_tokens, call.tensors))[places.stream]
        at = next((i for i, (before, _) in enumerate(call.streams) if before is tokens), None)
        if at is None:
            return None
        for index in inner(grid):
            other = call.again(
                self._looked_at, {id(tokens): self._with_row_moved(tokens, int(places.rows[index]), batch)}
            )
            before, after = (self._rows(each.streams[at][1], batch)[places.rows] for each in (call, other))
            if (place := around_another((before - after).abs().amax(-1), index, grid)) is not None:
                return index, place
        return None

    def _with_row_moved(self, tokens: Tensor, row: int, batch: int) -> Tensor:
        """With another value for one of the first sample's tokens."""
        moved = tokens.detach().clone()
        first = _first_sample(moved.movedim(1, -1) if self.channels_first and tokens.dim() > 3 else moved, batch)
        drawn = torch.randn(first.shape[-1], generator=torch.Generator().manual_seed(4))  # no one number: norms lose it
        first[torch.unravel_index(torch.tensor(row), first.shape[:-1])] += drawn.to(first)
        return moved

    def _rows(self, tokens: Tensor, batch: int) -> Tensor:
        """(rows, D) of the first sample."""
        first = _first_sample(tokens.movedim(1, -1) if self.channels_first and tokens.dim() > 3 else tokens, batch)
        return first if first.dim() == 2 else first.flatten(0, -2)


def _first_sample(tokens: Tensor, batch: int) -> Tensor:
    """Of tokens that may come sequence first."""
    axis = 1 if tokens.dim() == 3 and tokens.shape[0] != batch and tokens.shape[1] == batch else 0
    return tokens.select(axis, 0)
