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
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.errors import DitError, UsageError
from dittool.nearest import did_you_mean

_FORMS = "name a class or function as file.py:Name or package.module:Name"


@dataclass(frozen=True)
class Factory:
    """A class or function that makes a `torch.nn.Module`, and its keyword arguments."""

    target: str
    make: Callable[..., object]
    kwargs: dict[str, object]

    def build(self, seed: int = 0, **changes: object) -> nn.Module:
        """A new model in evaluation mode, with seeded weights. Whatever the factory raises comes through."""
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(sys.stderr):
            torch.manual_seed(seed)
            model = self.make(**{**self.kwargs, **changes})
        if not isinstance(model, nn.Module):
            raise UsageError(f"{self.target}: returns a {type(model).__name__}, not a torch.nn.Module", _FORMS)
        return model.eval()

    @cached_property
    def settings(self) -> dict[str, object]:
        """Every keyword argument with the value that it has: as given, else the default of the signature."""
        try:
            parameters = list(inspect.signature(self.make).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        defaults = {
            parameter.name: parameter.default
            for parameter in parameters
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and parameter.default is not parameter.empty
        }
        return defaults | self.kwargs


def load_factory(target: str, kwargs: str | None = None) -> Factory:
    """The factory that a target names. `kwargs` is a JSON object. Raises `UsageError`."""
    example = """for example: --kwargs '{"depth": 4}'"""
    try:
        given = json.loads(kwargs or "{}")
    except ValueError as error:
        raise UsageError(f"--kwargs is not JSON: {error}", example) from error
    if not isinstance(given, dict):
        raise UsageError(f"--kwargs is a {type(given).__name__}, not a JSON object", example)
    return Factory(target, load_attribute(target), given)


def load_attribute(target: str) -> Callable[..., object]:
    """What `file.py:Name` or `package.module:Name` names. Raises `UsageError` with the module's own error when it
    cannot be imported.
    """
    module_name, _, name = target.rpartition(":")
    ensure_torchvision()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            module = _module_of(module_name)
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


def _module_of(name: str) -> ModuleType:
    """Of `file.py` or `package.module`, whose neighbours can be imported while it is."""
    path, is_file = Path(name), name.endswith(".py")
    if is_file and not path.is_file():
        raise UsageError(f"{path}: no such file", did_you_mean(path, _FORMS))
    folder = str(path.resolve().parent if is_file else Path.cwd())
    sys.path.insert(0, folder)
    try:
        return _module_of_file(path) if is_file else importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def _module_of_file(path: Path) -> ModuleType:
    name = f"audited_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # as of every .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
