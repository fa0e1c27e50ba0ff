"""C1: one setting is given other values, and what changes is looked at; the other values are guessed.

Guessed from the setting's value, and for a factory's argument from its annotation and the source; nothing is run for
it. A text's other values are the literals that the source compares with something of the argument's name: `if norm ==
"rms"`, `norm in ("rms", "layer")`, `case "rms"` of a `match self.norm`, a look-up `NORMS[norm]` in a table of the file,
or `Literal["rms", "layer"]` as its annotation.
"""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from dittool.audit.specimens.specimen import Effect

_MOST_SHOWN = 4  # of the values that were tried
_DEVICES = ("device", "is_cuda", "cuda")
_PLAIN: Mapping[object, list[object]] = {bool: [True, False], int: [1, 2, 4, 8], float: [0.5, 2.0]}


@dataclass(frozen=True)
class Guess:
    """Values to try, and whether they are surely legal: only then does it prove anything when none of them acts."""

    values: Sequence[object]
    sure: bool = True
    why_none: str = ""  # for a guess without values


def effect_of(
    value: object,
    guess: Guess,
    difference: Callable[[object], str],
    looked_at: Sequence[str],
    refusal: type[Exception] = Exception,
) -> Effect:
    """What becomes of a setting that has `value` under the values of a guess.

    Args:
        difference: what is not the same under another value, "" when everything is.
        looked_at: all that may differ.
        refusal: what `difference` raises for a value that does not go with the other settings.
    """
    tried: list[object] = []
    errors: list[str] = []
    for other in guess.values:
        try:
            if what := difference(other):
                return Effect("acts", what)
        except refusal as error:
            errors.append(type(error).__name__)
        else:
            tried.append(other)
    values = [repr(other) for other in tried or guess.values]
    shown = ", ".join([*values[:_MOST_SHOWN], "…"] if len(values) > _MOST_SHOWN else values)
    if tried and guess.sure:
        changes = f"changes none of {len(looked_at)} things: {', '.join(looked_at)}"
        return Effect("dead", f"{value!r} → {shown} {changes}")
    if tried:
        unsure = "changes nothing, and whether these are values that it may have is not known"
        return Effect("unseen", f"{value!r} → {shown} {unsure}")
    return Effect("unseen", guess.why_none or f"{shown} raise {errors[0]}")


