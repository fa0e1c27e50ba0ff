"""C1 on a foreign factory: does each keyword argument change anything that can be seen?"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.specimens.foreign.anatomy import alike_blocks
from dittool.audit.specimens.foreign.checkpointing import TrainingPass, largest_gradient_difference, training_pass
from dittool.audit.specimens.foreign.guesses import guess_values
from dittool.audit.specimens.foreign.model import ForeignModel, answer
from dittool.audit.specimens.trial import wake

FIX = "let the argument act, or remove it"
_LARGEST = 100_000_000  # parameters
_FEW_BLOCKS = 2
_LOOKED_AT = (
    "shapes",
    "first weights",
    "answer",
    "answer in training",
    "what is kept for backward",
    "gradients",
    "modules",
)
ACTS, DEAD, UNSEEN = "acts", "dead", "unseen"


def check_keywords(foreign: ForeignModel) -> list[Finding]:
    settings = foreign.factory.settings
    if not settings:
        return skipped("the factory has no keyword arguments")
    note = ""
    if foreign.parameters > _LARGEST:
        size, fewer = f"{foreign.parameters:,} parameters", _fewer_blocks(foreign)
        foreign = foreign.with_arguments(**fewer) if fewer else foreign
        if foreign.parameters > _LARGEST:
            return skipped(f"{size}: too many to build for each argument; name a smaller model with --kwargs")
        settings = foreign.factory.settings
        note = f" (tried with {', '.join(f'{name}={value}' for name, value in fewer.items())}; the real one has {size})"
    seen = _Seen(foreign, foreign.fresh())
    found: dict[str, tuple[str, str]] = {name: _judge(foreign, seen, name, value) for name, value in settings.items()}
    dead = {name: what for name, (kind, what) in found.items() if kind == DEAD}
    unseen = {name: what for name, (kind, what) in found.items() if kind == UNSEEN}
    acting = {name: what for name, (kind, what) in found.items() if kind == ACTS}
    findings = [one for name, what in dead.items() for one in failed(f"{name}: {what}{note}", FIX)]
    if acting and not dead:
        shown = ", ".join(f"{name} ({what})" for name, what in acting.items())
        findings += passed(f"{len(acting)} of {len(found)} arguments act: {shown}{note}")
    if unseen:
        findings += skipped(", ".join(f"{name} ({what})" for name, what in unseen.items()))
    return findings


def _fewer_blocks(foreign: ForeignModel) -> dict[str, int]:
    """Values for the arguments that say how many blocks there are, in all or of a kind."""
    blocks, settings = foreign.anatomy.blocks, foreign.factory.settings
    counts = {len(blocks), *map(len, alike_blocks(foreign.shared_awake, blocks).values())}
    possible = [
        name for name, value in settings.items() if type(value) is int and value > _FEW_BLOCKS and value in counts
    ]
    return {name: _FEW_BLOCKS for name in possible if _has_fewer(foreign, name)}


def _has_fewer(foreign: ForeignModel, name: str) -> bool:
    """Whether blocks are missing when an argument is small."""
    try:
        modules = dict(foreign.fresh(**{name: _FEW_BLOCKS}).named_modules())
    except Exception:  # it means something else
        return False
    return any(block not in modules for block in foreign.anatomy.blocks)


class _Seen:
    """What can be seen of a model: structure, first weights, answers, bytes kept for backward, gradients."""

    def __init__(self, foreign: ForeignModel, model: nn.Module) -> None:
        self.structure = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.modules = [(name, type(module), module.extra_repr()) for name, module in model.named_modules()]
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        wake(model, 0)
        self._inputs = foreign.example.inputs()
        with torch.no_grad():
            self.answer = answer(model, self._inputs)
        self.training: TrainingPass = training_pass(foreign, model)

    def difference(self, foreign: ForeignModel, model: nn.Module) -> str:
        """What differs in another model, "" when nothing does. The cheap things are looked at first."""
        if {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} != self.structure:
            return "shapes"
        if not all(torch.equal(tensor, self.weights[name]) for name, tensor in model.state_dict().items()):
            return "first weights"
        wake(model, 0)
        with torch.no_grad():
            given = answer(model, self._inputs)
        if given.shape != self.answer.shape or not torch.equal(given, self.answer):
            return "answer"
        trained = training_pass(foreign, model)
        if not torch.equal(trained.answer, self.training.answer):
            return "answer in training"
        if trained.runs != self.training.runs or trained.saved != self.training.saved:
            return "what is kept for backward"
        if largest_gradient_difference(self.training, trained)[1] > 0:
            return "gradients"
        return (
            "modules"
            if [(name, type(module), module.extra_repr()) for name, module in model.named_modules()] != self.modules
            else ""
        )


def _judge(foreign: ForeignModel, seen: _Seen, name: str, value: Any) -> tuple[str, str]:
    guess = guess_values(foreign.factory.make, name, value)
    tried, errors = [], []
    for other in guess.values:
        try:
            difference = seen.difference(foreign, foreign.fresh(**{name: other}))
        except Exception as error:  # this value does not go with the others
            errors.append(type(error).__name__)
            continue
        if difference:
            return ACTS, difference
        tried.append(other)
    shown = ", ".join(repr(one) for one in tried or guess.values)
    if tried and guess.sure:
        return DEAD, f"{value!r} → {shown} changes none of {len(_LOOKED_AT)} things: {', '.join(_LOOKED_AT)}"
    if tried:
        return (
            UNSEEN,
            f"{value!r} → {shown} changes nothing, and whether these are values that it may have is not known",
        )
    return UNSEEN, f"{shown} raise {errors[0]}" if errors else guess.why_none
