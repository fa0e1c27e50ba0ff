"""What a repository of one's own says about its audit: `dit-audit.toml`, or `[tool.dit-audit]` in `pyproject.toml`.

    targets = ["models/dit.py:DiT"]
    kwargs = { depth = 4 }
    fail-on = ["warn"]

An option on the command line goes before it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dittool.audit.rule import Profile
from dittool.config.load import read_toml
from dittool.errors import UsageError

OWN_FILE, SHARED_FILE, SECTION = "dit-audit.toml", "pyproject.toml", "dit-audit"
_KINDS: dict[str, tuple[type, ...]] = {  # of each key's value
    "targets": (list,),
    "select": (list,),
    "ignore": (list,),
    "fail-on": (list, str),
    "kwargs": (dict,),
    "example": (str,),
    "profile": (str,),
    "trained": (bool,),
    "time-limit": (int, float),
    "memory-limit": (int, float),
}


@dataclass(frozen=True)
class Project:
    """The settings, each as its option has it. `kwargs`, `example` and `trained` belong to the targets."""

    file: str = ""  # "" where there is none
    targets: list[str] = field(default_factory=list)
    select: list[str] = field(default_factory=list)
    ignore: list[str] = field(default_factory=list)
    fail_on: list[str] = field(default_factory=list)
    kwargs: str | None = None
    example: str | None = None
    profile: Profile | None = None
    trained: bool = False
    time_limit: float | None = None
    memory_limit: float | None = None  # GB


def read_project(folder: Path) -> Project:
    """Of the folder in which `dit audit` runs. Raises `UsageError` for a key that there is not, or a wrong value."""
    own, shared = folder / OWN_FILE, folder / SHARED_FILE
    if own.is_file():
        return _project(OWN_FILE, read_toml(own))
    if shared.is_file() and (section := read_toml(shared).get("tool", {}).get(SECTION)) is not None:
        return _project(f"{SHARED_FILE} [tool.{SECTION}]", section)
    return Project()


def codes_of(options: list[str] | None) -> list[str]:
    """`["e1,K"]` → `["E1", "K"]`."""
    return [code.strip().upper() for option in options or () for code in option.split(",") if code.strip()]


def _project(file: str, given: dict[str, Any]) -> Project:
    for key, value in given.items():
        if key not in _KINDS:
            raise UsageError(f"{file}: there is no key {key}", f"the keys are {', '.join(_KINDS)}")
        words = value if isinstance(value, list) else [] if _is_of(value, _KINDS[key]) else [None]
        if not _is_of(value, _KINDS[key]) or not all(isinstance(word, str) for word in words):
            wanted = " or ".join("list of texts" if kind is list else kind.__name__ for kind in _KINDS[key])
            raise UsageError(f"{file}: {key} is {value!r}, not a {wanted}", 'as in: targets = ["models/dit.py:DiT"]')
    if given.get("profile") not in (None, "scratch", "any"):
        raise UsageError(f"{file}: profile is {given['profile']!r}", 'there are "scratch" and "any"')
    named = {key.replace("-", "_"): value for key, value in given.items()}
    if isinstance(named.get("fail_on"), str):
        named["fail_on"] = [named["fail_on"]]
    if "kwargs" in named:
        named["kwargs"] = json.dumps(named["kwargs"])
    return Project(file, **named)


def _is_of(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
