"""A model factory in someone else's file: `file.py:Name` or `package.module:Name`, and what it is called with.

Auditing a factory runs its code: that is what is asked for. What it prints goes to stderr, so that reports stay whole.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from dittool.audit.specimens.foreign.arguments import call_with, settings_of, taker_of
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.errors import DitError, UsageError
from dittool.nearest import did_you_mean

_loaded: dict[Path, tuple[int, ModuleType]] = {}  # files with the time at which they were written
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
            return self.made(**changes).eval()

    def made(self, **changes: object) -> nn.Module:
        """What the factory returns, or the one module that is in it: `return model, config`."""
        made = call_with(self.make, {**self.kwargs, **changes})
        if isinstance(made, nn.Module):
            return made
        parts = made.values() if isinstance(made, dict) else made if isinstance(made, (tuple, list)) else ()
        models = [part for part in parts if isinstance(part, nn.Module)]
        if len(models) != 1:
            held = f" with {len(models)} modules" if models else ""
            raise UsageError(f"{self.target}: returns a {type(made).__name__}{held}, not a torch.nn.Module", _FORMS)
        return models[0]

    @cached_property
    def settings(self) -> dict[str, object]:
        """Every argument with the value that it has: as given, else the default; of a configuration each field."""
        return settings_of(self.make, self.kwargs)

    def taker(self, name: str) -> Callable[..., object]:
        """Who has an argument in its own signature: the factory, or what it hands it on to."""
        return taker_of(self.make, name)


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
            _how_to_import(module_name, error),
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        others = [other for other, value in vars(module).items() if callable(value) and not other.startswith("_")]
        raise UsageError(
            f"{target}: {module_name} has no class or function {name}; it has {', '.join(others[:10]) or 'none'}",
            _FORMS,
        )
    return found


def _how_to_import(name: str, error: BaseException) -> str:
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing is None:
        return "run it on its own, or in its own environment"
    where = f"put the folder that holds {missing} in PYTHONPATH, or install it"
    return f"{where}; name the model from its package's root as package.module:Name" if name.endswith(".py") else where


def _module_of(name: str) -> ModuleType:
    """Of `file.py` or `package.module`, whose neighbours can be imported while it is, and later behind all others."""
    path, is_file = Path(name), name.endswith(".py")
    if is_file and not path.is_file():
        raise UsageError(f"{path}: no such file", did_you_mean(path, _FORMS))
    folder = path.resolve().parent if is_file else Path.cwd()
    with _importing_from(folder):
        return _module_of_file(path.resolve()) if is_file else importlib.import_module(name)


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # what is imported when the model is built or called


def _module_of_file(path: Path) -> ModuleType:
    """Alone, else as a part of the package around it, where it imports from that; once for factory and example."""
    written = path.stat().st_mtime_ns
    if path in _loaded and _loaded[path][0] == written:
        return _loaded[path][1]
    try:
        module = _executed(f"audited_{path.stem}", path)
    except ImportError as error:
        module = _as_part(path, error)
    _loaded[path] = written, module
    return module


def _as_part(path: Path, error: ImportError) -> ModuleType:
    """A file that could not be imported alone, from the folder above its package (relative imports), or beside the
    nearest folder above that holds what was missing. Raises the error where there is none.
    """
    if "relative import" not in str(error):
        missing = (error.name or path.stem).partition(".")[0]
        for root in path.parents if missing != path.stem else ():
            if (root / missing).is_dir() or (root / f"{missing}.py").is_file():
                with _importing_from(root):
                    return _executed(f"audited_{path.stem}", path)
        raise error
    inside = [folder.parent for folder in path.parents if (folder / "__init__.py").is_file()]
    for root in [*inside[-1:], *path.parents[1:4]]:
        with _importing_from(root), contextlib.suppress(ImportError):
            return importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
    raise error


def _executed(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # as of every .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
