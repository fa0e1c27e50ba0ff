"""The effect of each keyword argument of a foreign factory: does it change anything that can be seen?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dittool.audit.specimens.anatomy import alike_blocks
from dittool.audit.specimens.foreign.guesses import guess_values
from dittool.audit.specimens.specimen import ACTS, DEAD, UNSEEN, Effect, NotAnswered, Options, TrainingPass
from dittool.audit.specimens.trial import answer, largest_gradient_difference, wake

if TYPE_CHECKING:
    from dittool.audit.specimens.foreign.model import ForeignModel

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


def keyword_effects(foreign: ForeignModel) -> Options:
    """Each argument is set to other values of its type; a very large model is tried with fewer blocks."""
    if not foreign.factory.settings:
        raise NotAnswered("the factory has no keyword arguments")
    note = ""
    if foreign.parameters > _LARGEST:
        size, fewer = f"{foreign.parameters:,} parameters", _fewer_blocks(foreign)
        foreign = foreign.with_arguments(**fewer) if fewer else foreign
        if foreign.parameters > _LARGEST:
            raise NotAnswered(f"{size}: too many to build for each argument; name a smaller model with --kwargs")
        note = f" (tried with {', '.join(f'{name}={value}' for name, value in fewer.items())}; the real one has {size})"
    seen, settings = _Seen(foreign, foreign.fresh()), foreign.factory.settings
    return Options("arguments", {name: _effect(foreign, seen, name, value) for name, value in settings.items()}, note)


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
        self.training: TrainingPass = foreign.training_pass(model)

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
        trained = foreign.training_pass(model)
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


def _effect(foreign: ForeignModel, seen: _Seen, name: str, value: Any) -> Effect:
    guess = guess_values(foreign.factory.make, name, value)
    tried, errors = [], []
    for other in guess.values:
        try:
            difference = seen.difference(foreign, foreign.fresh(**{name: other}))
        except Exception as error:  # this value does not go with the others
            errors.append(type(error).__name__)
            continue
        if difference:
            return Effect(ACTS, difference)
        tried.append(other)
    shown = ", ".join(repr(one) for one in tried or guess.values)
    if tried and guess.sure:
        changes = f"changes none of {len(_LOOKED_AT)} things: {', '.join(_LOOKED_AT)}"
        return Effect(DEAD, f"{value!r} → {shown} {changes}")
    if tried:
        unsure = "changes nothing, and whether these are values that it may have is not known"
        return Effect(UNSEEN, f"{value!r} → {shown} {unsure}")
    return Effect(UNSEEN, f"{shown} raise {errors[0]}" if errors else guess.why_none)
