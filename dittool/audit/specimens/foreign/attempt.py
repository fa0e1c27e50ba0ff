"""One attempt to call a foreign model: the arguments to be made, how far it came, and how it is written down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dittool.audit.specimens.foreign.blame import Refusal, own_line, refusal_of
from dittool.audit.specimens.foreign.forms import (
    POSITIONAL,
    Form,
    Grid,
    Node,
    Parts,
    Plain,
    built,
    exchanged,
    forms_in,
    grid_of_tokens,
    holders_in,
)
from dittool.audit.specimens.watching import CallsOfTorch, Inputs, answer_without_gradient
from dittool.errors import described


@dataclass(frozen=True)
class Attempt:
    """Arguments of forward to be made; those that are left out are not among them."""

    nodes: tuple[tuple[str, Node], ...]
    latent: str  # its path, `batch.latents` where an argument holds it
    size: Grid | None = None  # of the latent, where it was chosen
    channels_last: bool = False  # of a latent of rows and columns

    def inputs(self, dtype: torch.dtype) -> Inputs:
        """One batch."""
        grid = self.grid
        return {name: built(part, grid, dtype) for name, part in self.nodes}

    def of_size(self, size: Grid) -> Attempt:
        """With a latent of another size, in cells, or in tokens where it comes as tokens, and what lies on these as
        large as that.
        """
        latent = self[self.latent]
        if not isinstance(latent, Form) or size == self.grid:
            return self
        as_tokens = len(latent.sizes) == 3
        behind = latent.sizes[-1:] if self.channels_last else ()
        before = latent.sizes[: -2 - len(behind)]
        sizes = (latent.sizes[0], math.prod(size), latent.sizes[2]) if as_tokens else (*before, *size, *behind)
        moved = replace(self.with_form(self.latent, replace(latent, sizes=sizes)), size=size)
        for path, form in self.forms():
            if form.content in POSITIONAL and (other := _positions_of_size(form, self.grid, size, as_tokens)):
                moved = moved.with_form(path, replace(form, sizes=other))
        return moved

    @property
    def grid(self) -> Grid:
        """(rows, columns) of a latent that comes as tokens; of another its cells."""
        if self.size:
            return self.size
        sizes = next(form.sizes for _, form in forms_in(self[self.latent], self.latent))
        if len(sizes) > 3:
            return (sizes[-3], sizes[-2]) if self.channels_last else (sizes[-2], sizes[-1])
        rows = math.isqrt(sizes[1])
        return rows, max(sizes[1] // rows, 1)

    @property
    def lies_on_a_grid(self) -> bool:
        """Whether tokens are said to lie in rows and columns."""
        by_grid = any(form.content in POSITIONAL for _, form in self.forms())
        return by_grid or any(isinstance(node, Plain) and node.of_grid for _, node in self.nodes)

    def __getitem__(self, name: str) -> Node:
        own = dict(self.nodes)
        return own[name] if name in own else dict(self.forms())[name]

    @property
    def holder(self) -> str:
        """The argument that is, or holds, the latent."""
        return self.latent.partition(".")[0]

    def forms(self) -> list[tuple[str, Form]]:
        return [found for name, node in self.nodes for found in forms_in(node, name)]

    def holders(self) -> list[tuple[str, Parts]]:
        """What holds other parts, also inside of an argument."""
        return [found for name, node in self.nodes for found in holders_in(node, name)]

    def texts(self, latent: str) -> list[tuple[str, Form]]:
        """Tensors beside the latent that may be the tokens of a text."""

        def may_be(path: str, form: Form) -> bool:
            return path != latent and form.content == "noise" and len(form.sizes) == 3 and not form.listed

        return [(path, form) for path, form in self.forms() if may_be(path, form)]

    def with_argument(self, name: str, node: Node) -> Attempt:
        return replace(self, nodes=tuple((dict(self.nodes) | {name: node}).items()))

    def without(self, name: str) -> Attempt:
        return replace(self, nodes=tuple((other, node) for other, node in self.nodes if other != name))

    def with_form(self, path: str, form: Node) -> Attempt:
        return replace(self, nodes=tuple((name, exchanged(node, name, path, form)) for name, node in self.nodes))

    def with_sizes(self, path: str, sizes: tuple[int, ...]) -> Attempt:
        """With one tensor of other sizes; of a pair of cosines and sines both."""
        named, changed = dict(self.forms()), self
        of_pair = path.rpartition(".")[0] if named[path].content in ("cos", "sin") else ""
        for other, form in named.items():
            if other == path or (of_pair and other.startswith(f"{of_pair}.") and form.sizes == named[path].sizes):
                changed = changed.with_form(other, replace(form, sizes=sizes))
        return changed


def _positions_of_size(form: Form, grid: Grid, size: Grid, beside: bool) -> tuple[int, ...] | None:
    """Sizes of positions for a latent of another size, with `beside` also of tokens beside the latent's; None where
    they do not follow it.
    """
    sizes = form.sizes
    if form.content in ("row", "column"):
        along = form.content == "column"
        patch = grid[along] // sizes[-1]
        return (*sizes[:-1], size[along] // patch) if patch and patch * sizes[-1] == grid[along] else None
    if len(sizes) == 3 and form.content in ("cos", "sin", "turn"):  # (rows, columns, D)
        patch = grid[0] // sizes[0]
        fits = patch and (sizes[0] * patch, sizes[1] * patch) == grid and not (size[0] % patch or size[1] % patch)
        return (size[0] // patch, size[1] // patch, sizes[2]) if fits else None
    axis = len(sizes) - 1 if form.content in ("index", "across") else len(sizes) - 2
    now = grid_of_tokens(grid, sizes[axis])
    if now is None and not beside:
        return None
    patch = grid[0] // now[0] if now else 1
    others = 0 if now else sizes[axis] - math.prod(grid)
    return (*sizes[:axis], others + math.prod(size) // patch**2, *sizes[axis + 1 :]) if others >= 0 else None


@dataclass(frozen=True)
class Outcome:
    """How far an attempt came."""

    steps: int  # calls of torch's functions
    error: str = ""  # "" when it ran
    where: str = ""  # the innermost module that it was in
    refusal: Refusal | None = None  # where the model's own code would not run here
    line: str = ""  # of the model's source at which it ended, `models.py:31`
    ran: frozenset[str] = frozenset()  # modules
    read: frozenset[int] = frozenset()  # tensors with which something was computed, by their id


class _Steps(CallsOfTorch):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.read: set[int] = set()

    def called(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        result = function(*args, **kwargs)
        self.count += 1
        if getattr(function, "__name__", "") != "__get__":  # of its shape alone
            given = [*args, *kwargs.values()]
            given += [part for value in given if isinstance(value, (list, tuple)) for part in value]
            self.read |= {id(value) for value in given if isinstance(value, torch.Tensor)}
        return result


def tried(model: nn.Module, inputs: Inputs) -> Outcome:
    """Runs the model once."""
    names = {module: name for name, module in model.named_modules()}
    inside: list[str] = []
    ran: set[str] = set()

    def enter(module: nn.Module, args: object) -> None:
        if module in names:
            inside.append(names[module])
            ran.add(names[module])

    def leave(module: nn.Module, args: object, output: object) -> None:
        if module in names:
            inside.pop()

    hooks = nn.modules.module
    handles = [hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave)]
    try:
        with _Steps() as steps:
            answer_without_gradient(model, inputs)
        return Outcome(steps.count, ran=frozenset(ran), read=frozenset(steps.read))
    except (Exception, SystemExit) as error:
        said = described(error) or type(error).__name__
        return Outcome(steps.count, said, inside[-1] if inside else "", refusal_of(error), own_line(error))
    finally:
        for handle in handles:
            handle.remove()
