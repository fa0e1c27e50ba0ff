"""A foreign model to try out: built as often as a rule needs it, with its example inputs and its anatomy.

Drawing the weights of a large model takes many seconds and gigabytes, so that one is built once, and rules get copies
that share its weights.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dittool.audit.specimens.foreign.anatomy import Anatomy, Call, find_anatomy, watch
from dittool.audit.specimens.foreign.example import Example, Inputs
from dittool.audit.specimens.foreign.factory import Factory
from dittool.audit.specimens.ours import LARGEST_BUILT
from dittool.audit.specimens.trial import Wakeable, is_zero, wake
from dittool.errors import DitError, UsageError


class ForeignModel(Wakeable):
    """A factory, how to call what it makes, and where its parts are. Everything is seeded: two builds have the same
    weights.
    """

    def __init__(self, factory: Factory, example: Callable[..., Any] | None = None) -> None:
        self.factory, self._function = factory, example
        try:
            model = factory.build()
        except DitError:
            raise
        except (Exception, SystemExit) as error:
            given = ", ".join(f"{name}={value!r}" for name, value in factory.kwargs.items())
            raise UsageError(
                f"{factory.target}({given}) raises {type(error).__name__}: {error}",
                """give its arguments with --kwargs '{"depth": 4}'""",
            ) from error
        self.example = Example(model, factory.settings | _configured(model), example, answer)
        try:
            answer(model, self.example.inputs())
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"{factory.target}: forward raises {type(error).__name__} on the example: {error}", "correct --example"
            ) from error
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._only = model if self.large else None

    def with_arguments(self, **changes: Any) -> ForeignModel:
        """The factory's model under other arguments."""
        return ForeignModel(replace(self.factory, kwargs={**self.factory.kwargs, **changes}), self._function)

    @property
    def large(self) -> bool:
        """Whether it is too large to be built again and again."""
        return self.parameters > LARGEST_BUILT

    def fresh(self, seed: int = 0, **changes: Any) -> nn.Module:
        """As the factory leaves it, in evaluation mode. A large one shares its weights with others: who changes
        them puts them back.
        """
        changes = {
            name: value for name, value in changes.items() if self.factory.settings.get(name, not value) != value
        }
        if self._only is None or seed or changes:
            return self.factory.build(seed, **changes)
        try:
            return _sharing_weights(self._only)
        except Exception:  # it holds something that cannot be copied
            self._only = None
            return self.factory.build()

    def under_other_weights(self) -> nn.Module:
        """`awake()` with other weights; a large one has those of its blocks in common with the first."""
        if self._only is None:
            return self.awake(seed=1)
        inside = tuple(f"{block}." for block in self.anatomy.blocks)
        model = _sharing_weights(
            self._only, {name for name, _ in self._only.named_parameters() if name.startswith(inside)}
        )
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith(inside):
                    mean, spread = float(parameter.mean()), float(parameter.std(correction=0))
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + mean)
        wake(model, seed=1)
        return model

    @cached_property
    def anatomy(self) -> Anatomy:
        inputs, example = self.example.inputs(), self.example
        conditioned = inputs
        for name in (example.time, *example.conditions):
            conditioned = example.changed(conditioned, name) if name else conditioned
        runs = [inputs, example.changed(inputs, example.latent), conditioned]
        return find_anatomy(self.shared_awake, runs, answer)

    def block_calls(self, model: nn.Module, inputs: Inputs) -> dict[str, Call]:
        """Each block's call while the model runs once."""
        with watch({name: model.get_submodule(name) for name in self.anatomy.blocks}) as seen, torch.no_grad():
            answer(model, inputs)
        return {name: seen[name][0] for name in self.anatomy.blocks}


def answer(model: nn.Module, inputs: Inputs) -> Tensor:
    """The first tensor that the model returns."""
    with contextlib.redirect_stdout(sys.stderr):
        output = model(**inputs)
    found = next(_tensors(output), None)
    if found is None:
        raise TypeError(f"forward returns a {type(output).__name__} without a tensor")
    return found


def _sharing_weights(model: nn.Module, names: Set[str] | None = None) -> nn.Module:
    """A copy whose parameters (of these names) are those of the model, but for the ones that are zero throughout,
    which `wake` writes to.
    """
    shared = [one for name, one in model.named_parameters() if (names is None or name in names) and not is_zero(one)]
    return copy.deepcopy(model, {id(one): one for one in shared})


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)


def _configured(model: nn.Module) -> dict[str, Any]:
    """What a model remembers of its own configuration, as diffusers' do."""
    config = getattr(model, "config", None)
    try:
        return dict(config)
    except (TypeError, ValueError):
        return {}
