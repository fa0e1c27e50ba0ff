"""A foreign model to try out: built as often as a rule needs it, with its example inputs and its anatomy.

Drawing the weights of a large model takes many seconds and gigabytes, so that one is built once, and rules get copies
that share its weights.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Set
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from dittool.audit.specimens.anatomy import Anatomy, Runs, find_anatomy
from dittool.audit.specimens.foreign.example import Example
from dittool.audit.specimens.foreign.factory import Factory
from dittool.audit.specimens.foreign.keywords import keyword_effects
from dittool.audit.specimens.positions import OnGrids
from dittool.audit.specimens.specimen import (
    Grid,
    Liveness,
    NotAnswered,
    Options,
    Positions,
    Precision,
    Scope,
    relative_change,
)
from dittool.audit.specimens.trial import (
    LARGEST_BUILT,
    CheckpointingSwitch,
    Trial,
    changes,
    is_zero,
    kind_of_number,
    wake,
)
from dittool.audit.specimens.watching import Inputs, answer, answer_without_gradient, ending_with, is_vector, watch
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

    scopes: ClassVar[frozenset[Scope]] = frozenset({"model"})
    training_passes = 8  # chance may drop conditions in some

    def __init__(self, factory: Factory, example: Callable[..., object] | None = None) -> None:
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
        self.example = Example(model, factory.settings | _configured(model), example)
        try:
            answer(model, self.example.inputs())
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"{factory.target}: forward raises {type(error).__name__} on the example: {error}", "correct --example"
            ) from error
        self._parameters = sum(parameter.numel() for parameter in model.parameters())
        self._only = model if self.large else None

    def with_arguments(self, **changes: object) -> ForeignModel:
        """The factory's model under other arguments."""
        return ForeignModel(replace(self.factory, kwargs={**self.factory.kwargs, **changes}), self._function)

    @property
    def parameters(self) -> int:
        return self._parameters

    @property
    def large(self) -> bool:
        """Whether it is too large to be built again and again."""
        return self.parameters > LARGEST_BUILT

    def fresh(self, seed: int = 0, **changes: object) -> nn.Module:
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

    @cached_property
    def anatomy(self) -> Anatomy:
        inputs, example = self.inputs(), self.example
        conditioned = inputs
        for name in (example.time, *example.conditions):
            conditioned = example.changed(conditioned, name) if name else conditioned
        return find_anatomy(Runs(self.shared_awake, inputs, example.changed(inputs, example.latent), conditioned))

    def inputs(self, seed: int = 0) -> Inputs:
        return self.example.inputs(seed=seed)

    def _unanswered(self) -> str:
        return "a model alone: guidance is what its sampler does with it"

    def precision(self) -> Precision:
        return Precision("", Counter(kind_of_number(parameter.dtype) for parameter in self.fresh().parameters()))

    def options(self) -> Options:
        return keyword_effects(self)

    # Conditions

    def liveness(self) -> Liveness:
        """Each input is exchanged in turn; what dropping a condition means to the model cannot be known."""
        example, model, inputs = self.example, self.shared_awake, self.inputs()
        time = example.time or ""
        names = [example.latent, *([time] if time else []), *example.conditions]
        leaks = changes(model, inputs, self._hidden(inputs))
        turns = self._turns(inputs, time) if time else {}
        return Liveness(
            changes(model, inputs, {name: example.changed(inputs, name) for name in names}),
            self.dead_parameters(self.awake().train()),
            "with open gates",
            leaks,
            f"nothing shows under {len(leaks)} masks" if leaks else "",
            time,
            turns,
            bool(turns) and example.time_is_known and float(inputs[time].max()) <= 1,
            example.time_is_known,
        )

    def _hidden(self, inputs: Inputs) -> dict[str, Inputs]:
        """For each masked input of tokens other content where the mask is zero."""
        tokens = {
            name: value
            for name, value in inputs.items()
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 3
        }
        others = {}
        for mask in filter(self.example.is_mask, inputs):
            hidden = inputs[mask] == 0  # (B, L)
            for name, value in tokens.items():
                if name != mask and value.shape[:2] == hidden.shape:
                    other = torch.randn(value.shape, generator=torch.Generator().manual_seed(7))
                    others[f"{name} under its mask"] = {name: torch.where(hidden[..., None], other, value)}
        return others

    def _turns(self, inputs: Inputs, time: str) -> dict[float, float]:
        """How far t's embedding moves over a fifth of [0, 1] and of [0, 1000]; empty when no layer before the second
        block is fed by t alone.
        """
        example, model, value = self.example, self.shared_awake, inputs[time]
        if not value.is_floating_point():
            return {}
        linear: dict[str, nn.Module] = {
            name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
        }

        def seen(given: Inputs) -> dict[str, Tensor]:
            first = [model.get_submodule(name) for name in self.anatomy.blocks[:1]]
            with watch(linear) as calls, ending_with(first[0]) if first else nullcontext():
                answer_without_gradient(model, given)
            return {name: calls[name][0].outputs[0] for name in calls}

        plain, moved, *rest = (
            seen(example.changed(inputs, name) if name else inputs)
            for name in ("", time, example.latent, *example.conditions)
        )
        alone = [
            name
            for name, output in plain.items()
            if is_vector(output, len(value))
            and not torch.equal(output, moved[name])
            and all(torch.equal(output, other[name]) for other in rest if name in other)
        ]
        turns = {}
        for span in (1.0, 1000.0) if alone else ():
            points = ({**inputs, time: torch.full_like(value, float(t))} for t in torch.linspace(0, span, 11))
            embedding = torch.cat([seen(given)[alone[-1]][:1] for given in points])
            turns[span] = relative_change(embedding[:-2], embedding[2:])
        return turns

    # Gradient checkpointing

    def _checkpointing_switch(self) -> CheckpointingSwitch[nn.Module]:
        model = self.shared_awake
        for name in _switches(self.factory.settings):
            return CheckpointingSwitch(f"{name} ", partial(self._built_with, name))
        for on, off in _METHODS.items():
            if callable(getattr(model, on, None)):
                return CheckpointingSwitch(f"{on}() ", partial(self._called, on, off))
        for name in _switches(vars(model)):
            return CheckpointingSwitch(f"{name} ", partial(self._set, name))
        where = "no keyword argument, attribute or method of it has 'checkpoint' in its name"
        raise NotAnswered(f"no switch was found: {where}")

    def _built_with(self, name: str, wanted: bool) -> nn.Module:
        """Switched by an argument of the factory."""
        return self.awake(0, **{name: wanted})

    def _called(self, on: str, off: str | None, wanted: bool) -> nn.Module:
        """Switched by a method, or by one method with a value."""
        model = self.awake()
        if off is None:
            getattr(model, on)(wanted)
        else:
            getattr(model, on if wanted else off)()
        return model

    def _set(self, name: str, wanted: bool) -> nn.Module:
        """Switched by an attribute of the model and its modules."""
        model = self.awake()
        for module in model.modules():
            if hasattr(module, name):
                setattr(module, name, wanted)
        return model

    # Positions

    def positions(self) -> Positions:
        anatomy, example = self.anatomy, self.example
        if not anatomy.blocks or not anatomy.tokens:
            why = anatomy.why_not or "the latent does not reach the first block in one row"
            raise NotAnswered(f"the latent's tokens were not found: {why}")
        patch = self._patch_size()
        grids = OnGrids(
            self.shared_awake,
            anatomy,
            example.latent,
            patch,
            lambda grid: example.inputs(size=(grid[0] * patch, grid[1] * patch), batch=1),
        )
        found = Positions(grids.stored_positions(example.inputs(batch=1)))
        if not example.sizes_can_change or not patch:
            if found.stored:
                return found
            unknown = f"{anatomy.tokens} tokens for a latent of {example.size}: no patch size gives that number"
            why = "--example does not take a height and width, so other shapes cannot be tried"
            raise NotAnswered(unknown if example.sizes_can_change else f"the latent comes as tokens, and {why}")
        ran, problem = grids.grids_that_run(self._usual_grids(patch))
        oblong = [grid for grid in ran if grid[0] != grid[1]]
        if len(ran) >= _SHAPES_WANTED and oblong:
            problem = ""  # a window or a stage may ask for multiples; the rule asks for three shapes
        found = replace(found, ran=ran, problem=problem)
        if not oblong:
            return found
        return grids.measured(min(oblong, key=math.prod), found, self._under_other_weights)

    def _patch_size(self) -> int:
        """Latent cells along one side of a token; 0 when that is not known."""
        if self.example.size is None:
            return 1
        cells, tokens = math.prod(self.example.size), self.anatomy.tokens
        patch = math.isqrt(cells // tokens)
        return patch if patch**2 * tokens == cells else 0

    def _usual_grids(self, patch: int) -> list[Grid]:
        """The example's own, a small one, and with half and twice as many rows or columns."""
        side = math.isqrt(self.anatomy.tokens)
        height, width = self.example.size or (side, side)
        rows, columns = height // patch, width // patch
        halves = [(rows, max(columns // 2, 1)), (max(rows // 2, 1), columns)]
        return list(dict.fromkeys([(rows, columns), (2, 3), *halves, (rows, columns * 2)]))

    def _under_other_weights(self) -> nn.Module:
        """`awake()` with other weights; a large one has those of its blocks in common with the first."""
        if self._only is None:
            return self.awake(seed=1)
        inside = tuple(f"{block}." for block in self.anatomy.blocks)
        outside = [name for name, _ in self._only.named_parameters() if not name.startswith(inside)]
        model = _sharing_weights(self._only, own=set(outside))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in map(model.get_parameter, outside):
                mean, spread = float(parameter.mean()), float(parameter.std(correction=0))
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + mean)
        wake(model, seed=1)
        return model


def _switches(settings: Mapping[str, object]) -> list[str]:
    return [name for name, value in settings.items() if "checkpoint" in name and isinstance(value, bool)]


def _sharing_weights(model: nn.Module, own: Set[str] = frozenset()) -> nn.Module:
    """A copy whose parameters, but for its own, are those of the model; so are not the ones that are zero throughout,
    which `wake` writes to.
    """
    shared = [tensor for name, tensor in model.named_parameters() if name not in own and not is_zero(tensor)]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _configured(model: nn.Module) -> dict[str, object]:
    """What a model remembers of its own configuration, as diffusers' do."""
    config = getattr(model, "config", None)
    try:
        return dict(config or {})
    except (TypeError, ValueError):
        return {}
