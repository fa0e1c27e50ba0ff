"""Whose fault an error is that comes up while somebody else's model runs: the model's own code, or ours."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import torch

from dittool.errors import described

_OURS = str(Path(__file__).parents[3])  # dittool/
_LIBRARIES = (str(Path(torch.__file__).parent), sysconfig.get_paths()["stdlib"], "<")
_PACKAGES = sysconfig.get_paths()["purelib"]  # inside of the standard library's folder, yet none of it
# of ours: the places that hand over to the model; what is raised there without a line of the model's is its refusal
_HANDED_OVER = ("answers", "again", "backward", "build")


def strangers_fault(error: BaseException) -> str:
    """`raises NameError: … (blocks.py:12, in forward)`, or "" for a fault of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = max((i for i, frame in enumerate(frames) if _is_ours(frame.filename)), default=-1)
    strangers = [frame for frame in frames[ours + 1 :] if not _is_library(frame.filename)]
    if strangers:  # of a file and the package that it calls, the file's line
        last = ([frame for frame in strangers if not frame.filename.startswith(_PACKAGES)] or strangers)[-1]
        return f"raises {described(error)} ({Path(last.filename).name}:{last.lineno}, in {last.name})"
    return f"raises {described(error)}" if ours >= 0 and frames[ours].name in _HANDED_OVER else ""


def _is_ours(path: str) -> bool:
    return path.startswith(_OURS + "/")


def _is_library(path: str) -> bool:
    inside = any(path.startswith(folder) for folder in _LIBRARIES)
    return inside and (not path.startswith(_PACKAGES) or path.startswith(_LIBRARIES[0]))
