"""A second look at arguments that changed nothing alone: they may act beside another, or where nothing was run."""

from __future__ import annotations

from dataclasses import replace
from time import thread_time
from typing import TYPE_CHECKING

import torch
from torch import nn

from dittool.audit.specimens.foreign.blame import strangers_fault
from dittool.audit.specimens.foreign.readers import read_by_what_never_ran
from dittool.audit.specimens.gates import wake
from dittool.audit.specimens.settings import guess_values, read_beside_the_device
from dittool.audit.specimens.specimen import Effect, Options
from dittool.audit.specimens.watching import Inputs, answers, answers_without_gradient, fixed_chance
from dittool.errors import UsageError

if TYPE_CHECKING:
    from dittool.audit.specimens.foreign.model import ForeignModel

_MOST_PAIRS = 24  # of two arguments
_SECONDS = 12.0  # of this thread's work, for all second looks of a model
_MOST_VALUES = 3
_BEYOND = (10, 100, 0.1, 0.01, 0.001)  # times a number's value, for what acts past a threshold
_REFUSALS = (ValueError, AssertionError, ImportError, UsageError)  # what may be said of a value that does not go


def looked_at_again(foreign: ForeignModel, options: Options) -> Options:
    """Dead arguments that act beside another one, at another size or further away act; those that may act where an
    audit does not run are not seen to act.
    """
    effects, until = dict(options.effects), thread_time() + _SECONDS
    if foreign.large:
        return replace(options, effects={name: _elsewhere(foreign, name, effect) for name, effect in effects.items()})
    for name, effect in effects.items():
        if effect.kind == "dead" and (reader := read_by_what_never_ran(foreign.shared_awake, name, foreign.inputs())):
            effects[name] = Effect("unseen", f"not seen to act here: {reader} reads it, which no pass calls")
        elif effect.kind == "dead":
            effects[name] = _elsewhere(foreign, name, effect)
            if effects[name].kind != "unseen" and thread_time() >= until:
                effects[name] = Effect("unseen", f"{effect.evidence}; beside others it was not tried, for lack of time")
            elif not foreign.remembers(name) and (where := _acts_somewhere(foreign, name, effects)):
                effects[name] = Effect("acts", where)
        elif effect.kind == "unseen" and isinstance(foreign.factory.settings[name], bool):
            effects[name] = _raised(foreign, name) or effect
    return replace(options, effects=effects)


def _raised(foreign: ForeignModel, name: str) -> Effect | None:
    """What a switch's other value raises where it is no refusal."""
    value = not foreign.factory.settings[name]
    try:
        answers_without_gradient(foreign.fresh(0, **{name: value}), foreign.inputs())
    except _REFUSALS:
        return None
    except Exception as error:
        fault = strangers_fault(error)
        return Effect("broken", f"{not value} → {value} {fault}") if fault and "CUDA" not in fault else None
    return None


def _elsewhere(foreign: ForeignModel, name: str, effect: Effect) -> Effect:
    """A dead argument that an audit cannot call dead, with the reason."""
    if effect.kind != "dead":
        return effect
    if bool(foreign.fault_in_training):
        return Effect("unseen", "not seen to act here: training mode does not run, and it may act there")
    if foreign.remembers(name):
        return Effect("unseen", "not seen to act here: the model's config keeps it, where a pipeline may read it")
    if line := read_beside_the_device(foreign.factory.taker(name), name):
        return Effect("unseen", f"not seen to act here: {line} reads it beside the device, so it may act on a GPU")
    if _stores(foreign, name):
        return Effect("kept", f"{effect.evidence}; the model stores it, and nothing was seen to read it")
    return effect


def _stores(foreign: ForeignModel, name: str) -> bool:
    """Whether the model has a number under an argument's name, for whoever holds the model."""
    value, stored = foreign.factory.settings[name], vars(foreign.shared_awake).get(name)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and type(stored) is type(value)


def _acts_somewhere(foreign: ForeignModel, name: str, effects: dict[str, Effect]) -> str:
    """Beside which other argument, or where, an argument acts; "" when nowhere that was tried."""
    settings, taker = foreign.factory.settings, foreign.factory.taker
    value = settings[name]
    values: list[object] = list(guess_values(taker(name), name, value).values)[:_MOST_VALUES]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        further = (type(value)(value * times) for times in _BEYOND)
        values += [number for number in further if number]
    inputs = foreign.varied.all
    for candidate in values:
        if _differs(foreign, {}, {name: candidate}, inputs):
            where = "further away, at another size or with a flag of forward turned"
            return f"{value!r} → {candidate!r} changes the answer, {where}"
    beside = sorted(
        (other for other in effects if other != name), key=lambda other: not isinstance(settings[other], bool)
    )
    pairs = [
        (other, changed)
        for other in beside
        for changed in list(guess_values(taker(other), other, settings[other]).values)[
            : 1 if isinstance(settings[other], bool) else 2
        ]
    ]
    for other, changed in pairs[:_MOST_PAIRS]:
        if any(_differs(foreign, {other: changed}, {name: candidate}, inputs) for candidate in values[:_MOST_VALUES]):
            return f"beside {other}={changed!r}"
    return ""


def _differs(foreign: ForeignModel, beside: dict[str, object], change: dict[str, object], inputs: list[Inputs]) -> bool:
    """Whether a change shows beside others in shapes, first weights, answers, or answers in training."""
    try:
        plain, other = (foreign.fresh(0, **beside, **more) for more in ({}, change))
    except Exception:  # not legal together
        return False
    before, after = plain.state_dict(), other.state_dict()
    written = before.keys() - set(foreign.unwritten)
    if before.keys() != after.keys() or not all(_same(before[key], after[key]) for key in written):
        return True
    try:
        return not all(map(_same, _all_answers(foreign, plain, inputs), _all_answers(foreign, other, inputs)))
    except Exception:  # nor does it run so
        return False


def _all_answers(foreign: ForeignModel, model: nn.Module, inputs: list[Inputs]) -> list[torch.Tensor]:
    wake(model, 0)
    found = []
    for training in (False,) if bool(foreign.fault_in_training) else (False, True):
        model.train(training)
        for given in inputs:
            with torch.no_grad(), fixed_chance():
                found += answers(model, given)
    return found


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
