"""The effect of each keyword argument of a foreign factory: does it change anything that can be seen?"""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import TYPE_CHECKING

import torch
from torch import nn

from dittool.audit.specimens.anatomy import alike_blocks, modules_in_words
from dittool.audit.specimens.gates import wake
from dittool.audit.specimens.gradients import largest_gradient_difference
from dittool.audit.specimens.settings import effect_of, guess_values
from dittool.audit.specimens.specimen import NotAnswered, Options
from dittool.audit.specimens.watching import answer_without_gradient

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
        open_ones = any(each.kind is each.VAR_KEYWORD for each in signature(foreign.factory.make).parameters.values())
        by_class = ": name the class that it makes, whose arguments can be tried" if open_ones else ""
        raise NotAnswered(f"the factory has no keyword arguments{' of its own' * open_ones}{by_class}")
    note = ""
    if foreign.parameters > _LARGEST:
        size, fewer = f"{foreign.parameters:,} parameters", _fewer_blocks(foreign)
        foreign = foreign.with_arguments(**fewer) if fewer else foreign
        if foreign.parameters > _LARGEST:
            raise NotAnswered(f"{size}: too many to build for each argument; name a smaller model with --kwargs")
        note = f" (tried with {', '.join(f'{name}={value}' for name, value in fewer.items())}; the real one has {size})"
    seen, factory = _Seen(foreign, foreign.builds.at_full_size()), foreign.factory
    effects = {
        name: effect_of(
            value, guess_values(factory.taker(name), name, value), partial(seen.difference, name), _LOOKED_AT
        )
        for name, value in factory.settings.items()
    }
    return Options("arguments", effects, note)


def _fewer_blocks(foreign: ForeignModel) -> dict[str, int]:
    """Values for the arguments that say how many blocks there are, in all or of a kind."""
    blocks, settings = foreign.anatomy.blocks, foreign.factory.settings
    counts = {len(blocks), *map(len, alike_blocks(foreign.whole, blocks))}
    possible = [
        name for name, value in settings.items() if type(value) is int and value > _FEW_BLOCKS and value in counts
    ]
    return {name: _FEW_BLOCKS for name in possible if _has_fewer(foreign, name)}


def _has_fewer(foreign: ForeignModel, name: str) -> bool:
    """Whether blocks are missing when an argument is small."""
    try:
        modules = dict(foreign.builds.at_full_size(**{name: _FEW_BLOCKS}).named_modules())
    except Exception:  # it means something else
        return False
    return any(block not in modules for block in foreign.anatomy.blocks)


class _Seen:
    """What can be seen of a model: structure, first weights, answers, bytes kept for backward, gradients."""

    def __init__(self, foreign: ForeignModel, model: nn.Module) -> None:
        self._foreign, self._inputs = foreign, foreign.inputs()
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.modules = modules_in_words(model)
        wake(model, 0)
        self.answer = answer_without_gradient(model, self._inputs)
        self.training = foreign.training_pass(model)

    def difference(self, argument: str, value: object) -> str:
        """What is not the same under another value of an argument, "" when everything is; cheap things are looked at
        first.
        """
        model, training = self._foreign.builds.at_full_size(0, **{argument: value}), self.training
        weights = model.state_dict()
        if {name: tensor.shape for name, tensor in weights.items()} != {
            name: tensor.shape for name, tensor in self.weights.items()
        }:
            return "shapes"
        written = weights.keys() - set(self._foreign.unwritten)
        if not all(torch.equal(weights[name], self.weights[name]) for name in written):
            return "first weights"
        modules = modules_in_words(model)
        wake(model, 0)
        if not torch.equal(answer_without_gradient(model, self._inputs), self.answer):
            return "answer"
        trained = self._foreign.training_pass(model)
        differences = {
            "answer in training": not torch.equal(trained.answer, training.answer),
            "what is kept for backward": (trained.runs, trained.again, trained.saved)
            != (training.runs, training.again, training.saved),
            "gradients": largest_gradient_difference(training, trained)[1] > 0,
            "modules": modules != self.modules,
        }
        return next((what for what, differs in differences.items() if differs), "")
