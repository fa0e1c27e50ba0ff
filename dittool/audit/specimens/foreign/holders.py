"""Arguments of a foreign forward that hold several tensors, by the annotation and by what the source reads of them:
dictionaries, dataclasses, objects with attributes, lists.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from dittool.audit.specimens.foreign.forms import (
    BATCH,
    EMPTY,
    NAMES,
    TEXT_TOKENS,
    Form,
    Node,
    Parts,
    Widths,
    alternatives,
    exchanged,
    forms_in,
    kind_of,
    layers_of,
)

_USUAL_ORDER = ("x", "t", "y", "text")  # of what is read by its place


def holder_of_latent(
    hint: object, name: str, source: str, latent: Form, width: Widths, labels: int
) -> tuple[Parts, str] | None:
    """An argument that holds the latent beside others, and the latent's path in it; None where it is no such."""
    annotated = _holder_in(hint)
    named = (annotated[0], [(part, part) for part in annotated[1]]) if annotated else (dict, [])
    named = named if named[1] else (dict, [(key, key) for key in keys_read(source, name)])
    for read in (_attributes_read, places_read):
        named = named if named[1] else read(source, name)
    kind, parts = named
    if kind is dict and parts and not any(_is_latent(called) for _, called in parts):  # others may read it elsewhere
        parts = [(key, key) for key in keys_read(source)]
    if not parts:
        return None
    held = _parts(kind, parts, width, labels)
    called_as = {f"{name}.{place}": called for place, called in parts}
    paths = [path for path, _ in forms_in(held, name)]
    last = {path: called_as.get(path, path.rpartition(".")[2]) for path in paths}
    usual = [path for path in paths if last[path] in NAMES["latent"]]
    usual += [path for path in paths if _is_latent(last[path])]
    if not (usual or kind is list):
        return None
    where = (usual or [f"{name}.{parts[0][0]}"])[0]
    found = exchanged(held, name, where, latent)
    assert isinstance(found, Parts)  # the latent is inside of it
    return found, where


def _is_latent(name: str) -> bool:
    return name in NAMES["latent"] or bool(re.search(r"latent|noisy|noised|image|img|pixels|sample", name))


def _holder_in(hint: object) -> tuple[type, list[str]] | None:
    """The dataclass, or the dictionary with annotated keys, that an annotation names, and its parts."""
    for option in (hint, *typing.get_args(hint)):
        kind = typing.get_origin(option) or option
        if isinstance(kind, type) and is_dataclass(kind):
            return kind, [field.name for field in fields(kind) if field.init]
        if isinstance(kind, type) and kind is not dict and issubclass(kind, dict) and kind.__annotations__:
            return kind, list(kind.__annotations__)
    return None


def _attributes_read(source: str, name: str) -> tuple[type, list[tuple[str, str]]]:
    """Of `name.latent`; none where all that is read of it a tensor has too."""
    nodes = list(_walked(source))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    read = [
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
        if id(node) not in called
    ]
    own = dict.fromkeys(attribute for attribute in read if attribute in ("t", "y") or not hasattr(Tensor, attribute))
    return SimpleNamespace, [(attribute, attribute) for attribute in own if own.keys() - {"t", "y"}]


def places_read(source: str, name: str) -> tuple[type, list[tuple[str, str]]]:
    """Of `x, t, y = name`, each called as the source calls it, or of `name[0]` and `name[1]`."""
    places: dict[int, str] = {}
    for node in _walked(source):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id == name:
            for target in node.targets:
                if isinstance(target, ast.Tuple) and all(isinstance(part, ast.Name) for part in target.elts):
                    places |= {i: part.id for i, part in enumerate(target.elts) if isinstance(part, ast.Name)}
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            place, held = node.slice.value, node.value
            if isinstance(held, ast.Name) and held.id == name and type(place) is int and place >= 0:
                places.setdefault(place, _USUAL_ORDER[min(place, len(_USUAL_ORDER) - 1)])
    if len(places) < 2 or sorted(places) != list(range(len(places))):
        return list, []
    return list, [(str(place), places[place]) for place in sorted(places)]


def _part(holder: type, name: str, width: Widths, labels: int) -> Node:
    """A part of a holder: by its annotation, where that says that it holds others, else by its name."""
    try:
        hint = typing.get_type_hints(holder).get(name)
    except Exception:  # names that exist for type checkers only
        hint = None
    held = from_annotation(hint, name, "", width, labels)
    return held if isinstance(held, Parts) else alternatives(kind_of(name) or "text", width(), labels)[0]


def _walked(source: str) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(textwrap.dedent(source))))
    except SyntaxError:
        return []


def from_annotation(hint: object, name: str, source: str, width: Widths, labels: int) -> Node | None:
    """A dictionary, list or dataclass, where the annotation or what the source reads of the argument says so."""
    options = [option for option in typing.get_args(hint) or (hint,) if option is not type(None)]
    for option in [hint, *options]:
        if annotated := _holder_in(option):
            return _parts(annotated[0], [(part, part) for part in annotated[1]], width, labels)
        origin = typing.get_origin(option) or option
        inside = typing.get_args(option)
        if origin is list and not inside:
            return layers_of(width())
        if origin in (list, tuple) and Tensor in inside:
            is_reference = re.search(r"image|img|pixel|latent", name)
            return EMPTY[list] if is_reference else Form((BATCH, TEXT_TOKENS, width()), listed=True)
        if origin is dict and inside and not _holds_tensors(inside):
            return EMPTY[dict]
    keys = keys_read(source, name)
    return _parts(dict, [(key, key) for key in keys], width, labels) if keys else None


def _holds_tensors(inside: Sequence[object]) -> bool:
    """Whether what an annotation has in brackets may be tensors."""
    return any(part in (Tensor, Any) or _holds_tensors(typing.get_args(part)) for part in inside)


def _parts(kind: type, named: Sequence[tuple[str, str]], width: Widths, labels: int) -> Parts:
    """Each part at its place, made as what it is called."""
    made = tuple((place, _part(kind, called, width, labels)) for place, called in named)
    return Parts(dict if issubclass(kind, dict) else kind, made)


def with_key(node: Node | None, key: str, width: Widths, labels: int, kind: type = dict) -> Parts:
    """A dictionary, or what has attributes, with one key more."""
    held = node if isinstance(node, Parts) and node.kind in (dict, SimpleNamespace) else Parts(kind, ())
    return replace(held, items=(*held.items, *_parts(dict, [(key, key)], width, labels).items))


def keys_read(source: str, name: str = "") -> list[str]:
    """The texts with which `name`, or whatever there is, is subscripted: `cond["text"]`, `cond.get("text")`."""
    keys = []
    for node in _walked(source):
        held, key = None, None
        if isinstance(node, ast.Subscript):
            held, key = node.value, node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            held, key = node.func.value, next(iter(node.args), None)
        if (
            isinstance(held, ast.Name)
            and name in ("", held.id)
            and isinstance(key, ast.Constant)
            and type(key.value) is str
        ):
            keys.append(key.value)
    return list(dict.fromkeys(keys))


def source_of(model: nn.Module) -> str:
    """Of the model's class and of those that it is made of, but for torch's."""
    found = []
    for kind in type(model).__mro__:
        with suppress(OSError, TypeError):
            found += [textwrap.dedent(inspect.getsource(kind))] if kind.__module__.partition(".")[0] != "torch" else []
    return "\n".join(found)
