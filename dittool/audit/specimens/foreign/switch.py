"""What switches gradient checkpointing of a foreign model: an argument of its factory, a method, an attribute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from dittool.audit.specimens.foreign.blame import strangers_fault
from dittool.audit.specimens.specimen import NotAnswered
from dittool.audit.specimens.trial import CheckpointingSwitch

if TYPE_CHECKING:
    from dittool.audit.specimens.foreign.model import ForeignModel

_METHODS = {  # of diffusers, transformers and timm
    "enable_gradient_checkpointing": "disable_gradient_checkpointing",
    "gradient_checkpointing_enable": "gradient_checkpointing_disable",
    "set_grad_checkpointing": None,
}
_NAME = re.compile(r"^(?!.*(?:load|path|resume|init|save|pretrained)).*(?:checkpoint|remat|recompute|ckpt)")


class SwitchFails(Exception):
    """The model's own switch raises."""


def find_switch(foreign: ForeignModel) -> CheckpointingSwitch[nn.Module]:
    model = foreign.shared_awake
    for name in _switches(foreign.factory.settings):
        return CheckpointingSwitch(f"{name} ", partial(_built_with, foreign, name))
    for on, off in _METHODS.items():
        if callable(getattr(model, on, None)):
            missing = off is not None and not callable(getattr(model, off, None))
            once = f"{on}() cannot be undone: there is no {off}()" if missing else ""
            return CheckpointingSwitch(f"{on}() ", partial(_called, foreign, on, off), broken=once)
    for module in model.modules():
        for name in _switches(vars(module)):
            return CheckpointingSwitch(f"{name} ", partial(_set, foreign, name), offered=module is model)
    where = "no keyword argument, attribute or method of it has 'checkpoint' in its name"
    raise NotAnswered(f"no switch was found: {where}")


def _built_with(foreign: ForeignModel, name: str, wanted: bool) -> nn.Module:
    """Switched by an argument of the factory."""
    return foreign.awake(0, **{name: wanted})


def _called(foreign: ForeignModel, on: str, off: str | None, wanted: bool) -> nn.Module:
    """Switched by a method, or by one method with a value; off after it was on."""
    model = foreign.awake()
    try:
        if off is None:
            getattr(model, on)(wanted)
        elif wanted:
            getattr(model, on)()
        elif callable(getattr(model, off, None)):
            getattr(model, on)()
            getattr(model, off)()
    except Exception as error:
        fault = strangers_fault(error)
        if not fault:
            raise
        if isinstance(error, (ValueError, RuntimeError)) and "support" in str(error):
            raise NotAnswered(f"the model has no gradient checkpointing: {on}() {fault}") from error
        raise SwitchFails(f"{on}() {fault}") from error
    return model


def _set(foreign: ForeignModel, name: str, wanted: bool) -> nn.Module:
    """Switched by an attribute of the model and its modules."""
    model = foreign.awake()
    for module in model.modules():
        if hasattr(module, name):
            setattr(module, name, wanted)
    return model


def _switches(settings: Mapping[str, object]) -> list[str]:
    return [name for name, value in settings.items() if isinstance(value, bool) and _NAME.search(name)]
