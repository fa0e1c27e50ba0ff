"""From TOML and overrides to a checked `Config`. All mistakes are reported at once, each with key, file and line."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from dittool.config.presets import preset_path
from dittool.config.schema import Config
from dittool.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LARGEST_FILE = 1 << 20  # a preset is a page of text


class ConfigError(UsageError):
    """Every mistake of a configuration, one line each, in `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        count = f"{len(problems)} mistakes in the configuration:\n" if len(problems) > 1 else ""
        super().__init__(count + "\n".join(problems), "correct the keys named above; dit presets NAME prints a valid configuration")
        self.problems = list(problems)


def load_config(preset: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a preset (a shipped name or a path ending in `.toml`) with `section.key=value` overrides.

    Raises `UsageError` for a missing or unreadable file and `ConfigError` for its content.
    """
    tree, origin = _read_with_base(preset_path(preset), seen=[])
    problems = []
    for override in overrides:
        problems += _apply_override(tree, origin, override)
    return _validated(tree, origin, problems)


def config_from_dict(tree: dict[str, Any], source: str) -> Config:
    """The configuration in a plain dict, for instance a checkpoint's; `source` names it in errors."""
    return _validated(tree, {(): source}, [])


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain values, complete with defaults, without empty keys; `config_from_dict` turns them back."""
    return config.model_dump(by_alias=True, exclude_none=True)


def config_to_toml(config: Config) -> str:
    """The whole resolved configuration as TOML; as a preset file it gives the same `Config` again."""
    import tomli_w

    return tomli_w.dumps(config_to_dict(config))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict. Raises `UsageError` with the line for anything that is not TOML."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "check the path and its permissions") from error
    if len(raw) > _LARGEST_FILE:
        raise UsageError(f"{path}: {len(raw):,} bytes, a configuration has at most {_LARGEST_FILE:,}", "is this the right file?")
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text at byte {error.start}", "is this the right file?") from error
    except RecursionError as error:
        raise UsageError(f"{path}: nested too deeply", "a configuration has sections and keys, no deeper") from error
    except ValueError as error:  # TOMLDecodeError, and plain ValueError for integers of thousands of digits
        raise UsageError(f"{path}: not valid TOML: {error}", "correct the line; https://toml.io shows the format") from error


Origin = dict[tuple[str, ...], str]  # key path → "file:line" or "-s …"; () → the file itself


def _read_with_base(path: Path, seen: list[Path]) -> tuple[dict[str, Any], Origin]:
    if path.resolve() in seen:
        raise UsageError(f"{path}: its base leads back to itself", "remove one of the base keys")
    tree, origin = read_toml(path), _line_numbers(path)
    base = tree.pop("base", None)
    if base is None:
        return tree, origin
    if not isinstance(base, str):
        raise UsageError(f"{path}: base must be the name of a preset, not {base!r}", 'for example: base = "nano"')
    beside = path.parent / base
    base_path = beside if base.endswith(".toml") and beside.is_file() else preset_path(base)
    base_tree, base_origin = _read_with_base(base_path, [*seen, path.resolve()])
    return _merged(base_tree, tree), base_origin | origin


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    # area and buckets exclude each other: the derived preset's choice replaces its base's
    for mine, other in (("area", "buckets"), ("buckets", "area")):
        if mine in over and other not in over:
            merged.pop(other, None)
    return merged


def _line_numbers(path: Path) -> Origin:
    origin: Origin = {(): str(path)}
    section: tuple[str, ...] = ()
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if header := re.match(r"\s*\[\s*([\w.\- ]+?)\s*\]", line):
            section = tuple(part.strip() for part in header[1].split("."))
            origin[section] = f"{path}:{number}"
        elif key := re.match(r"\s*([\w.\-]+)\s*=", line):
            origin[section + tuple(key[1].split("."))] = f"{path}:{number}"
    return origin


def _apply_override(tree: dict[str, Any], origin: Origin, override: str) -> list[str]:
    dotted, equals, text = override.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        return [f"-s {override}: an override has the form section.key=value"]
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            return [f"-s {override}: '{key}' is a value, not a section"]
    node[keys[-1]] = _override_value(text.strip())
    if keys[0] == "data" and keys[-1] in ("area", "buckets"):
        node.pop("buckets" if keys[-1] == "area" else "area", None)
    origin[keys] = f"-s {override}"
    return []


def _override_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # a bare word is a string


def _validated(tree: dict[str, Any], origin: Origin, problems: list[str]) -> Config:
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems = problems + [_problem(details, origin) for details in error.errors(include_url=False)]
    if problems:
        raise ConfigError(problems)
    return config


def _problem(details: Any, origin: Origin) -> str:
    path = tuple(str(part) for part in details["loc"])
    key, where = ".".join(path) or "configuration", _origin_of(path, origin)
    if details["type"] == "extra_forbidden":
        return f"{key}: unknown {'section' if isinstance(details['input'], dict) else 'key'}{_suggestion(path)} ({where})"
    if details["type"] == "missing":
        return f"{key}: missing; it has no default ({where})"
    message = details["msg"].removeprefix("Value error, ")
    value = details["input"]
    given = "" if isinstance(value, dict) else f", not {value!r}"
    return f"{key}: {message[0].lower() + message[1:]}{given} ({where})"


def _origin_of(path: tuple[str, ...], origin: Origin) -> str:
    overridden = [text for key, text in origin.items() if key[: len(path)] == path and text.startswith("-s ")]
    if overridden and path:
        return ", ".join(overridden)
    while path not in origin and path:
        path = path[:-1]
    return origin.get(path, "configuration")


def _suggestion(path: tuple[str, ...]) -> str:
    """`, did you mean 'train.lr'?` when a valid key is near in name, wherever its section is."""
    valid = [".".join(known) for known in _known_keys(Config)]
    key = ".".join(path)
    if same_name := [known for known in valid if known.split(".")[-1] == path[-1]]:
        return f", did you mean '{same_name[0]}'?"
    section = [known for known in valid if known.split(".")[:-1] == list(path[:-1])]
    close = difflib.get_close_matches(key, section, n=1, cutoff=0.7) or difflib.get_close_matches(key, valid, n=1, cutoff=0.7)
    return f", did you mean '{close[0]}'?" if close else ""


def _known_keys(section: type[BaseModel]) -> list[tuple[str, ...]]:
    keys = []
    for name, field in section.model_fields.items():
        name = field.alias or name
        keys.append((name,))
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += [(name, *rest) for rest in _known_keys(kind)]
    return keys
