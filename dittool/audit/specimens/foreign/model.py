"""A foreign model to try out: built as often as a rule needs it, with its example inputs and its anatomy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from dittool.audit.specimens.anatomy import Anatomy, Runs, find_anatomy
from dittool.audit.specimens.foreign.arguments import what_is_needed
from dittool.audit.specimens.foreign.blame import ModelRefuses, refusal_of, strangers_fault
from dittool.audit.specimens.foreign.builds import Builds
from dittool.audit.specimens.foreign.conditions import liveness_of
from dittool.audit.specimens.foreign.example import Example
from dittool.audit.specimens.foreign.factory import Factory
from dittool.audit.specimens.foreign.feeding import Feed
from dittool.audit.specimens.foreign.grids import has_channels_first, patch_and_grid, positions_of
from dittool.audit.specimens.foreign.half import as_built, cast_to_float32, half_kinds
from dittool.audit.specimens.foreign.keywords import keyword_effects
from dittool.audit.specimens.foreign.second_look import looked_at_again
from dittool.audit.specimens.foreign.switch import SwitchFails, find_switch
from dittool.audit.specimens.foreign.varied import VariedInputs
from dittool.audit.specimens.foreign.weights import compiled_parts, loaded, moved_norms, never_written
from dittool.audit.specimens.foreign.whole import dead_in_whole, has_deaf_sample, may_mix
from dittool.audit.specimens.gradients import backward
from dittool.audit.specimens.interventions import still_chance
from dittool.audit.specimens.specimen import (
    AsBuilt,
    Checkpointing,
    Gates,
    Grid,
    Independence,
    Liveness,
    NotAnswered,
    Options,
    Positions,
    Precision,
    Scope,
    TrainingPass,
)
from dittool.audit.specimens.trial import LARGEST_BUILT, CheckpointingSwitch, Trial, kind_of_number
from dittool.audit.specimens.watching import (
    Inputs,
    answers,
    answers_without_gradient,
    fixed_chance,
    gradients_to,
    hooked,
    uncompiled,
)
from dittool.errors import DitError, UsageError

_NO_CHANCE = 1e-5  # relative change of an answer


class ForeignModel(Trial[nn.Module]):
    """A factory, how to call what it makes, and where its parts are. Everything is seeded: two builds have the same
    weights.
    """

    scopes: ClassVar[frozenset[Scope]] = frozenset({"model"})
    training_passes = 8  # chance may drop conditions in some

    def __init__(self, factory: Factory, example: Callable[..., object] | None = None, trained: bool = False) -> None:
        """`trained`: whether the user says that the factory's model has trained weights. Raises `UsageError` where no
        input is found with which the model runs, `ModelRefuses` where its own code says that it does not run here.
        """
        self.factory, self._function, self._said_trained = factory, example, trained
        with uncompiled():
            model, self.example = self._built_with_example()
        self.feed = Feed(model, self.example)
        self._parameters = sum(parameter.numel() for parameter in model.parameters())
        with uncompiled():
            self.builds = Builds(factory, self.example.prepared, model if self.large else None, self.inputs())

    def _built_with_example(self) -> tuple[nn.Module, Example]:
        model = self._first_built()
        self._kinds = Counter(kind_of_number(parameter.dtype) for parameter in model.parameters())
        if not half_kinds(model):
            return model, self._example_for(model, False)
        try:
            return model, self._example_for(cast_to_float32(model), True)
        except (UsageError, ModelRefuses):
            model = self._first_built()
            with suppress(UsageError, ModelRefuses):  # it may cast to half itself
                return model, self._example_for(model, False)
            raise

    def _example_for(self, model: nn.Module, in_float32: bool) -> Example:
        """Raises as the model's making does."""
        example = Example(model, self.factory.settings | _configured(model), self._function, in_float32)
        try:
            answers_without_gradient(example.prepared(model), example.inputs())
        except Exception as error:
            if refusal := refusal_of(error):
                raise ModelRefuses(refusal) from error
            raise UsageError(
                f"{self.factory.target}: forward raises {type(error).__name__} on the example: {error}",
                _how_to_correct(model, error),
            ) from error
        return example

    def _first_built(self) -> nn.Module:
        factory = self.factory
        try:
            model = factory.build()
        except DitError:
            raise
        except (Exception, SystemExit) as error:
            given = ", ".join(f"{name}={value!r}" for name, value in factory.kwargs.items())
            raise UsageError(
                f"{factory.target}({given}) raises {type(error).__name__}: {error}",
                f"give its arguments with {what_is_needed(factory.make)}",
            ) from error
        if meta := [name for name, tensor in model.named_parameters() if tensor.is_meta]:
            raise UsageError(
                f"{factory.target}: {len(meta)} parameters are on the meta device, without values, first {meta[0]}",
                "build the model on the CPU: without torch.device('meta'), init_empty_weights() or device_map",
            )
        return model

    def with_arguments(self, **changes: object) -> ForeignModel:
        """The factory's model under other arguments."""
        factory = replace(self.factory, kwargs={**self.factory.kwargs, **changes})
        return ForeignModel(factory, self._function, self._said_trained)

    @property
    def parameters(self) -> int:
        return self._parameters

    @property
    def large(self) -> bool:
        """Whether it is too large to be built again and again."""
        return self.parameters > LARGEST_BUILT

    def fresh(self, seed: int = 0, **changes: object) -> nn.Module:
        """As the factory leaves it, in evaluation mode; see `Builds.fresh`."""
        return self.builds.fresh(seed, **changes)

    def untouched(self) -> nn.Module:
        return self.builds.untouched()

    @contextmanager
    def woken(self) -> Iterator[nn.Module]:
        if self.builds.fewer is None:
            yield self.shared_awake
            return
        with self.builds.woken(self.builds.fewer) as model:
            yield model

    @property
    def whole(self) -> nn.Module:
        """The network at its real size, only to be looked at."""
        return self.builds.whole or self.shared_awake

    def at_real_size(self) -> tuple[nn.Module, Anatomy]:
        return self.whole, self.anatomy

    @property
    def has_fewer_blocks(self) -> bool:
        """Whether structure is judged on a copy."""
        return self.builds.fewer is not None

    @property
    def structure_note(self) -> str:
        return self.builds.fewer.note if self.builds.fewer else ""

    @cached_property
    def anatomy(self) -> Anatomy:
        inputs, feed = self.inputs(), self.feed
        latent, timed = feed.changed(inputs, feed.latent), self._at_another_time()
        texts, conditions = feed.changed(inputs, *feed.texts), feed.changed(timed, *feed.conditions)
        equal = self.builds.fewer.stands_for if self.builds.fewer else {}
        found = find_anatomy(
            Runs(self.shared_awake, inputs, latent, timed, texts, conditions, feed.batch, self.parameters, equal)
        )
        within = tuple(f"{kept}." for kept in equal.values())
        if equal and any(name.startswith(within) for name in found.blocks):  # what hands on its tokens holds blocks
            self.builds.fewer = None
            del self.shared_awake
            return self.anatomy
        return found

    def inputs(self, seed: int = 0) -> Inputs:
        return self.feed.inputs(seed=seed)

    def _at_another_time(self) -> Inputs:
        inputs = self.inputs()
        return self.feed.changed(inputs, self.feed.time) if self.feed.time else inputs

    def _batch(self, inputs: Inputs) -> int:
        return self.feed.batch

    def of_each_sample(self, inputs: Inputs) -> dict[str, Tensor]:
        feed = self.feed
        names = [feed.latent, *([feed.time] if feed.time else []), *feed.conditions]
        return {name: feed.other(inputs, name) for name in names}

    def _unanswered(self) -> str:
        return "a model alone: guidance is what its sampler does with it"

    def precision(self) -> Precision:
        return Precision("", self._kinds)

    def options(self) -> Options:
        return looked_at_again(self, keyword_effects(self))

    def remembers(self, name: str) -> bool:
        """Whether the model keeps an argument in a configuration of its own, as diffusers' do."""
        return name.partition(".")[0] in _configured(self.shared_awake)

    @cached_property
    def varied(self) -> VariedInputs:
        def patch_and_grid() -> tuple[int, Grid]:
            return self.patch_and_grid

        return VariedInputs(self.feed, self.shared_awake, patch_and_grid)

    def _training_inputs(self, seed: int) -> Inputs:
        return self.varied.of_pass(seed, self.training_passes)

    def _turned(self, inputs: Inputs, name: str) -> list[Inputs]:
        return self.varied.turned(inputs, but=name)

    # Before anything is judged

    @property
    def fault_in_training(self) -> str:
        return self._trained_once[0]

    @property
    def gradients_not_finite(self) -> tuple[str, ...]:
        return self._trained_once[1]

    @cached_property
    def _trained_once(self) -> tuple[str, tuple[str, ...]]:
        """What the model's own code raises in training mode, "" when nothing, and the parameters whose gradients are
        NaN or infinite, at the example's size and at another.
        """
        wild: dict[str, None] = {}

        def take(name: str, gradient: Tensor) -> None:
            wild.update({} if bool(torch.isfinite(gradient).all()) else {name: None})

        whole = self.builds.fewer is not None and not self.builds.fewer.trains  # its own code may raise in any block
        try:
            with (
                self.woken() if whole else nullcontext(self.awake()) as model,
                fixed_chance(),
                gradients_to(take, model.train()),
            ):
                backward(answers(model, self.inputs()))
                if self.varied.other_size and not wild:
                    backward(answers(model, self.feed.inputs(size=self.varied.other_size)))
        except Exception as error:
            if fault := strangers_fault(error):
                return fault, ()
            raise
        return "", tuple(wild)

    def _never_written(self) -> list[str]:
        return list(self.unwritten)

    @cached_property
    def unwritten(self) -> tuple[str, ...]:
        """Tensors of the weights that hold whatever their memory held, other values in each build."""
        return () if self.large else tuple(never_written(self.factory))

    def _as_built(self, inputs: Inputs) -> AsBuilt | None:
        if not self.example.in_float32:
            return None
        return as_built(self.example.called(self.factory.build()), inputs)

    def _compiled(self) -> str:
        return ", ".join(compiled_parts(self.whole))

    # What the rules ask

    def gates(self) -> Gates:
        trained = "--trained says so" if self._said_trained else moved_norms(self.untouched())
        if trained := trained or ("" if self.large else loaded(self.factory)):
            unseen = "whether its blocks began as the identity cannot be seen: audit the factory without its weights"
            raise NotAnswered(f"this model is trained ({trained}), so {unseen}")
        return super().gates()

    def liveness(self) -> Liveness:
        return liveness_of(self)

    def dead_parameters(self, model: nn.Module) -> list[str]:
        """Of a model with fewer blocks the dead ones of the copy, where they are that in the whole model too."""
        dead = super().dead_parameters(model)
        asked = dead and self.builds.fewer is not None
        return dead_in_whole(self, super().dead_parameters, dead, model.training) if asked else dead

    def with_equals(self, parameters: Sequence[str]) -> set[str]:
        """Names of parameters, with those of equal blocks."""
        return self.builds.fewer.with_equals(parameters) if self.builds.fewer else set(parameters)

    def training_pass(self, model: nn.Module, bf16: bool = False) -> TrainingPass:
        made = super().training_pass(model, bf16)
        return replace(made, again=self.builds.fewer.with_inner_runs(made.again)) if self.builds.fewer else made

    def independence(self) -> Independence:
        if self.feed.packed:
            raise NotAnswered(f"samples stand one behind the other in {self.feed.latent}: whose is whose is not known")
        found = super().independence()
        if self.builds.fewer is None:
            return found
        with self.woken() as whole:
            if has_deaf_sample(found) or may_mix(self, whole, found):
                return self._independence(whole.eval(), lambda: whole)
        return found

    def checkpointing(self) -> Checkpointing:
        if fault := self.fault_in_training:
            raise NotAnswered(f"checkpointing acts in training mode, and there the model's own code {fault}")
        try:
            return super().checkpointing()
        except NotAnswered:
            raise
        except Exception as error:  # with it off the same pass ran
            broken = str(error) if isinstance(error, SwitchFails) else strangers_fault(error)
            if not broken:
                raise
            nothing = TrainingPass(Counter(), Counter(), 0, {}, torch.empty(0), Counter())
            said = broken if isinstance(error, SwitchFails) else f"with it on, training {broken}"
            return Checkpointing("", nothing, nothing, (), ("", 0.0), broken=said)

    def _checkpointing_switch(self) -> CheckpointingSwitch[nn.Module]:
        return find_switch(self)

    def positions(self) -> Positions:
        if self.forward_run().chance <= _NO_CHANCE:
            return positions_of(self)
        with hooked(still_chance(self.shared_awake)):
            left, _ = self._repeated(self.shared_awake, self.inputs())
            if left > _NO_CHANCE:
                chance = f"chance moves the answer by {left:.2g} in evaluation mode, and is not torch's own"
                raise NotAnswered(f"{chance}: what it does to tokens is not told from what their places do")
            return positions_of(self)

    @cached_property
    def patch_and_grid(self) -> tuple[int, Grid]:
        return patch_and_grid(self)

    @cached_property
    def channels_first(self) -> bool:
        return has_channels_first(self)

    def under_other_weights(self) -> nn.Module:
        """`awake()` with other weights, its chance stilled; a large one has those of its blocks in common with the
        first.
        """
        model = self._of_other_weights()
        if self.forward_run().chance > _NO_CHANCE:
            still_chance(model)
        return model

    def _of_other_weights(self) -> nn.Module:
        return self.builds.of_other_weights(self.anatomy.blocks) or self.awake(seed=1)


def _how_to_correct(model: nn.Module, error: Exception) -> str:
    kinds = {parameter.dtype for parameter in model.parameters()}
    if "not implemented for" in str(error) and torch.float16 in kinds:
        return "its weights are float16, which a CPU computes in part only: build the model in float32"
    return "correct --example"


def _configured(model: nn.Module) -> dict[str, object]:
    """What a model remembers of its own configuration, as diffusers' do."""
    config = getattr(model, "config", None)
    try:
        return dict(config or {})
    except (TypeError, ValueError):
        return {}
