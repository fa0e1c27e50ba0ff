"""What of this installation will bite: versions that do not fit each other, builds for other devices, no compiler.

Beside `machine.py`: the same findings, about Python packages instead of the system's limits.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from dittool.machine import BITES, NOTE, OK, Finding
from dittool.shell import command_line


def versions(requirements: Sequence[str] | None = None) -> list[Finding]:
    """Whether each package that we need, and each that those need, is there in a version that fits.

    `requirements`: lines such as "torch>=2.10"; by default those of `dit` itself.
    """
    wanted = _own_requirements() if requirements is None else list(requirements)
    broken, count = [], 0
    for parent, line, need in _tree(wanted):
        count += 1
        if (installed := _distribution(need.name)) is None:
            what, remedy = f"{parent} needs {line}, and it is not installed", _install(line)
        elif not need.specifier.contains(installed.version, prereleases=True):
            what = f"{parent} needs {line}, and {need.name} {installed.version} is installed"
            remedy = _fitting_torchvision(installed.version) if parent.startswith("torchvision ") else _install(line)
        else:
            continue
        broken.append(Finding(need.name, BITES, what, remedy))
    return broken or [Finding("versions", OK, f"{count} packages are there in versions that fit each other")]


def python_version(least: tuple[int, int] = (3, 10)) -> Finding:
    """Of the interpreter, and whether the `dit` on the PATH is its own."""
    what = f"{sys.version.split()[0]} in {sys.prefix}"
    if sys.version_info < least:
        needed = ".".join(map(str, least))
        return Finding("python", BITES, f"{what}; {needed} or newer is needed", "make an environment with a newer one")
    script = shutil.which("dit")
    if script and not Path(script).resolve().is_relative_to(Path(sys.prefix).resolve()):
        remedy = f"activate that environment, or call this one's: {command_line(sys.executable, '-m', 'dittool')}"
        return Finding("python", NOTE, f"{what}; the dit that a shell finds is another one's: {script}", remedy)
    return Finding("python", OK, what)


def torchvision_build() -> Finding:
    """Whether torchvision loads beside this torch, with its operators. Imports both."""
    import torch

    from dittool.encoders.torchvision_remedy import ensure_torchvision

    name, pair = "torchvision", f"torch {torch.__version__}"
    try:
        ensure_torchvision()
        torchvision = importlib.import_module(name)
    except Exception as error:  # whatever a package of another build does while it is imported
        what = f"it cannot be imported beside {pair}: {type(error).__name__}: {str(error).splitlines()[0]}"
        return Finding(name, BITES, what, _fitting_torchvision(torch.__version__))
    pair = f"{torchvision.__version__} beside {pair}"
    if not torchvision.extension._has_ops():
        return Finding(name, NOTE, f"{pair}: of another build, its operators do not load, and dit does without them")
    return Finding(name, OK, pair)


def compiler(wanted: bool) -> Finding:
    """The C++ compiler that `train.compile` calls."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if found or not wanted:
        return Finding("compiler", OK, found or "none; only train.compile = true would need one")
    remedy = "install one (apt-get install g++), or train with -s train.compile=false"
    return Finding("compiler", BITES, "train.compile = true needs a C++ compiler, and there is none", remedy)


def _own_requirements() -> list[str]:
    """What pyproject.toml asks for: of the checkout that runs, else of what is installed."""
    from dittool.config.load import read_toml

    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        return list(read_toml(project)["project"]["dependencies"])
    found = _distribution("dit")
    return [line for line in (found.requires or []) if "extra ==" not in line] if found else []


def _tree(lines: Sequence[str]) -> Iterator[tuple[str, str, Requirement]]:
    """(who needs it, the line, the requirement) for each, and for what is installed what it needs in turn."""
    waiting, seen = [("dit", line) for line in lines], set()
    while waiting:
        parent, line = waiting.pop(0)
        with suppress(InvalidRequirement):
            need = Requirement(line)
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            yield parent, line.partition(";")[0].strip(), need
            if need.name not in seen and (installed := _distribution(need.name)) is not None:
                seen.add(need.name)
                waiting += [(f"{need.name} {installed.version}", needed) for needed in installed.requires or []]


def _distribution(name: str) -> Distribution | None:
    with suppress(PackageNotFoundError):
        return distribution(name)
    return None


def _install(requirement: str) -> str:
    return command_line("pip", "install", requirement)


def _fitting_torchvision(torch: str) -> str:
    """torchvision 0.(n + 15) is made for torch 2.n."""
    minor = int(torch.split(".")[1])
    fitting = command_line("pip", "install", "--force-reinstall", "--no-deps", f"torchvision==0.{minor + 15}.*")
    return f"install the one that is made for this torch, from where torch came from: {fitting}"
