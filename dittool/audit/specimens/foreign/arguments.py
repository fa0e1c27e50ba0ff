"""A factory's arguments as its code wants them: of a JSON object the configuration that the annotation names.

`{"config": {"depth": 2}}` becomes `Config(depth=2)` where the factory says `config: Config`; without an annotation a
dictionary whose keys are attributes, too. A field is known as `config.depth`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from dittool.audit.specimens.foreign.handed_on import receivers
from dittool.errors import UsageError, listed


class Attributes(dict[str, Any]):
    """A dictionary whose keys can be read as attributes, as configuration files are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def call_with(make: Callable[..., object], given: Mapping[str, object]) -> object:
    """Calls a factory with its arguments, `config.depth` among those of `config`."""
    folded: dict[str, Any] = {}
    for name, value in sorted(given.items(), key=lambda item: "." in item[0]):
        *outer, last = name.split(".")
        inside = folded
        for part in outer:
            inside[part] = dict(inside.get(part) or {})
            inside = inside[part]
        inside[last] = value
    hints, parameters = hints_of(make), _parameters(make)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in folded and _is_built_alone(hints.get(name)):
            folded[name] = {}
    return make(**{name: _as_annotated(value, hints.get(name), name) for name, value in folded.items()})


def settings_of(make: Callable[..., object], given: Mapping[str, object]) -> dict[str, object]:
    """Every argument with the value that it has: as given, else by default; of a configuration each field."""
    hints, found = hints_of(make), dict[str, object]()
    for name, parameter in _parameters(make).items():
        kind = _class_in(hints.get(name))
        value = given.get(name, None if parameter.default is parameter.empty else parameter.default)
        if kind is not None and is_dataclass(kind) and (isinstance(value, dict) or _is_built_alone(kind)):
            found |= {f"{name}.{field}": one for field, one in _fields(kind, value).items()}
        elif isinstance(value, dict) and name in given:
            found |= {f"{name}.{field}": one for field, one in value.items()}
        elif name in given or parameter.default is not parameter.empty:
            found[name] = value
    return found | {name: value for name, value in given.items() if "." in name or name not in _parameters(make)}


def what_is_needed(make: Callable[..., object]) -> str:
    """How --kwargs gives a factory the arguments that have no default, as JSON; where none is needed an example."""
    hints = hints_of(make)
    needed = [name for name, parameter in _parameters(make).items() if parameter.default is parameter.empty]
    parts = []
    for name in needed:
        kind = _class_in(hints.get(name))
        names = [field.name for field in fields(kind) if field.init] if kind and is_dataclass(kind) else []
        inside = ", ".join(f'"{field}": …' for field in names)
        parts.append(f'"{name}": {{{inside}}}' if names else f'"{name}": …')
    return "--kwargs '{" + (", ".join(parts) or '"depth": 4') + "}'"


def _fields(kind: type, value: object) -> dict[str, object]:
    given = value if isinstance(value, dict) else {}
    defaults: dict[str, object] = {}
    for field in fields(kind):
        if field.init and field.default is not MISSING:
            defaults[field.name] = field.default
        elif field.init and field.default_factory is not MISSING:
            defaults[field.name] = field.default_factory()
    return defaults | given


def _as_annotated(value: object, hint: object, name: str) -> object:
    if not isinstance(value, dict):
        return value
    kind = _class_in(hint)
    if kind is None:
        plain = hint is None or hint is Any or hint is inspect.Parameter.empty
        return Attributes({key: _as_annotated(one, None, key) for key, one in value.items()}) if plain else value
    hints = hints_of(kind)
    parts = {key: _as_annotated(one, hints.get(key, dict), f"{name}.{key}") for key, one in value.items()}
    if is_dataclass(kind):
        known = [field.name for field in fields(kind) if field.init]
        if unknown := [key for key in parts if key not in known]:
            raise UsageError(
                f"--kwargs: {name} is a {kind.__name__}, which has no {', '.join(unknown)}",
                f"it has {listed(known, 20)}",
            )
    return kind(**parts)


def _class_in(hint: object) -> type | None:
    """The class of a configuration that an annotation names, `Config | None`; None for a plain dictionary or value."""
    for option in (hint, *typing.get_args(hint)):
        if isinstance(option, type) and option.__module__ not in ("builtins", "typing", "collections.abc"):
            return option
    return None


def _is_built_alone(hint: object) -> bool:
    """Whether a configuration has a default for each of its fields."""
    kind = _class_in(hint)
    if kind is None or not is_dataclass(kind):
        return False
    return all(
        field.default is not MISSING or field.default_factory is not MISSING for field in fields(kind) if field.init
    )


def _parameters(make: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """By name, with those that it hands on to another."""
    found = _own_parameters(make)
    for other in receivers(make):
        more = _own_parameters(other.make)
        found |= {name: one for name, one in more.items() if name not in found and name not in other.taken}
    return found


def taker_of(make: Callable[..., object], name: str) -> Callable[..., object]:
    """Who has an argument of a factory, or `config` of `config.depth`, in its own signature."""
    own = name.partition(".")[0]
    takers = (other.make for other in receivers(make) if own in _own_parameters(other.make) and own not in other.taken)
    return make if own in _own_parameters(make) else next(takers, make)


def _own_parameters(make: Callable[..., object]) -> dict[str, inspect.Parameter]:
    try:
        found = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return {}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: parameter for name, parameter in found.items() if parameter.kind in kinds}


def hints_of(make: Callable[..., object]) -> dict[str, object]:
    """What the annotations of a factory's arguments say, with those of the arguments that it hands on."""
    found: dict[str, object] = {}
    for each in (make, *(other.make for other in receivers(make))):
        with suppress(Exception):  # names that exist for type checkers only, in somebody else's module
            found = typing.get_type_hints(each.__init__ if inspect.isclass(each) else each) | found
    return found
