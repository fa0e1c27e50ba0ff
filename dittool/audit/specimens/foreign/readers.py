"""Who reads an argument that a model stores: a method that no pass calls, as an optimizer's settings are read."""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

from torch import nn

from dittool.audit.specimens.watching import Inputs, answers_without_gradient

_DESCRIBING = ("__init__", "extra_repr", "__repr__", "__str__")  # what they read acts on nothing


def read_by_what_never_ran(model: nn.Module, name: str, inputs: Inputs) -> str:
    """`configure_optimizers (train.py:31)`: a method of one of the model's classes that reads an attribute of this
    name, and that neither evaluation nor training calls; "" where there is none.
    """
    name = name.rpartition(".")[2]
    readers = {code: where for code, where in _methods(model) if _reads(code, name)}
    if not readers:
        return ""
    ran = _ran(model, inputs)
    return next((where for code, where in readers.items() if code not in ran), "") if not ran & readers.keys() else ""


def _methods(model: nn.Module) -> Iterator[tuple[CodeType, str]]:
    for kind in dict.fromkeys(kind for module in model.modules() for kind in type(module).__mro__):
        if kind is object or kind.__module__.partition(".")[0] == "torch":
            continue
        for called, member in vars(kind).items():
            function = inspect.unwrap(getattr(member, "fget", None) or getattr(member, "__func__", None) or member)
            if called not in _DESCRIBING and inspect.isfunction(function):
                code = function.__code__
                yield code, f"{called} ({Path(code.co_filename).name}:{code.co_firstlineno})"


def _reads(code: CodeType, name: str) -> bool:
    return name in code.co_names and any(
        step.argval == name and step.opname.startswith("LOAD_") for step in dis.get_instructions(code)
    )


def _ran(model: nn.Module, inputs: Inputs) -> set[CodeType]:
    """Code of every function that one pass in evaluation and one in training mode call."""
    ran: set[CodeType] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            ran.add(frame.f_code)

    was_training, before = model.training, sys.getprofile()
    try:
        for training in (False, True):
            model.train(training)
            sys.setprofile(note)
            answers_without_gradient(model, inputs)
            sys.setprofile(before)
    except Exception:  # in training mode whatever the model's own code raises: as far as it came
        pass
    finally:
        sys.setprofile(before)
        model.train(was_training)
    return ran
