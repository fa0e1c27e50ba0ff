"""What makes a network's tokens of equal content differ, measured by running it at several grids.

B batch · C latent channels · N tokens · D width · h w grid in tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from dittool.audit.specimens.anatomy import Anatomy
from dittool.audit.specimens.specimen import Grid, Positions, relative_change
from dittool.audit.specimens.watching import (
    AttentionLogits,
    Call,
    Inputs,
    answer_without_gradient,
    ending_with,
    hooked,
)

STORED_MOVES = 1e-4  # relative change of the first tokens by which a redrawn tensor holds positions


@dataclass(frozen=True)
class OnGrids:
    """A network with open gates that takes a latent on any grid."""

    model: nn.Module
    anatomy: Anatomy
    latent: str  # which of forward's arguments
    patch_size: int  # latent cells along one side of a token
    at_grid: Callable[[Grid], Inputs]  # one sample of this size

    def grids_that_run(self, grids: list[Grid]) -> tuple[list[Grid], str]:
        """Grids at which the network runs and answers in kind, and the first fault."""
        ran: list[Grid] = []
        problems: list[str] = []
        for grid in grids:
            where = f"at {grid[0]}×{grid[1]} tokens"
            try:
                inputs = self.at_grid(grid)
                shape = tuple(answer_without_gradient(self.model, inputs).shape)
            except Exception as error:  # whatever somebody else's model raises for a shape
                message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                problems.append(f"{where} it does not run: {message}")
                continue
            latent = inputs[self.latent]
            if shape[-2:] == tuple(latent.shape[-2:]) if latent.dim() == 4 else shape[1] == latent.shape[1]:
                ran.append(grid)
            else:
                problems.append(f"{where}, a latent of {tuple(latent.shape)}, it answers in the shape {shape}")
        return ran, next(iter(problems), "")

    def measured(self, grid: Grid, positions: Positions, other_weights: Callable[[], nn.Module]) -> Positions:
        """Everything that is to be seen on one grid, which must not be square, added to what is known of other grids.

        Args:
            other_weights: makes the network with open gates and other weights.
        """
        blank = self.without_content(self.at_grid(grid))
        here = self.token_differences(blank)  # (N, D)
        largest, learned, mixed = float(here.abs().max()), None, None
        if largest > 0 and not positions.stored and not positions.problem:
            elsewhere = replace(self, model=other_weights()).token_differences(blank)
            learned = float((here - elsewhere).abs().max()) / largest
            cells = here[self._token_of_patch(grid)].unflatten(0, grid)  # (h, w, D)
            # zero when f(row, column) = a(row) + b(column)
            mixed = float((cells - cells[:1] - cells[:, :1] + cells[:1, :1]).abs().max()) / largest
        by_step, by_distance = (None, None) if largest else self._logit_spreads(grid, blank)
        return replace(
            positions,
            grid=grid,
            rounding=torch.finfo(here.dtype).eps,
            learned=learned,
            mixed=mixed,
            exchanged=self._exchanged(grid),
            by_step=by_step,
            by_distance=by_distance,
            strayed=self._strayed(grid),
        )

    def stored_positions(self, inputs: Inputs) -> dict[str, tuple[int, ...]]:
        """Tensors of the state dict that make the first block's tokens differ, or that hold a table of the grid."""
        blank = self.without_content(inputs)
        plain, plain_answer = self.token_differences(blank), answer_without_gradient(self.model, blank)
        stored, sides = {}, {self.anatomy.tokens, math.isqrt(self.anatomy.tokens)}
        for name, tensor in _loose_tensors(self.model, self.anatomy.blocks):
            turns = not isinstance(tensor, nn.Parameter) and tensor.dim() >= 2 and bool(sides & set(tensor.shape))
            with _redrawn(tensor):
                other = self.token_differences(blank)
                moved = relative_change(plain, other) > STORED_MOVES if plain.any() else bool(other.any())
                if moved or (
                    turns and relative_change(plain_answer, answer_without_gradient(self.model, blank)) > STORED_MOVES
                ):
                    stored[name] = tuple(tensor.shape)
        return stored

    def without_content(self, inputs: Inputs) -> Inputs:
        """The inputs with a latent of zeros."""
        return {**inputs, self.latent: torch.zeros_like(inputs[self.latent])}

    def token_differences(self, inputs: Inputs) -> Tensor:
        """(N, D): the first block's latent tokens, relative to the first of them."""
        tokens = self._first_tokens(inputs)[0]
        return tokens - tokens[:1]

    def _first_tokens(self, inputs: Inputs) -> Tensor:
        """(B, N, D): the latent's tokens as the first block takes them."""
        with ending_with(self.model.get_submodule(self.anatomy.blocks[0])) as seen:
            answer_without_gradient(self.model, inputs)
        return self.anatomy.latent_tokens(seen[0])

    def _token_of_patch(self, grid: Grid) -> list[int]:
        """For each patch of the latent in row-major order, the token that it becomes."""
        inputs = self.at_grid(grid)
        plain = self._first_tokens(inputs)
        changed = (self._raised(inputs, grid, index) for index in range(math.prod(grid)))
        return [int((self._first_tokens(other) - plain).abs().amax(dim=(0, 2)).argmax()) for other in changed]

    def _raised(self, inputs: Inputs, grid: Grid, index: int) -> Inputs:
        """The inputs with 1 added to one patch of the latent."""
        latent = inputs[self.latent].clone()
        self._patch_of(latent, grid, index).add_(1)
        return {**inputs, self.latent: latent}

    def _patch_of(self, latent: Tensor, grid: Grid, index: int) -> Tensor:
        """A view of patch number `index`, row-major."""
        if latent.dim() == 3:
            return latent[:, index]
        (row, column), p = divmod(index, grid[1]), self.patch_size
        return latent[..., row * p : (row + 1) * p, column * p : (column + 1) * p]

    def _with_ends_exchanged(self, latent: Tensor, grid: Grid) -> Tensor:
        """With the first and the last patch in each other's place."""
        exchanged, last = latent.clone(), math.prod(grid) - 1
        self._patch_of(exchanged, grid, 0)[...] = self._patch_of(latent, grid, last)
        self._patch_of(exchanged, grid, last)[...] = self._patch_of(latent, grid, 0)
        return exchanged

    def _exchanged(self, grid: Grid) -> float:
        """Relative change between the answer with its ends exchanged and the answer to the ends exchanged."""
        inputs = self.at_grid(grid)
        swapped = {**inputs, self.latent: self._with_ends_exchanged(inputs[self.latent], grid)}
        plain, other = (answer_without_gradient(self.model, given) for given in (inputs, swapped))
        return relative_change(self._with_ends_exchanged(plain, grid), other)

    def _logit_spreads(self, grid: Grid, blank: Inputs) -> tuple[float | None, float | None]:
        """How much the first attention's logits between equal tokens vary, as a share of their range, between pairs
        the same rows and columns apart, and between pairs the same distance in the sequence apart.
        """
        with AttentionLogits() as attention:
            answer_without_gradient(self.model, blank)
        count, columns = math.prod(grid), grid[1]
        first = next((seen for seen in attention.seen if seen.shape[-1] == seen.shape[-2] >= count), None)
        if first is None:
            return None, None
        # other tokens stand in front, of this stream or of another
        start = first.shape[-1] - count - self.anatomy.after
        here = slice(start, start + count)
        logits = first.reshape(-1, *first.shape[-2:]).mean(dim=0)[here, here]  # (N, N)
        span = float(logits.max() - logits.min())
        if span <= 0:
            return None, None

        def spread(kind: Callable[[int, int], Hashable]) -> float:
            """Over pairs of the same kind."""
            groups: dict[Hashable, list[float]] = {}
            for i, j in product(range(count), repeat=2):
                groups.setdefault(kind(i, j), []).append(float(logits[i, j]))
            return max(max(values) - min(values) for values in groups.values()) / span

        by_step = spread(lambda i, j: (j // columns - i // columns, j % columns - i % columns))
        return by_step, spread(lambda i, j: j - i)

    def _strayed(self, grid: Grid) -> tuple[int, int] | None:
        """With the blocks replaced by the identity a network answers to a token at the same place; None when it
        does.
        """
        inputs, index = self.at_grid(grid), grid[1] - 1  # the last of the first row
        changed = self._raised(inputs, grid, index)

        def identity(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> object:
            before = {id(after): tokens for tokens, after in Call(args, kwargs, output).streams}
            if isinstance(output, (tuple, list)):
                return type(output)(before.get(id(part), part) for part in output)
            return before[id(output)]

        blocks = (self.model.get_submodule(name) for name in self.anatomy.blocks)
        with hooked(block.register_forward_hook(identity, with_kwargs=True) for block in blocks):
            plain, other = (answer_without_gradient(self.model, given) for given in (inputs, changed))
        moved = [
            place
            for place in range(math.prod(grid))
            if (self._patch_of(plain, grid, place) - self._patch_of(other, grid, place)).abs().max() > 0
        ]
        return None if not moved or index in moved else (index, moved[0])


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
    saved, inside = model.state_dict(), tuple(f"{block}." for block in blocks)
    return [
        (name, tensor)
        for name, tensor in tensors.items()
        if name in saved
        and name.rpartition(".")[0] not in layers
        and (not name.startswith(inside) or tensor.dim() >= 2)
        and tensor.is_floating_point()
    ]
