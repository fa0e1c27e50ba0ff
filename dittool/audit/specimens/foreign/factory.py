"""A model factory in someone else's file: `file.py:Name` or `package.module:Name`, and what it is called with.

Auditing a factory runs its code: that is what is asked for. What it prints goes to stderr, so that reports stay whole.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.errors import DitError, UsageError

_FORMS = "name a class or function as file.py:Name or package.module:Name"


@dataclass(frozen=True)
class Factory:
    """A class or function that makes a `torch.nn.Module`, and its keyword arguments."""

    target: str
    make: Callable[..., Any]
    kwargs: dict[str, Any]

    def build(self, seed: int = 0, **changes: Any) -> nn.Module:
        """A new model in evaluation mode, with seeded weights. Whatever the factory raises comes through."""
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(sys.stderr):
            torch.manual_seed(seed)
            model = self.make(**{**self.kwargs, **changes})
        if not isinstance(model, nn.Module):
            raise UsageError(f"{self.target}: returns a {type(model).__name__}, not a torch.nn.Module", _FORMS)
        return model.eval()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every keyword argument with the value that it has: as given, else the default of the signature."""
        try:
            parameters = list(inspect.signature(self.make).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        named = [
            one
            for one in parameters
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and one.default is not one.empty
        ]
        return {one.name: one.default for one in named} | self.kwargs


def load_factory(target: str, kwargs: str | None = None) -> Factory:
    """The factory that a target names. `kwargs` is a JSON object. Raises `UsageError`."""
    return Factory(target, load_attribute(target), _parsed(kwargs))


def load_attribute(target: str) -> Callable[..., Any]:
    """What `file.py:Name` or `package.module:Name` names. Raises `UsageError` with the module's own error when it
    cannot be imported.
    """
    module_name, _, name = target.rpartition(":")
    ensure_torchvision()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = (
                _module_of_file(Path(module_name)) if module_name.endswith(".py") else _module_of_package(module_name)
            )
    except DitError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's module: anything can happen while it is imported
        raise UsageError(
            f"{target}: importing it raises {type(error).__name__}: {error}",
            "run it on its own, or in its own environment",
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        others = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        raise UsageError(
            f"{target}: {module_name} has no class or function {name}; it has {', '.join(others[:10]) or 'none'}",
            _FORMS,
        )
    return found


def _module_of_file(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"{path}: no such file", _FORMS)
    name = f"audited_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: not a Python file", _FORMS)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    with _on_path(path.resolve().parent):
        spec.loader.exec_module(module)
    return module


def _module_of_package(name: str) -> Any:
    with _on_path(Path.cwd()):
        return importlib.import_module(name)


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """A file's neighbours can be imported while it is."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _parsed(kwargs: str | None) -> dict[str, Any]:
    try:
        parsed = json.loads(kwargs or "{}")
    except ValueError as error:
        raise UsageError(f"--kwargs is not JSON: {error}", """for example: --kwargs '{"depth": 4}'""") from error
    if not isinstance(parsed, dict):
        raise UsageError(
            f"--kwargs is a {type(parsed).__name__}, not a JSON object", """for example: --kwargs '{"depth": 4}'"""
        )
    return parsed
