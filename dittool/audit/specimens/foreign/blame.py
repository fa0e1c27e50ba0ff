"""Whose fault an error is that comes up while somebody else's model runs: the model's own code, or ours."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from dittool.errors import described

_OURS = str(Path(__file__).parents[3])  # dittool/
_LIBRARIES = (str(Path(torch.__file__).parent), sysconfig.get_paths()["stdlib"], "<")
_PACKAGES = sysconfig.get_paths()["purelib"]  # inside of the standard library's folder, yet none of it
# of ours: the places that hand over to the model; what is raised there without a line of the model's is its refusal
_HANDED_OVER = ("answers", "again", "backward", "build")

_DEVICE = re.compile(  # what torch and others say where a GPU is asked for and there is none
    r"not compiled with CUDA|No CUDA GPUs|NVIDIA driver|CUDA driver|from the 'CPU' backend|implemented for 'CPU'"
    r"|No operator found for|(?:CUDA|GPU)\b.*(?:requir|need|must|only|available|support|expected)"
    r"|(?:requir|need|must|only|support|expect|not)\w*\b.*\b(?:CUDA|GPU)",
    re.IGNORECASE,
)
_PACKAGE = re.compile(  # optional ones, by what they and their functions are called
    r"flash_?attn|flash_?attention|xformers|\bxops\b|\bapex\b|triton|natten|sage_?attn|mamba|selective_scan|causal_conv1d"
    r"|memory_efficient|deepspeed|megablocks|transformer_engine|liger",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Refusal:
    """What a model's own code said when it would not run on this machine, whatever it is given."""

    said: str  # the error
    where: str  # file:line, in function

    def __str__(self) -> str:
        return f"its own code refuses to run here: it raises {self.said} at {self.where}"


class ModelRefuses(Exception):
    """No input makes the model run here, for its own code says so."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


def refusal_of(error: BaseException) -> Refusal | None:
    """The refusal that an error is: a device or a package that is not there; None for any other."""
    place = _own_place(error)
    if place is None:
        return None
    by_package = (
        isinstance(error, ImportError)
        or _PACKAGE.search(str(error))
        or (isinstance(error, (NameError, TypeError)) and _PACKAGE.search(place.line or "") and "None" in str(error))
    )
    if not by_package and not _DEVICE.search(str(error)):
        return None
    return Refusal(described(error), f"{_shown(place)}, in {place.name}")


def own_line(error: BaseException) -> str:
    """`blocks.py:12` of the stranger's code; "" where none of it ran."""
    place = _own_place(error)
    return _shown(place) if place else ""


def _own_place(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost line of the stranger's file, else of a package that it calls."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    own = [frame for frame in frames if not _is_library(frame.filename)]
    return next(reversed([frame for frame in own if not frame.filename.startswith(_PACKAGES)] or own), None)


def _shown(place: traceback.FrameSummary) -> str:
    path = Path(place.filename).resolve()
    return f"{os.path.relpath(path) if Path.cwd() in path.parents else place.filename}:{place.lineno}"


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
