"""Arguments that a factory takes as `**kwargs` and hands on: `def DiT_S(**kwargs): return DiT(depth=12, **kwargs)`,
`self.net = Net(**net)`, `super().__init__(**kwargs)`. Read from the source; nothing is run.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_DEEPEST = 4  # calls that hand on what they were handed


@dataclass(frozen=True)
class HandedOn:
    """A call that takes the rest of the arguments, and the names that it gets from elsewhere."""

    make: Callable[..., object]
    taken: frozenset[str]


def receivers(make: Callable[..., object], depth: int = 0) -> Iterator[HandedOn]:
    """Who gets what a factory takes as `**kwargs`, the nearest first."""
    function = inspect.unwrap(make.__init__ if inspect.isclass(make) else make)
    try:
        rest = next(
            each.name for each in inspect.signature(function).parameters.values() if each.kind is each.VAR_KEYWORD
        )
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, ValueError, SyntaxError, StopIteration):
        return
    written = _written_to(tree, rest)
    names = {rest: written}
    for node in ast.walk(tree):  # settings = dict(depth=12, **kwargs)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Call):
            call = node.value
            if isinstance(call.func, ast.Name) and call.func.id == "dict" and _unpacked(call) & names.keys():
                target = node.targets[0].id
                names[target] = written | _named(call) | _written_to(tree, target)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (given := _unpacked(node) & names.keys()):
            other = _callee(node.func, function, make)
            if other is None:
                continue
            by_place = list(inspect.signature(other).parameters)[: len(node.args)]
            taken = _named(node) | frozenset(by_place) | frozenset[str]().union(*(names[name] for name in given))
            yield HandedOn(other, taken)
            for further in receivers(other, depth + 1) if depth < _DEEPEST else ():
                yield HandedOn(further.make, further.taken | taken)


def _unpacked(call: ast.Call) -> set[str]:
    """Names of what a call is given as `**name`."""
    return {each.value.id for each in call.keywords if each.arg is None and isinstance(each.value, ast.Name)}


def _named(call: ast.Call) -> frozenset[str]:
    return frozenset(each.arg for each in call.keywords if each.arg is not None)


def _written_to(tree: ast.AST, name: str) -> frozenset[str]:
    """Keys that the source takes out of a dictionary, or sets in it: `kwargs.pop("depth")`, `kwargs["depth"] = 12`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        held: ast.expr | None = None
        key: ast.expr | None = None
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            held, key = node.value, node.slice
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("pop", "update")
        ):
            held, key = node.func.value, next(iter(node.args), None)
            found |= _named(node) if isinstance(held, ast.Name) and held.id == name else set()
        if isinstance(held, ast.Name) and held.id == name and isinstance(key, ast.Constant) and type(key.value) is str:
            found.add(key.value)
    return frozenset(found)


def _callee(
    func: ast.expr, function: Callable[..., object], make: Callable[..., object]
) -> Callable[..., object] | None:
    """The class or function that an expression names in a function's module; of `super().__init__` the next class."""
    if isinstance(func, ast.Attribute) and func.attr == "__init__" and isinstance(func.value, ast.Call):
        kinds = inspect.getmro(make) if inspect.isclass(make) else ()
        owner = next((i for i, kind in enumerate(kinds) if vars(kind).get("__init__") is not None), 0)
        return next((kind for kind in kinds[owner + 1 :] if "__init__" in vars(kind) and kind is not object), None)
    parts: list[str] = []
    while isinstance(func, ast.Attribute):
        parts.insert(0, func.attr)
        func = func.value
    if not isinstance(func, ast.Name):
        return None
    found = getattr(function, "__globals__", {}).get(func.id)
    for part in parts:
        found = getattr(found, part, None)
    return found if callable(found) else None
