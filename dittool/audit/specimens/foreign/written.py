"""The attempt that came furthest as a function of Python for its reader to finish."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

from torch import nn

from dittool.audit.specimens.foreign.attempt import Attempt, Outcome
from dittool.audit.specimens.foreign.forms import Form, Parts, kind_of
from dittool.audit.specimens.foreign.resizing import follows_the_latent

_MOST_LINES = 3  # of the source, for each argument that is not known
_MOST_SAID = 200  # characters of an error


def written_example(
    model: nn.Module, found: tuple[Attempt, Outcome] | None, parameters: Mapping[str, inspect.Parameter]
) -> str:
    """Each argument as it was made; beside those whose names say nothing, how the source reads them."""
    read = {name: _lines_with(model, name) for name in parameters}
    if found is None:
        fed = [line for name in parameters for line in _unknown(f'"{name}": ...,', read[name])]
        return "\n".join(["import torch", "", "def example(model, height, width):", "    return {", *fed, "    }"])
    attempt, outcome = found
    sized = _with_any_size(attempt)
    fed = []
    for name, node in attempt.nodes:
        line = f'"{name}": {sized if sized and name == attempt.latent else node.written()},'
        fed += [f"        {line}"] if _is_known(name) else _unknown(line, read[name])
    left = [name for name in parameters if name not in dict(attempt.nodes)]
    return "\n".join(
        [
            "import torch",
            *_imports(attempt),
            "",
            f"def example(model{', height, width' if sized else ''}):",
            "    return {",
            *fed,
            f"        # left out: {', '.join(left) or 'nothing'}",
            f"        # it ended {place(outcome)}: {said(outcome.error)}",
            "    }",
        ]
    )


def _imports(attempt: Attempt) -> list[str]:
    """Of the classes that hold tensors."""
    waiting, kinds = [node for _, node in attempt.nodes], dict[type, None]()
    while waiting:
        node = waiting.pop()
        if isinstance(node, Parts):
            waiting += [part for _, part in node.items]
            kinds[node.kind] = None
    own = [kind for kind in kinds if kind not in (dict, tuple, list)]
    return sorted(f"from {kind.__module__.removeprefix('audited_')} import {kind.__name__}" for kind in own)


def said(error: str) -> str:
    """An error without the values of tensors that it prints."""
    plain = re.sub(r"tensor\(\[.*", "tensor(…)", error)
    return plain if len(plain) <= _MOST_SAID else plain[:_MOST_SAID] + "…"


def place(outcome: Outcome) -> str:
    return f"in {outcome.where or 'forward'}" + (f", {outcome.line}" if outcome.line else "")


def _is_known(name: str) -> bool:
    return bool(kind_of(name))


def _unknown(line: str, read: list[str]) -> list[str]:
    how = [f"        # {each}" for each in read]
    return (
        ["        # not known what this is; the source reads it so:", *how, f"        {line}"]
        if how
        else [f"        {line}  # not known what this is"]
    )


def _lines_with(model: nn.Module, name: str) -> list[str]:
    """The lines of forward in which an argument is read."""
    try:
        lines = inspect.getsource(type(model).forward).splitlines()
    except (OSError, TypeError):
        return []
    own = re.compile(rf"\b{re.escape(name)}\b")
    signature = next((i for i, line in enumerate(lines) if re.search(r"\)[^()]*:\s*(?:#.*)?$", line)), -1)
    body = [line.strip() for line in lines[signature + 1 :]] or [lines[0].rpartition(": ")[2].strip()]
    return [line for line in body if own.search(line)][:_MOST_LINES]


def _with_any_size(attempt: Attempt) -> str:
    """A latent of rows and columns for any height and width; "" where other arguments depend on its size."""
    latent = attempt[attempt.latent]
    alone = not any(follows_the_latent(form) for path, form in attempt.forms() if path != attempt.latent)
    if not isinstance(latent, Form) or len(latent.sizes) < 4 or latent.listed or not alone:
        return ""
    *before, rows, columns = latent.sizes
    return f"torch.randn({', '.join(map(str, before))}, height or {rows}, width or {columns})"
