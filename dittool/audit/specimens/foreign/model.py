"""A foreign model to try out: built as often as a rule needs it, with its example inputs and its anatomy.

Drawing the weights of a large model takes many seconds and gigabytes, so that one is built once, and rules get copies
that share its weights.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import nn

from dittool.audit.specimens.anatomy import Anatomy
from dittool.audit.specimens.foreign.anatomy import find_anatomy
from dittool.audit.specimens.foreign.conditions import input_effects
from dittool.audit.specimens.foreign.example import Example
from dittool.audit.specimens.foreign.factory import Factory
from dittool.audit.specimens.foreign.keywords import keyword_effects
from dittool.audit.specimens.positions import grids_that_run, measure, stored_positions
from dittool.audit.specimens.specimen import Grid, Liveness, NotAnswered, Options, Positions, Precision
from dittool.audit.specimens.trial import LARGEST_BUILT, Inputs, Trial, answer, is_zero, kind_of_number, wake
from dittool.errors import DitError, UsageError

_METHODS = {  # that switch gradient checkpointing on and off, of diffusers, transformers and timm
    "enable_gradient_checkpointing": "disable_gradient_checkpointing",
    "gradient_checkpointing_enable": "gradient_checkpointing_disable",
    "set_grad_checkpointing": None,
}
_SHAPES_WANTED = 3


class ForeignModel(Trial[nn.Module]):
    """A factory, how to call what it makes, and where its parts are. Everything is seeded: two builds have the same
    weights.
    """

    scopes: ClassVar[frozenset[str]] = frozenset({"model"})

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
        self._parameters = sum(parameter.numel() for parameter in model.parameters())
        self._only = model if self.large else None

    def with_arguments(self, **changes: Any) -> ForeignModel:
        """The factory's model under other arguments."""
        return ForeignModel(replace(self.factory, kwargs={**self.factory.kwargs, **changes}), self._function)

    @property
    def parameters(self) -> int:
        return self._parameters

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

    def inputs(self, seed: int = 0) -> Inputs:
        return self.example.inputs(seed=seed)

    def _unanswered(self) -> str:
        return "a model alone: guidance is what its sampler does with it"

    def precision(self) -> Precision:
        return Precision("", Counter(kind_of_number(parameter.dtype) for parameter in self.fresh().parameters()))

    def options(self) -> Options:
        return keyword_effects(self)

    def liveness(self) -> Liveness:
        return input_effects(self)

    # Gradient checkpointing

    def _checkpointing_switch(self) -> tuple[str, Callable[[bool], nn.Module], str]:
        for name, value in self.factory.settings.items():
            if "checkpoint" in name and isinstance(value, bool):
                return f"{name} ", partial(self._built_with, name), ""
        model = self.shared_awake
        for on, off in _METHODS.items():
            if callable(getattr(model, on, None)):
                return f"{on}() ", partial(self._called, on, off), ""
        for name, value in vars(model).items():
            if "checkpoint" in name and isinstance(value, bool):
                return f"{name} ", partial(self._set, name), ""
        where = "no keyword argument, attribute or method of it has 'checkpoint' in its name"
        raise NotAnswered(f"no switch was found: {where}")

    def _built_with(self, name: str, wanted: bool) -> nn.Module:
        """Switched by an argument of the factory."""
        return self.awake(**{name: wanted})

    def _called(self, on: str, off: str | None, wanted: bool) -> nn.Module:
        """Switched by a method, or by one method with a value."""
        model = self.awake()
        method = getattr(model, on if wanted or off is None else off)
        method(*([wanted] if off is None else []))
        return model

    def _set(self, name: str, wanted: bool) -> nn.Module:
        """Switched by an attribute of the model and its modules."""
        model = self.awake()
        for module in model.modules():
            if hasattr(module, name):
                setattr(module, name, wanted)
        return model

    # Positions

    @property
    def latent(self) -> str:
        return self.example.latent

    @cached_property
    def patch_size(self) -> int:
        size, tokens = self.example.size, self.anatomy.tokens
        if size is None:
            return 1
        patch = math.isqrt(math.prod(size) // tokens)
        if not patch or patch**2 * tokens != math.prod(size):
            raise NotAnswered(f"{tokens} tokens for a latent of {size}: the patch size cannot be told")
        return patch

    def at_grid(self, grid: Grid) -> Inputs:
        return self.example.inputs(size=(grid[0] * self.patch_size, grid[1] * self.patch_size), batch=1)

    def positions(self) -> Positions:
        anatomy = self.anatomy
        if not anatomy.blocks or not anatomy.tokens:
            why = anatomy.why_not or "the latent does not reach the first block in one row"
            raise NotAnswered(f"the latent's tokens were not found: {why}")
        stored = stored_positions(self, self.awake(), self.example.inputs(batch=1))
        try:
            if not self.example.sizes_can_change:
                why = "--example does not take a height and width, so other shapes cannot be tried"
                raise NotAnswered(f"the latent comes as tokens, and {why}")
            ran, problem = grids_that_run(self, self._usual_grids())
        except NotAnswered:
            if stored:
                return Positions(stored)
            raise
        odd = [grid for grid in ran if grid[0] != grid[1]]
        if problem and len(ran) >= _SHAPES_WANTED and odd:
            problem = ""  # a window or a stage may ask for multiples; the rule asks for three shapes
        return measure(self, min(odd, key=math.prod), ran, problem, stored) if odd else Positions(stored, ran, problem)

    def _usual_grids(self) -> list[Grid]:
        """The example's own, a small one, and with half and twice as many rows or columns."""
        side = math.isqrt(self.anatomy.tokens)
        size, patch = self.example.size, self.patch_size
        rows, columns = (size[0] // patch, size[1] // patch) if size else (side, side)
        halves = [(rows, max(columns // 2, 1)), (max(rows // 2, 1), columns)]
        return list(dict.fromkeys([(rows, columns), (2, 3), *halves, (rows, columns * 2)]))


def _sharing_weights(model: nn.Module, names: Set[str] | None = None) -> nn.Module:
    """A copy whose parameters (of these names) are those of the model, but for the ones that are zero throughout,
    which `wake` writes to.
    """
    shared = [one for name, one in model.named_parameters() if (names is None or name in names) and not is_zero(one)]
    return copy.deepcopy(model, {id(one): one for one in shared})


def _configured(model: nn.Module) -> dict[str, Any]:
    """What a model remembers of its own configuration, as diffusers' do."""
    config = getattr(model, "config", None)
    try:
        return dict(config or {})
    except (TypeError, ValueError):
        return {}
