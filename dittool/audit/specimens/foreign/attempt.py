"""One attempt to call a foreign model: the arguments to be made, how far it came, and how it is written down."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dittool.audit.specimens.foreign.forms import Form, Grid, Node, Plain, built, exchanged, forms_in
from dittool.audit.specimens.watching import Inputs, answer_without_gradient
from dittool.errors import described


@dataclass(frozen=True)
class Attempt:
    """Arguments of forward to be made; those that are left out are not among them."""

    nodes: tuple[tuple[str, Node], ...]
    latent: str

    def inputs(self, dtype: torch.dtype, size: Grid | None = None) -> Inputs:
        """One batch; `size` in latent cells, or in tokens where the latent comes as tokens."""
        node = self[self.latent]
        grid = size or self.grid
        if size and isinstance(node, Form):
            sizes = (
                (*node.sizes[:-2], *size) if len(node.sizes) > 3 else (node.sizes[0], math.prod(size), *node.sizes[2:])
            )
            moved = self.with_form(self.latent, replace(node, sizes=sizes))
            old, new = math.prod(self.grid), math.prod(size)
            for path, form in moved.forms() if len(node.sizes) == 3 else ():
                if form.content == "place" and form.sizes[-2] == old:
                    moved = moved.with_form(path, replace(form, sizes=(*form.sizes[:-2], new, form.sizes[-1])))
            return {name: built(part, grid, dtype) for name, part in moved.nodes}
        return {name: built(part, grid, dtype) for name, part in self.nodes}

    @property
    def grid(self) -> Grid:
        """(rows, columns) of a latent that comes as tokens; of another its cells."""
        sizes = next(form.sizes for _, form in forms_in(self[self.latent], self.latent))
        if len(sizes) > 3:
            return sizes[-2], sizes[-1]
        rows = math.isqrt(sizes[1])
        return rows, max(sizes[1] // rows, 1)

    @property
    def lies_on_a_grid(self) -> bool:
        """Whether tokens are said to lie in rows and columns."""
        by_grid = any(form.content == "place" for _, form in self.forms())
        return by_grid or any(isinstance(node, Plain) for _, node in self.nodes)

    def __getitem__(self, name: str) -> Node:
        return dict(self.nodes)[name]

    def forms(self) -> list[tuple[str, Form]]:
        return [found for name, node in self.nodes for found in forms_in(node, name)]

    def with_argument(self, name: str, node: Node) -> Attempt:
        return replace(self, nodes=tuple((dict(self.nodes) | {name: node}).items()))

    def without(self, name: str) -> Attempt:
        return replace(self, nodes=tuple((other, node) for other, node in self.nodes if other != name))

    def with_form(self, path: str, form: Node) -> Attempt:
        return replace(self, nodes=tuple((name, exchanged(node, name, path, form)) for name, node in self.nodes))


@dataclass(frozen=True)
class Outcome:
    """How far an attempt came."""

    steps: int  # calls of torch's functions
    error: str = ""  # "" when it ran
    where: str = ""  # the innermost module that it was in


class _Steps(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self.count += 1
        return result


def tried(model: nn.Module, inputs: Inputs) -> Outcome:
    """Runs the model once."""
    names = {module: name for name, module in model.named_modules()}
    inside: list[str] = []

    def enter(module: nn.Module, args: object) -> None:
        if module in names:
            inside.append(names[module])

    def leave(module: nn.Module, args: object, output: object) -> None:
        if module in names:
            inside.pop()

    hooks = nn.modules.module
    handles = [hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave)]
    try:
        with _Steps() as steps:
            answer_without_gradient(model, inputs)
        return Outcome(steps.count)
    except (Exception, SystemExit) as error:
        return Outcome(steps.count, described(error) or type(error).__name__, inside[-1] if inside else "")
    finally:
        for handle in handles:
            handle.remove()


def written_example(found: tuple[Attempt, Outcome] | None, parameters: Mapping[str, inspect.Parameter]) -> str:
    """The attempt that came furthest as a function for its reader to finish."""
    if found is None:
        lines = [f'        "{name}": ...,  # what it is, is not known' for name in parameters]
        return "\n".join(["import torch", "", "def example(model, height, width):", "    return {", *lines, "    }"])
    attempt, outcome = found
    fed = [f'        "{name}": {node.written()},' for name, node in attempt.nodes]
    left = [name for name in parameters if name not in dict(attempt.nodes)]
    return "\n".join(
        [
            "import torch",
            "",
            "def example(model):",
            "    return {",
            *fed,
            f"        # left out: {', '.join(left) or 'nothing'}",
            f"        # it came as far as {outcome.where or 'forward'}: {outcome.error[:200]}",
            "    }",
        ]
    )
