"""What other packages add through entry points: found by metadata, named by package, and of no harm when broken.

docs/plugins.md shows how such a package is written.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import Any

from dittool.errors import UsageError, described

REMEDY = "update or uninstall that package"


def installed(group: str) -> tuple[list[EntryPoint], list[str]]:
    """What installed packages offer in a group of entry points, without importing any of it; and a line for each
    package whose entry points cannot be read.
    """
    try:
        return sorted(entry_points(group=group), key=lambda plugin: plugin.name), []
    except Exception:  # one package's unreadable metadata: the others are asked one by one
        found: list[EntryPoint] = []
        refused: list[str] = []
        seen: set[str] = set()
        for distribution in distributions():
            package = _name_and_version(distribution) or "a package whose metadata cannot be read"
            name = package.rpartition(" ")[0]
            if name in seen:  # a second one further down the path is not the one that is imported
                continue
            seen |= {name} - {""}
            try:
                found += distribution.entry_points.select(group=group)
            except Exception as error:
                refused.append(
                    f"no plugin of {package} is used: its entry points cannot be read: {described(error)}; {REMEDY}"
                )
        return sorted(found, key=lambda plugin: plugin.name), refused


def named_plugins(group: str) -> dict[str, EntryPoint]:
    """The same by name; of two with one name the first. What cannot be read, the program has said."""
    return {plugin.name: plugin for plugin in reversed(installed(group)[0])}


def load_plugin(plugin: EntryPoint, kind: str) -> Any:
    """What an entry point names. `kind` names it in the error: "encoder". Raises `UsageError`."""
    try:
        with redirect_stdout(sys.stderr):  # what it prints is no part of a result
            return plugin.load()
    except (Exception, SystemExit) as error:  # somebody else's module: anything can happen while it is imported
        title = f"{kind} '{plugin.name}' of {package_of(plugin)}"
        raise UsageError(f"{title} cannot be loaded: {described(error)}", REMEDY) from error


def package_of(plugin: EntryPoint) -> str:
    """`dit-draw 1.2`, and what the entry point names where that is not known."""
    return (plugin.dist and _name_and_version(plugin.dist)) or plugin.value


def _name_and_version(distribution: Distribution) -> str:
    try:
        return f"{distribution.metadata['Name'] or ''} {distribution.version or ''}".strip()
    except Exception:  # torn metadata
        return ""
