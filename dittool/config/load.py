"""From TOML and overrides to a checked `Config`. All mistakes are reported at once, each with key, file and line."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dittool.config.architectures import (
    ARCHITECTURES,
    AnyConfig,
    Schema,
    architecture_named,
    architecture_names,
)
from dittool.config.presets import preset_path
from dittool.config.schema import EXCLUSIVE
from dittool.config.values import Section
from dittool.errors import UsageError
from dittool.storage import utf8_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

C = TypeVar("C", bound=AnyConfig)
S = TypeVar("S", bound=Section)

_LARGEST_FILE = 1 << 20  # bytes; a preset is a page of text
_LONGEST_VALUE = 80  # characters of a wrong value that an error repeats

_KEY = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_DOTTED_KEY = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER_LINE = re.compile(rf"\s*\[\[?\s*({_DOTTED_KEY})\s*\]")
_KEY_LINE = re.compile(rf"\s*({_DOTTED_KEY})\s*=")


class ConfigError(UsageError):
    """Every mistake of a configuration, one line each, in `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        count = f"{len(problems)} mistakes in the configuration:\n" if len(problems) > 1 else ""
        super().__init__(
            count + "\n".join(problems), "correct the keys named above; dit presets NAME prints a valid configuration"
        )
        self.problems = list(problems)


def load_config(preset: str, overrides: Sequence[str] = ()) -> AnyConfig:
    """The configuration of a preset (a shipped name or a path ending in `.toml`) with `section.key=value` overrides.

    Raises `UsageError` for a missing or unreadable file and `ConfigError` for its content.
    """
    tree, origin = _read_with_base(preset_path(preset), seen=[])
    problems = []
    for override in overrides:
        problems += _apply_override(tree, origin, override)
    return _validated(tree, origin, problems)


def config_from_dict(tree: dict[str, Any], source: str) -> AnyConfig:
    """The configuration in a plain dict, for instance a checkpoint's; `source` names it in errors."""
    return _validated(tree, {(): source}, [])


def changed(config: C, changes: Mapping[str, object], source: str) -> C:
    """The configuration with other values of some dotted keys, as valid as one that is read: the only way to change
    one. `source` names the changes in errors. Raises `ConfigError`.
    """
    tree = config_to_dict(config)
    origin: Origin = {(): source}
    for key, value in changes.items():
        _put(tree, origin, tuple(key.split(".")), value)
    after = _validated(tree, origin, [])
    assert isinstance(after, type(config))  # model.arch is not changed
    return after


def config_to_dict(config: AnyConfig) -> dict[str, Any]:
    """Plain values, complete with defaults, without empty keys; `config_from_dict` turns them back."""
    return config.model_dump(by_alias=True, exclude_none=True)


def config_to_toml(config: AnyConfig) -> str:
    """The whole resolved configuration as TOML; as a preset file it gives the same `Config` again."""
    import tomli_w

    return tomli_w.dumps(config_to_dict(config))


def read_section(path: Path, schema: type[S]) -> S:
    """What a file holds that is no configuration, but checked and explained as one is.

    Raises `UsageError` for the file and `ConfigError` for its content.
    """
    text = _read_text(path)
    return _checked(_parsed(text, path), _line_numbers(text, path), [], schema)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict. Raises `UsageError` with the line for anything that is not TOML."""
    return _parsed(_read_text(path), path)


Origin = dict[tuple[str, ...], str]  # key path → "file:line" or "-s …"; () → the file itself


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "check the path and its permissions") from error
    if len(raw) > _LARGEST_FILE:
        raise UsageError(
            f"{path}: larger than {_LARGEST_FILE:,} bytes; a configuration is a page of text", "is this the right file?"
        )
    try:
        return utf8_text(raw)
    except ValueError as error:
        raise UsageError(f"{path}: {error}", "is this the right file? A configuration is UTF-8 text") from error


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply", "a configuration has sections and keys, no deeper") from error
    except tomllib.TOMLDecodeError as error:  # says the line itself
        raise UsageError(
            f"{path}: not valid TOML: {error}", "correct the line; https://toml.io shows the format"
        ) from error
    except ValueError as error:  # Python's own limit, met by int()
        raise UsageError(f"{path}: a number has thousands of digits", "correct the number") from error


def _read_with_base(path: Path, seen: list[Path]) -> tuple[dict[str, Any], Origin]:
    text = _read_text(path)
    tree, origin = _parsed(text, path), _line_numbers(text, path)
    base = tree.pop("base", None)
    if base is None:
        return tree, origin
    place = origin.get(("base",), str(path))
    if not isinstance(base, str):
        raise UsageError(
            f"{place}: base must be the name of a preset, not {_shown(base)}", 'for example: base = "nano"'
        )
    beside = path.parent / base
    try:
        base_path = beside if base.lower().endswith(".toml") and beside.is_file() else preset_path(base)
    except UsageError as error:
        raise UsageError(f"{place}: base: {error.message}", error.hint) from error
    if base_path.resolve() in [earlier.resolve() for earlier in (*seen, path)]:
        chain = " → ".join(map(str, (*seen, path, base_path)))
        raise UsageError(f"{place}: the base leads back to itself: {chain}", "remove one of the base keys")
    base_tree, base_origin = _read_with_base(base_path, [*seen, path])
    return _merged(base_tree, tree), base_origin | origin


def _merged(base: dict[str, Any], over: dict[str, Any], section: str = "") -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = (
            _merged(base[key], value, key) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        )
    for key in over:
        other = EXCLUSIVE.get((section, key))
        if other and other not in over:
            merged.pop(other, None)
    return merged


def _line_numbers(text: str, path: Path) -> Origin:
    """Where each section and key begins. Keys inside a value (an inline table, a list) have the line of the value's
    own key.
    """
    origin: Origin = {(): str(path)}
    section: tuple[str, ...] = ()
    inside_text = False  # of a \"\"\" or \'\'\' string that goes over several lines
    for number, line in enumerate(text.split("\n"), start=1):
        begins_inside = inside_text
        inside_text ^= (line.count('"""') + line.count("'''")) % 2 == 1
        if begins_inside:
            continue
        if header := _HEADER_LINE.match(line):
            section = _split_key(header[1])
            origin[section] = f"{path}:{number}"
        elif key := _KEY_LINE.match(line):
            origin[section + _split_key(key[1])] = f"{path}:{number}"
    return origin


def _split_key(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, dotted))


def _apply_override(tree: dict[str, Any], origin: Origin, override: str) -> list[str]:
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.strip().split("."))
    label = f"-s {_cut(override)}"
    if not equals or not all(keys):
        return [f"{label}: an override has the form section.key=value"]
    try:
        _put(tree, origin, keys, _override_value(text.strip()))
    except ValueError as error:
        return [f"{label}: {error}"]
    for replaced in [key for key in origin if key[: len(keys)] == keys]:
        del origin[replaced]
    origin[keys] = label
    return []


def _put(tree: dict[str, Any], origin: Origin, keys: tuple[str, ...], value: Any) -> None:
    """Sets the value of a key, or of one element of a list: `train.betas.0`. Raises ValueError where there is no such
    place.
    """
    node: Any = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            place = _place(node, ".".join(keys[:depth]), key)
            if last:
                node[place] = value
            else:
                node = node[place]
        elif not isinstance(node, dict):
            raise ValueError(f"'{keys[depth - 1]}' is a value, not a section")
        elif last:
            node[key] = value
            if keys in EXCLUSIVE:
                node.pop(EXCLUSIVE[keys], None)
        elif keys[depth + 1].isdigit() and key not in node:
            node[key] = _default_list(_schema(tree, origin), keys[: depth + 1])
            node = node[key]
        else:
            node = node.setdefault(key, {})


def _place(values: list[Any], name: str, key: str) -> int:
    if key.isdecimal() and int(key) < len(values):
        return int(key)
    if not key.isdecimal():
        raise ValueError(f"{name} is a list; its elements are {name}.0, {name}.1 and so on")
    raise ValueError(f"{name} has {len(values)} elements, and the first is number 0; there is no number {key}")


def _default_list(schema: type[BaseModel], keys: tuple[str, ...]) -> list[Any]:
    """The list that a key holds when the preset does not give it. Raises ValueError when it holds none."""
    section: Any = schema
    for key in keys:
        fields = getattr(section, "model_fields", {}).items()
        field = next((field for name, field in fields if (field.alias or name) == key), None)
        section, default = getattr(field, "annotation", None), getattr(field, "default", None)
    if not isinstance(default, list):
        raise ValueError(f"'{keys[-1]}' is no list in this preset")
    return list(default)


def _override_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # a bare word is a string


def _validated(tree: dict[str, Any], origin: Origin, problems: list[str]) -> AnyConfig:
    return _checked(tree, origin, problems, _schema(tree, origin))


def _checked(tree: dict[str, Any], origin: Origin, problems: list[str], schema: type[S]) -> S:
    try:
        found = schema.model_validate(tree)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        problems = problems + [
            _problem(mistake, origin, schema) for mistake in mistakes + _hidden_mistakes(tree, mistakes, schema)
        ]
    if problems:
        raise ConfigError(problems)
    return found


def _schema(tree: dict[str, Any], origin: Origin) -> Schema:
    """The schema that `model.arch` names; without it that of "dit". Raises `ConfigError` for a name
    that is none.
    """
    model = tree.get("model")
    arch = model.get("arch", "dit") if isinstance(model, dict) else "dit"
    if not isinstance(arch, str) or (row := architecture_named(arch)) is None:
        known = ", ".join(f"'{name}'" for name in architecture_names())
        raise ConfigError(
            [f"model.arch: must be one of {known}, not {_shown(arch)} ({_origin_of(('model', 'arch'), origin)})"]
        )
    return row.schema


def _hidden_mistakes(tree: dict[str, Any], mistakes: list[ErrorDetails], schema: type[Section]) -> list[ErrorDetails]:
    """Rules between keys that were not checked because the same section has an unknown key: found without that key."""
    known = tree
    for mistake in mistakes:
        if mistake["type"] == "extra_forbidden":
            known = _without(known, mistake["loc"])
    try:
        schema.model_validate(known)
    except ValidationError as error:
        seen = {(mistake["loc"], mistake["type"]) for mistake in mistakes}
        return [mistake for mistake in error.errors(include_url=False) if (mistake["loc"], mistake["type"]) not in seen]
    return []


def _without(tree: dict[str, Any], path: tuple[int | str, ...]) -> dict[str, Any]:
    key, *rest = map(str, path)
    if rest:
        return {**tree, key: _without(tree[key], tuple(rest))}
    return {other: value for other, value in tree.items() if other != key}


def _problem(mistake: ErrorDetails, origin: Origin, schema: type[Section]) -> str:
    path = tuple(str(part) for part in mistake["loc"])
    kind, value = mistake["type"], mistake["input"]
    key, where = ".".join(path) or "configuration", _origin_of(path, origin)
    if kind == "extra_forbidden":
        return f"{key}: unknown {'section' if isinstance(value, dict) else 'key'}{_suggestion(path, schema)} ({where})"
    if kind == "missing":
        return f"{key}: missing; it has no default ({where})"
    if kind == "model_type":
        return f"{key}: must be a section, not {_shown(value)} ({where})"
    message = mistake["msg"].removeprefix("Value error, ").replace(" after validation", "")
    # those messages hold it
    given = "" if kind in ("value_error", "too_short", "too_long") else f", not {_shown(value)}"
    return f"{key}: {message[0].lower() + message[1:]}{given} ({where})"


def _shown(value: object) -> str:
    return _cut(str(value) if isinstance(value, (date, time)) else repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _origin_of(path: tuple[str, ...], origin: Origin) -> str:
    """The file and line of a key, or the override that set it; of a rule between keys, the section's line and all
    its overrides.
    """
    overrides = [text for key, text in origin.items() if path and key[: len(path)] == path and text.startswith("-s ")]
    if overrides and path not in origin:
        return ", ".join(overrides)
    while path not in origin and path:
        path = path[:-1]
    place = origin[path]
    return ", ".join([place, *(text for text in overrides if text != place)])


def _suggestion(path: tuple[str, ...], schema: type[Section]) -> str:
    """`, did you mean 'train.lr'?` when a valid key is near in name, wherever its section is."""
    valid = [".".join(known) for known in _known_keys(schema)]
    key = ".".join(path)
    if same_name := [known for known in valid if known.split(".")[-1] == path[-1]]:
        return f", did you mean '{same_name[0]}'?"
    section = [known for known in valid if known.split(".")[:-1] == list(path[:-1])]
    close = difflib.get_close_matches(key, section, n=1, cutoff=0.7) or difflib.get_close_matches(
        key, valid, n=1, cutoff=0.7
    )
    return f", did you mean '{close[0]}'?" if close else ""


def _known_keys(section: type[BaseModel]) -> list[tuple[str, ...]]:
    keys: list[tuple[str, ...]] = []
    for name, field in section.model_fields.items():
        name = field.alias or name
        keys.append((name,))
        for kind in (field.annotation, *get_args(field.annotation)):
            if hasattr(kind, "model_fields"):  # a section
                keys += [(name, *rest) for rest in _known_keys(kind)]
    return keys


def keys_by_name() -> dict[str, str]:
    """`lr` → `train.lr`: the first key of a name in the order of the sections, of every schema."""
    paths = [path for row in ARCHITECTURES.values() for path in _known_keys(row.schema)]
    return {path[-1]: ".".join(path) for path in reversed(paths) if len(path) > 1}
