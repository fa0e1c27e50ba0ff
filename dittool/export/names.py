"""Which names in a piece of source mean something outside of it, and where they stand: Python's scopes, read from its
syntax tree.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(frozen=True)
class Span:
    """Where an expression stands: lines from 1, columns in bytes of UTF-8 from 0."""

    line: int
    begin: int
    end: int


@dataclass(frozen=True)
class Use:
    """A name of the module that a statement uses: `name`, or of an attribute of it `name.attribute`."""

    name: str
    attribute: str | None
    span: Span | None  # of the name, or of the whole attribute; None: in the text of a cast


def uses_in(statement: ast.stmt) -> list[Use]:
    """Every name of the module, or of Python itself, that a statement of the module's top level uses, where it assigns
    or defines them too; annotations count.
    """
    return list(_uses(statement, ()))


def bound_by(statement: ast.stmt) -> set[str]:
    """The names that a statement gives a meaning to in the scope that it stands in."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    return {name for node in _own_nodes(statement) for name in _bound(node)}


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that one node of a scope binds there."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
        yield node.name


def _own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is below it in the same scope."""
    yield node
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, _Comprehension)):
        return
    for child in ast.iter_child_nodes(node):
        yield from _own_nodes(child)


def _names_of_function(node: _Function) -> set[str]:
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    names = {argument.arg for argument in every if argument is not None}
    body = [node.body] if isinstance(node, ast.Lambda) else node.body
    inside = [part for statement in body for part in _own_nodes(statement)]
    shared = {name for part in inside if isinstance(part, (ast.Global, ast.Nonlocal)) for name in part.names}
    return (names | {name for part in inside for name in _bound(part)}) - shared


def _uses(node: ast.AST, scopes: tuple[set[str], ...], of_class: set[str] | None = None) -> Iterator[Use]:
    """`scopes`: names of the functions around; `of_class`: those of the class body that the node stands in directly,
    which its methods do not see.
    """

    def hidden(name: str) -> bool:
        return any(name in scope for scope in scopes) or name in (of_class or ())

    if isinstance(node, ast.Call) and ast.unparse(node.func) == "cast" and isinstance(node.args[0], ast.Constant):
        named = ast.walk(ast.parse(str(node.args[0].value), mode="eval"))
        yield from (Use(one.id, None, None) for one in named if isinstance(one, ast.Name))
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and not hidden(node.value.id):
        value = node.value
        assert node.end_col_offset is not None
        whole = Span(value.lineno, value.col_offset, node.end_col_offset)
        yield Use(value.id, node.attr if node.end_lineno == value.lineno else None, whole)
    elif isinstance(node, ast.Name) and not hidden(node.id):
        assert node.end_col_offset is not None
        yield Use(node.id, None, Span(node.lineno, node.col_offset, node.end_col_offset))
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        yield from _in_function(node, scopes, of_class)
    elif isinstance(node, ast.ClassDef):
        own = {name for statement in node.body for name in bound_by(statement)}
        for outer in (*node.decorator_list, *node.bases, *node.keywords):
            yield from _uses(outer, scopes, of_class)
        for statement in node.body:
            yield from _uses(statement, scopes, own)
    elif isinstance(node, _Comprehension):
        own = {name for part in node.generators for target in ast.walk(part.target) for name in _bound(target)}
        for child in ast.iter_child_nodes(node):
            yield from _uses(child, (*scopes, own), of_class)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _uses(child, scopes, of_class)


def _in_function(node: _Function, scopes: tuple[set[str], ...], of_class: set[str] | None) -> Iterator[Use]:
    outside: list[ast.expr | None] = [*node.args.defaults, *node.args.kw_defaults]
    if not isinstance(node, ast.Lambda):
        outside += [*node.decorator_list, node.returns]
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    outside += [argument.annotation for argument in every if argument is not None]
    for part in outside:
        if part is not None:
            yield from _uses(part, scopes, of_class)
    for statement in [node.body] if isinstance(node, ast.Lambda) else node.body:
        yield from _uses(statement, (*scopes, _names_of_function(node)))