def neighbours(value: object, least: int = 1) -> list[object]:
    """Other values of a number's type, the more different ones last; integers of `least` or more."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        near = dict.fromkeys((value * 2, value + 1, value // 2, value - 1))
        return [other for other in near if other >= least and other != value]
    if isinstance(value, float):
        shares = dict.fromkeys((value * 2, value / 2, 0.5, 0.9))
        return [other for other in shares if other != value and (other <= 1 or value > 1)]
    return []


def guess_values(make: Callable[..., object], name: str, value: object) -> Guess:
    """Other values for the argument `name` of a factory, or the field `config.name` of one, which has `value`."""
    name = name.rpartition(".")[2]
    if isinstance(value, str) or value is None:
        return _of_text_or_none(make, name, value)
    kind = type(value).__name__
    if isinstance(value, (list, tuple)):
        values = list(value)
        changed = [[*values[:i], other, *values[i + 1 :]] for i, old in enumerate(values) for other in neighbours(old)]
        changed += [values[::-1]] if changed else []  # where the sum must stay
        others = [type(value)(other) for other in changed if other != values]
        return Guess(others, why_none="" if others else f"a {kind} without numbers to change")
    numbers = neighbours(value)
    return Guess(numbers, why_none="" if numbers else f"a {kind}, for which no other value is known")


def _of_text_or_none(make: Callable[..., object], name: str, value: str | None) -> Guess:
    annotated = _annotated(make, name)
    texts = [text for kind in annotated if typing.get_origin(kind) is Literal for text in typing.get_args(kind)]
    texts = [text for text in dict.fromkeys([*texts, *compared_texts(make, name)]) if text != value]
    if texts:
        return Guess(texts, isinstance(value, str))
    near = compared_texts(make, name, beside=True) if isinstance(value, str) else []
    if others := [text for text in near if text != value]:
        return Guess(others, False)
    if isinstance(value, str):
        return Guess([], False, "a text that its file compares with no other")
    plain = [other for kind in annotated for other in _PLAIN.get(kind, [])]
    return Guess(plain, False, "" if plain else "None, without an annotation that says what else it may be")


def _annotated(make: Callable[..., object], name: str) -> Sequence[object]:
    """The types of which an argument may be: `int | None` gives int and NoneType."""
    try:
        hint = typing.get_type_hints(make.__init__ if inspect.isclass(make) else make).get(name)
    except Exception:  # names that exist for type checkers only, in somebody else's module
        return []
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else [hint]


def compared_texts(make: Callable[..., object], name: str, beside: bool = False) -> list[str]:
    """The literals that the factory's file, or other files of its package or folder that were imported, compare with
    something called `name`, in their order; none when there is no source.
    """
    try:
        path = Path(inspect.getsourcefile(inspect.unwrap(make)) or "")
    except TypeError:
        return []
    files = [path]
    if beside:
        package = f"{make.__module__.partition('.')[0]}."
        loaded = {name: getattr(module, "__file__", None) or "" for name, module in list(sys.modules.items())}
        near = {
            Path(file) for name, file in loaded.items() if name.startswith(package) or path.parent in Path(file).parents
        }
        files = sorted(near - {path})
    return list(dict.fromkeys(text for file in files for text in _compared_in(file, name)))


def read_beside_the_device(make: Callable[..., object], name: str) -> str:
    """`model.py:31`, where the factory's file asks for an argument and for the device together; "" where it does not:
    `self.use_fp16 and x.device.type == "cuda"`.
    """
    name = name.rpartition(".")[2]
    try:
        path = Path(inspect.getsourcefile(inspect.unwrap(make)) or "")
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, SyntaxError):
        return ""
    asked = [node.test if isinstance(node, (ast.If, ast.IfExp)) else node for node in ast.walk(tree)]
    for node in asked:
        if not isinstance(node, (ast.BoolOp, ast.Compare, ast.Name, ast.Attribute)):
            continue
        parts = list(ast.walk(node))
        if any(_is_called(part, name) for part in parts) and any(
            _is_called(part, on) for part in parts for on in _DEVICES
        ):
            return f"{path.name}:{node.lineno}"
    return ""


@cache
def _compared_in(path: Path, name: str) -> Sequence[str]:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source if name in source else "")
    except (OSError, ValueError, SyntaxError):
        return []
    tables = {
        node.targets[0].id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }
    beside = [part for node in ast.walk(tree) for part in _beside(node, name, tables)]
    constants = [node.value for part in beside for node in ast.walk(part) if isinstance(node, ast.Constant)]
    return list(dict.fromkeys(value for value in constants if isinstance(value, str)))


def _beside(node: ast.AST, name: str, tables: Mapping[str, ast.Dict]) -> Iterator[ast.AST]:
    """What an expression or statement holds against the argument."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        if any(_is_called(side, name) for side in sides):
            yield from sides
    elif isinstance(node, ast.Match) and _is_called(node.subject, name):
        yield from (case.pattern for case in node.cases)
    elif isinstance(node, ast.Subscript) and _is_called(node.slice, name):
        table = tables.get(node.value.id) if isinstance(node.value, ast.Name) else node.value
        yield from (key for key in table.keys if key is not None) if isinstance(table, ast.Dict) else ()


def _is_called(node: ast.AST, name: str) -> bool:
    """`norm`, `self.norm`, `config.norm`; also `norm.lower()`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _is_called(node.func.value, name)
    return name in (getattr(node, "id", None), getattr(node, "attr", None))
