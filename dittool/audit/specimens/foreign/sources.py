"""The line of a stranger's source at which something stands that a rule's evidence names: a tensor, a module, an
argument.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path

from torch import nn

from dittool.audit.specimens.foreign.factory import Factory

_NAMES = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")


def line_of(model: nn.Module, factory: Factory, evidence: str) -> str:
    """`models.py:31`, for the first module or tensor in the evidence that a class outside of torch makes; else of the
    first argument of the factory that it names; else where forward first reads what of its inputs is named; else of the
    model's class. "" where there is no source.
    """
    names = _NAMES.findall(evidence)
    modules = dict(model.named_modules())
    for name in names:
        owner, _, attribute = name.rpartition(".")
        if owner in modules and ("." in name or attribute in modules) and (line := _where_made(modules, name)):
            return line
    for name in (name.partition(".")[0] for name in names):
        taker = factory.taker(name)
        if name in inspect.signature(taker).parameters and (line := _line(taker, rf"\b{name}\b\s*[:=]")):
            return line
    for name in names:
        argument, leaf = name.partition(".")[0], name.rpartition(".")[2]
        if argument in inspect.signature(model.forward).parameters:
            return _line_of_forward(type(model), leaf) or _line(type(model), "")
    return _line(type(model), "")


def _line_of_forward(kind: type[nn.Module], name: str) -> str:
    """The first line of a class's forward, behind its signature, in which something is called so; else its first."""
    forward = kind.forward
    try:
        lines, _ = inspect.getsourcelines(inspect.unwrap(forward))
    except (OSError, TypeError):
        return ""
    body = next((i for i, line in enumerate(lines) if line.rstrip().endswith(":")), 0) + 1
    return _line(forward, rf"\b{re.escape(name)}\b", body) or _line(forward, "def ")


def _where_made(modules: dict[str, nn.Module], name: str) -> str:
    """The line in the nearest class around it that is none of torch's, where `self.part` is set."""
    while name:
        name, _, part = name.rpartition(".")
        owner = modules.get(name)
        if owner is None or type(owner).__module__.startswith("torch"):
            continue
        if line := _line(type(owner), rf"self\.{re.escape(part)}\b.*=|{re.escape(part)}"):
            return line
    return ""


def _line(thing: Callable[..., object], pattern: str, start: int = 0) -> str:
    """The first line that holds a pattern, from a line of its source on."""
    try:
        lines, first = inspect.getsourcelines(inspect.unwrap(thing))
        file = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "")
    except (OSError, TypeError):
        return ""
    found = next((i for i, line in enumerate(lines) if i >= start and re.search(pattern, line)), None)
    if found is None:
        return ""
    inside = Path.cwd() in file.resolve().parents
    return f"{os.path.relpath(file.resolve()) if inside else file}:{first + found}"
