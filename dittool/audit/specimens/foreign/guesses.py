"""Other values for a factory's keyword argument, guessed from its value, its annotation and the source; nothing is run
for it.

A text's other values are the literals that the source compares with something of the argument's name: `if norm ==
"rms"`, `norm in ("rms", "layer")`, `case "rms"` of a `match self.norm`, a look-up `NORMS[norm]` in a table of the file,
or `Literal["rms", "layer"]` as its annotation.
"""

from __future__ import annotations

import ast
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_PLAIN: dict[type, list[Any]] = {bool: [True, False], int: [1, 2, 4, 8], float: [0.5, 2.0]}


@dataclass(frozen=True)
class Guess:
    """Values to try, and whether they are surely legal: only then does it prove anything when none of them acts."""

    values: list[Any]
    sure: bool
    why_none: str = ""  # for a guess without values


def guess_values(make: Callable[..., Any], name: str, value: Any) -> Guess:
    """Other values for the argument `name` of a factory, which has `value`."""
    if isinstance(value, str) or value is None:
        return _of_text_or_none(make, name, value)
    if isinstance(value, (list, tuple)):
        values = list(value)
        changed = [[*values[:i], other, *values[i + 1 :]] for i, one in enumerate(values) for other in _neighbours(one)]
        changed += [values[::-1]] if changed else []  # where the sum must stay
        others = [type(value)(one) for one in changed if one != values]
        return Guess(others, True, "" if others else f"a {type(value).__name__} without numbers to change")
    others = _neighbours(value)
    return Guess(others, True, "" if others else f"a {type(value).__name__}, for which no other value is known")


def _neighbours(value: Any) -> list[Any]:
    """Other values of a number's type, the more different ones last."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [one for one in dict.fromkeys((value * 2, value + 1, value // 2, value - 1)) if one > 0 and one != value]
    if isinstance(value, float):
        return [
            one for one in dict.fromkeys((value * 2, value / 2, 0.5, 0.9)) if one != value and (one <= 1 or value > 1)
        ]
    return []


def _of_text_or_none(make: Callable[..., Any], name: str, value: str | None) -> Guess:
    annotated = _annotated(make, name)
    texts = [one for kind in annotated if typing.get_origin(kind) is Literal for one in typing.get_args(kind)]
    texts = [one for one in dict.fromkeys([*texts, *compared_texts(make, name)]) if one != value]
    if texts:
        return Guess(texts, isinstance(value, str))
    if isinstance(value, str):
        return Guess([], False, "a text that its file compares with no other")
    plain = [one for kind in annotated for one in _PLAIN.get(kind, [])]
    return Guess(plain, False, "" if plain else "None, without an annotation that says what else it may be")


def _annotated(make: Callable[..., Any], name: str) -> list[Any]:
    """The types of which an argument may be: `int | None` gives int and NoneType."""
    try:
        hint = typing.get_type_hints(make.__init__ if inspect.isclass(make) else make).get(name)
    except Exception:  # names that exist for type checkers only, in somebody else's module
        return []
    return (
        list(typing.get_args(hint))
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else [hint]
    )


def compared_texts(make: Callable[..., Any], name: str) -> list[str]:
    """The literals that the factory's file compares with something called `name`, in their order; none when there
    is no source.
    """
    try:
        tree = ast.parse(Path(inspect.getsourcefile(inspect.unwrap(make)) or "").read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, SyntaxError):
        return []
    tables = dict(_tables(tree))
    found = [text for node in ast.walk(tree) for part in _beside(node, name, tables) for text in _texts(part)]
    return list(dict.fromkeys(found))


def _tables(tree: ast.AST) -> Iterator[tuple[str, ast.Dict]]:
    """Dictionaries that are written out under a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict):
            yield node.targets[0].id, node.value


def _beside(node: ast.AST, name: str, tables: dict[str, ast.Dict]) -> Iterator[ast.AST]:
    """What an expression or statement holds against the argument."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        if any(_is_called(side, name) for side in sides):
            yield from sides
    elif isinstance(node, ast.Match) and _is_called(node.subject, name):
        yield from (case.pattern for case in node.cases)
    elif isinstance(node, ast.Subscript) and _is_called(node.slice, name):
        table = tables.get(node.value.id) if isinstance(node.value, ast.Name) else node.value
        if isinstance(table, ast.Dict):
            yield from (key for key in table.keys if key is not None)


def _is_called(node: ast.AST, name: str) -> bool:
    """`norm`, `self.norm`, `config.norm`; also `norm.lower()`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _is_called(node.func.value, name)
    return (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)


def _texts(node: ast.AST) -> Iterator[str]:
    return (one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str))
