"""What a shell offers when Tab is pressed: presets, runs, checkpoints, rule codes.

`dit --install-completion` sets it up for the shell that it is called from (Typer's own: bash, zsh, fish, PowerShell).
A shell calls `dit` at every press, so nothing here imports more than names and folders. Each function takes what was
typed so far and gives the words that may stand there; where there are none, the shell offers file names.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

COMPLETE_VARIABLE = "_DIT_COMPLETE"  # the shell's script sets it, to complete_bash for instance
_RUNS = Path("runs")


def presets(incomplete: str) -> list[str]:
    """Names of presets, and `.toml` files of the working folder."""
    from dittool.config.presets import named_presets

    own = sorted(str(path) for path in Path().glob("*.toml") if path.name != "pyproject.toml")
    return _starting(incomplete, [*named_presets(), *own])


def runs(incomplete: str) -> list[str]:
    """Folders of `runs/` that hold a run."""
    return _starting(incomplete, _runs())


def runs_and_checkpoints(incomplete: str) -> list[str]:
    """Runs, and the checkpoints of the one that is typed already, newest first."""
    folders = _runs()
    inside = [folder for folder in folders if incomplete.startswith(folder)]
    files = [
        path
        for folder in inside
        for path in (Path(folder) / "checkpoints").glob("checkpoint_*")
        if path.suffix == ".pt" or path.is_dir()
    ]
    newest = sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
    return _starting(incomplete, [*folders, *map(str, newest)])


def audit_targets(incomplete: str) -> list[str]:
    """What `dit audit` takes, but for data folders and files of models, which the shell offers as file names."""
    return presets(incomplete) + runs_and_checkpoints(incomplete)


def rule_codes(incomplete: str) -> list[str]:
    """Codes of audit rules; behind a comma the next one."""
    files = (Path(__file__).parent / "audit" / "rules").glob("[A-Z]*_*.py")  # the registry would load torch
    codes = sorted(path.name.partition("_")[0] for path in files)
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [f"{before}{comma}{code}" for code in codes if code.startswith(last) and code not in given]


def rule_pages(incomplete: str) -> list[str]:
    """Codes of audit rules, and `all`."""
    return _starting(incomplete, ["all", *rule_codes(incomplete)])


def _runs() -> list[str]:
    return sorted(str(path.parent) for path in _RUNS.glob("*/checkpoints"))


def _starting(incomplete: str, words: list[str]) -> list[str]:
    fitting = [word for word in words if word.startswith(incomplete)]
    if os.environ.get(COMPLETE_VARIABLE) == "complete_bash":  # it takes words as they are; zsh and fish quote them
        return [re.sub(r"[^\w@%+=:,./-]", r"\\\g<0>", word) for word in fitting]
    return fitting
