"""What makes a network's tokens of equal content differ, measured by running it at several grids.

Which token and which query and key of attention belong to which patch of the latent is found by raising patches, half
of them at a time: after ⌈log₂(N + 1)⌉ runs each row that answers spells its patch's number.

B batch · C latent channels · N tokens · D width · h w grid in tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dittool.audit.specimens.anatomy import Anatomy
from dittool.audit.specimens.interventions import SharpAttention
from dittool.audit.specimens.specimen import OF_LOGITS, Grid, OnGrid, Problem, relative_change
from dittool.audit.specimens.spreads import logit_spreads, mixed, same_rows
from dittool.audit.specimens.stored import loose_tensors, redrawn
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
_FEW = 64  # patches: where numbers cannot be spelled, each of so few is raised by itself


@dataclass(frozen=True)
class _Seen:
    """What a network's first block was given, and the logits of attention up to its end."""

    tokens: list[Tensor]  # each of the block's inputs of tokens, as (rows, D) of the first sample
    logits: list[Tensor]  # (heads, queries, keys) of each attention


@dataclass(frozen=True)
class _Places:
    """Where patches of the latent stand, in row-major order; None where that was not found."""

    stream: int | None  # which of the first block's inputs of tokens
    rows: Tensor | None  # (N,) of that input
    attention: int | None  # which attention
    queries: Tensor | None  # (N,) of its rows
    keys: Tensor | None  # (N,) of its columns


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
                shape = tuple(self._answer(self.model, inputs).shape)
            except Exception as error:  # whatever somebody else's model raises for a shape
                message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                refused = isinstance(error, (AssertionError, ValueError))
                failed = f"{where} it does not run: {message}"
                problems.append(Problem(grid, failed, "refused" if refused else "broke"))
                continue
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
                found, learned=learned, mixed=mixed(here, grid) / largest, same_place=same_rows(here, most=0.75)
            )
        return self._of_attention(found, plain, places)

    def _of_attention(self, found: OnGrid, plain: _Seen, places: _Places) -> OnGrid:
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

    def _stretch(self, grid: Grid, places: _Places) -> float | None:
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

    def _differences(self, seen: _Seen, places: _Places) -> Tensor:
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
        if any(bool(tokens.any()) for tokens in self._seen(blank, logits=False).tokens):
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

    def _seen(self, inputs: Inputs, logits: bool = True) -> _Seen:
        """Of the block that is looked at."""
        attention = AttentionLogits()
        with self._looked_at.register_forward_pre_hook(attention.begin):
            calls = self._ended(inputs, attention if logits else nullcontext())
        batch = len(inputs[self.latent])
        tokens = [tensor for tensor in calls[0].tensors if is_tokens(tensor)]
        if self.channels_first:
            tokens = [tensor.movedim(1, -1) if tensor.dim() > 3 else tensor for tensor in tokens]
        return _Seen([_rows(tensor, batch) for tensor in tokens], attention.seen)

    @property
    def _looked_at(self) -> nn.Module:
        return self.model.get_submodule(self.block or self.anatomy.of_latent[0])

    def _ended(self, inputs: Inputs, mode: AbstractContextManager[object]) -> list[Call]:
        """Runs the network as far as to the end of the block that is looked at; its call."""
        looked_at = self._looked_at
        with hooked(self._passing_by(looked_at) if self.passed_by else ()), ending_with(looked_at) as calls, mode:
            answer_without_gradient(self.model, inputs)
        return calls

    def _passing_by(self, but: nn.Module | None = None) -> Iterator[RemovableHandle]:
        """Hooks with which all blocks but one leave their tokens as they are, branches by adding nothing."""
        for name in self.anatomy.blocks:
            block, passed = self.model.get_submodule(name), _nothing if name in self.anatomy.branches else _as_identity
            if block is not but:
                yield block.register_forward_hook(passed, with_kwargs=True)

    def _places(self, grid: Grid, blank: Inputs, plain: _Seen) -> _Places:
        count, logits = math.prod(grid), bool(plain.logits)
        bits = [[code for code in range(count) if (code + 1) >> bit & 1] for bit in range(count.bit_length())]
        raised = [self._seen(self._raised(blank, grid, patches), logits) for patches in bits]

        def first(
            kind: Callable[[_Seen], list[Tensor]], spelled: Callable[[Tensor, Tensor], Tensor]
        ) -> tuple[int | None, Tensor | None]:
            """The first tensor of a kind in which every patch answers in one row, and these rows."""
            for index, tensor in enumerate(kind(plain)):
                others = [kind(seen)[index] for seen in raised if index < len(kind(seen))]
                if len(others) == len(raised) and all(other.shape == tensor.shape for other in others):
                    codes = sum(spelled(tensor, other).long() << bit for bit, other in enumerate(others))
                    if (rows := _rows_of(codes, count)) is not None:
                        return index, rows
            return None, None

        stream, rows = first(lambda seen: seen.tokens, lambda a, b: (a != b).any(-1))
        if stream is None and count <= _FEW:
            stream, rows = self._nearest_rows(grid, blank, plain)
        attention, queries = first(lambda seen: seen.logits, lambda a, b: (a != b).any(0).all(1))
        keys = None
        if attention is not None:
            others = [seen.logits[attention] for seen in raised]
            changed = [
                (plain.logits[attention] != other).any(0).all(0).long() << bit for bit, other in enumerate(others)
            ]
            keys = _rows_of(sum(changed), count)
        return _Places(stream, rows, attention, queries, keys)

    def _nearest_rows(self, grid: Grid, blank: Inputs, plain: _Seen) -> tuple[int | None, Tensor | None]:
        """Where a patch reaches its neighbours' tokens too: of each the row that it moves most."""
        each = [self._seen(self._raised(blank, grid, [patch]), logits=False) for patch in range(math.prod(grid))]
        for index, tokens in enumerate(plain.tokens):
            if all(seen.tokens[index].shape == tokens.shape for seen in each):
                rows = torch.stack([(seen.tokens[index] - tokens).abs().amax(-1).argmax() for seen in each])
                if len(rows.unique()) == len(rows):
                    return index, rows
        return None, None

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
        """With the blocks replaced by the identity a network answers to a token at the same place; None when it does,
        or when it does not run so.
        """
        try:
            with hooked(self._passing_by()):
                plain = self._answer(self.model, inputs)
                for index in {grid[1] - 1, math.prod(grid) - grid[1]}:  # ends of the first row and the first column
                    other = self._answer(self.model, self._raised(inputs, grid, [index]))
                    change = (plain - other).abs()
                    moved = [place for place in range(math.prod(grid)) if self._patch_of(change, grid, place).max() > 0]
                    if moved and index not in moved:
                        return index, moved[0]
        except Exception:  # what stands between its blocks needs what they do
            return None
        return None


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


def _rows(tokens: Tensor, batch: int) -> Tensor:
    """(rows, D) of the first sample; tokens may come in rows and columns, or sequence first."""
    axis = 1 if tokens.dim() == 3 and tokens.shape[0] != batch and tokens.shape[1] == batch else 0
    first = tokens.select(axis, 0)
    return first if first.dim() == 2 else first.flatten(0, -2)


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
