"""A foreign model to try out: built as often as a rule needs it, with its example inputs and its anatomy.

Drawing the weights of a large model takes many seconds and gigabytes, so that one is built once, and rules get copies
that share its weights.
"""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Set
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from dittool.audit.specimens.anatomy import Anatomy, Runs, find_anatomy
from dittool.audit.specimens.foreign.blame import strangers_fault
from dittool.audit.specimens.foreign.example import Example
from dittool.audit.specimens.foreign.factory import Factory
from dittool.audit.specimens.foreign.feeding import Feed
from dittool.audit.specimens.foreign.keywords import keyword_effects
from dittool.audit.specimens.foreign.second_look import looked_at_again
from dittool.audit.specimens.leaves import leaves, with_leaves
from dittool.audit.specimens.positions import OnGrids
from dittool.audit.specimens.specimen import (
    Checkpointing,
    Gates,
    Grid,
    Liveness,
    NotAnswered,
    Options,
    Positions,
    Precision,
    Scope,
    TrainingPass,
    relative_change,
)
from dittool.audit.specimens.trial import (
    LARGEST_BUILT,
    CheckpointingSwitch,
    Trial,
    backward,
    changes,
    is_zero,
    kind_of_number,
    wake,
)
from dittool.audit.specimens.watching import (
    Inputs,
    answers,
    answers_without_gradient,
    ending_with,
    fixed_chance,
    gradients_to,
    is_vector,
    uncompiled,
    watch,
)
from dittool.errors import DitError, UsageError

_METHODS = {  # that switch gradient checkpointing on and off, of diffusers, transformers and timm
    "enable_gradient_checkpointing": "disable_gradient_checkpointing",
    "gradient_checkpointing_enable": "gradient_checkpointing_disable",
    "set_grad_checkpointing": None,
}
_SWITCH = re.compile(r"^(?!.*(?:load|path|resume|init|save|pretrained)).*(?:checkpoint|remat|recompute|ckpt)")
_SHAPES_WANTED = 3
MASKS_LEAK = 1e-5  # relative change of the answer by what a mask hides


class _SwitchFails(Exception):
    """The model's own switch raises."""


_GRIDS_OF_LARGE = 1  # more, on which positions of a large model are measured


class ForeignModel(Trial[nn.Module]):
    """A factory, how to call what it makes, and where its parts are. Everything is seeded: two builds have the same
    weights.
    """

    scopes: ClassVar[frozenset[Scope]] = frozenset({"model"})
    training_passes = 8  # chance may drop conditions in some

    def __init__(self, factory: Factory, example: Callable[..., object] | None = None, trained: bool = False) -> None:
        """`trained`: whether the user says that the factory's model has trained weights."""
        self.factory, self._function, self._said_trained = factory, example, trained
        with uncompiled():
            model = self._first_built()
            self.example = Example(model, factory.settings | _configured(model), example)
            try:
                answers_without_gradient(model, self.example.inputs())
            except Exception as error:
                raise UsageError(
                    f"{factory.target}: forward raises {type(error).__name__} on the example: {error}",
                    _how_to_correct(model, error),
                ) from error
        self.feed = Feed(model, self.example)
        self._parameters = sum(parameter.numel() for parameter in model.parameters())
        self._only = model if self.large else None

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
                """give its arguments with --kwargs '{"depth": 4}'""",
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
        inputs, feed = self.inputs(), self.feed
        latent, timed = feed.changed(inputs, feed.latent), self._at_another_time()
        return find_anatomy(
            Runs(self.shared_awake, inputs, latent, timed, feed.changed(timed, *feed.conditions), feed.batch)
        )

    def inputs(self, seed: int = 0) -> Inputs:
        return self.feed.inputs(seed=seed)

    def _at_another_time(self) -> Inputs:
        inputs = self.inputs()
        return self.feed.changed(inputs, self.feed.time) if self.feed.time else inputs

    def _batch(self, inputs: Inputs) -> int:
        return self.feed.batch

    def _of_each_sample(self, inputs: Inputs) -> dict[str, Tensor]:
        feed = self.feed
        names = [feed.latent, *([feed.time] if feed.time else []), *feed.conditions]
        return {name: feed.other(inputs, name) for name in names}

    def _unanswered(self) -> str:
        return "a model alone: guidance is what its sampler does with it"

    def precision(self) -> Precision:
        return Precision("", Counter(kind_of_number(parameter.dtype) for parameter in self.fresh().parameters()))

    def options(self) -> Options:
        return looked_at_again(self, keyword_effects(self))

    @property
    def runs_in_evaluation_only(self) -> bool:
        return bool(self._fault_in_training)

    @property
    def other_size_inputs(self) -> Inputs | None:
        """Inputs of another size than the example's, at which it runs."""
        return self.feed.inputs(size=self._other_size) if self._other_size else None

    def remembers(self, name: str) -> bool:
        """Whether the model keeps an argument in a configuration of its own, as diffusers' do."""
        return name in _configured(self.shared_awake)

    def _training_inputs(self, seed: int) -> Inputs:
        """After some passes of the example's size also of another, which may reach what the first does not."""
        if seed < self.training_passes // 2 or not self._other_size:
            return self.inputs(seed)
        return self.feed.inputs(seed=seed, size=self._other_size)

    @cached_property
    def _other_size(self) -> tuple[int, int] | None:
        """(H, W) in latent cells at which it runs, odd in tokens; None when there is none."""
        try:
            patch, (rows, columns) = self._patch_and_grid()
            size = ((rows + 1) * patch, (columns // 2 + 1) * patch)
            answers_without_gradient(self.shared_awake, self.feed.inputs(size=size))
        except Exception:  # its tokens were not found, or it refuses the size
            return None
        return size if self.feed.sizes_can_change else None

    # Conditions

    def liveness(self) -> Liveness:
        """Each input is exchanged in turn; what dropping a condition means to the model cannot be known."""
        feed, model, inputs = self.feed, self.shared_awake, self.inputs()
        names = [feed.latent, *([feed.time] if feed.time else []), *feed.conditions]
        exchanged = {name: feed.changed(inputs, name) for name in names}
        leaks: dict[str, float] = {}
        for leak, (mask, plain, other) in feed.masked(inputs).items():
            shown = self._leak(mask, plain, other)
            if shown > MASKS_LEAK and not feed.is_called_mask(mask):
                exchanged[mask] = feed.changed(inputs, mask)  # zeros and ones of another meaning
            else:
                leaks[leak], exchanged[mask] = shown, plain
        turns = self._turns(inputs, feed.time) if feed.time else {}
        unit = bool(turns) and feed.time_is_known and float(leaves(inputs)[feed.time].max()) <= 1
        training = self.awake().train(not self._fault_in_training)
        return Liveness(
            changes(model, inputs, exchanged),
            self.dead_parameters(training),
            "with open gates" + (", in evaluation mode" if self._fault_in_training else ""),
            leaks,
            f"nothing shows under {len(leaks)} masks" if leaks else "",
            feed.time,
            turns,
            unit,
            feed.time_is_known,
            feed.not_fed,
            self.unsteadiness,
            self._truncated(inputs),
        )

    def _leak(self, mask: str, plain: Inputs, other: Inputs) -> float:
        """How much shows of what a mask hides where it is zero, or where it is one: the less, for both are usual."""
        model, feed = self.shared_awake, self.feed
        shown = changes(model, plain, {"as it is": other})["as it is"]
        if shown <= MASKS_LEAK:
            return shown
        try:
            inverted = feed.inverted(plain, mask), feed.inverted(other, mask)
            return min(shown, changes(model, inverted[0], {"inverted": inverted[1]})["inverted"])
        except Exception:  # it takes masks of one kind only
            return shown

    def _truncated(self, inputs: Inputs) -> bool | None:
        """Whether times of one whole number give one answer, and times of others do not; None when time is not of
        floating point.
        """
        time = self.feed.time
        value = leaves(inputs)[time] if time else torch.zeros((), dtype=torch.long)
        if not value.is_floating_point():
            return None
        steps = {step: with_leaves(inputs, {time: value.floor() + step}) for step in (0.2, 0.8, 5.2)}
        try:
            moved = changes(self.shared_awake, steps[0.2], {"within": steps[0.8], "beyond": steps[5.2]})
        except Exception:  # such times are refused
            return False
        return moved["within"] <= self.unsteadiness and moved["beyond"] > self.unsteadiness

    def _turns(self, inputs: Inputs, time: str) -> dict[float, float]:
        """How far t's embedding moves over a fifth of [0, 1] and of [0, 1000]; empty when no layer before the second
        block is fed by t alone.
        """
        feed, model, value = self.feed, self.shared_awake, leaves(inputs)[time]
        if not value.is_floating_point() or value.dim() == 0:
            return {}
        linear: dict[str, nn.Module] = {
            name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
        }

        def seen(given: Inputs) -> dict[str, Tensor]:
            first = [model.get_submodule(name) for name in self.anatomy.of_latent[:1]]
            with watch(linear) as calls, ending_with(first[0]) if first else nullcontext():
                answers_without_gradient(model, given)
            return {name: calls[name][0].outputs[0] for name in calls}

        plain, moved, *rest = (
            seen(feed.changed(inputs, name) if name else inputs) for name in ("", time, feed.latent, *feed.conditions)
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
            points = (
                with_leaves(inputs, {time: torch.full_like(value, float(t))}) for t in torch.linspace(0, span, 11)
            )
            embedding = torch.cat([seen(given)[alone[-1]][:1] for given in points])
            turns[span] = relative_change(embedding[:-2], embedding[2:])
        return turns

    # Before anything is judged

    @cached_property
    def _fault_in_training(self) -> str:
        model = self.awake().train()
        try:
            with fixed_chance(), gradients_to(lambda _name, _gradient: None, model):
                backward(answers(model, self.inputs()))
        except Exception as error:
            if fault := strangers_fault(error):
                return fault
            raise
        return ""

    def _never_written(self) -> list[str]:
        """Found by filling memory that is taken with NaN."""
        if self.large:
            return []
        was, warned = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            model = self.factory.build()
        finally:
            torch.use_deterministic_algorithms(was, warn_only=warned)
        held = [*model.named_parameters(), *model.named_buffers()]
        return [name for name, tensor in held if tensor.is_floating_point() and bool(tensor.isnan().any())]

    def _half_is_to_blame(self, inputs: Inputs) -> str:
        model = self.fresh()
        kinds = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
        if not kinds & {torch.float16, torch.bfloat16}:
            return ""
        whole = {name: leaf.float() for name, leaf in leaves(inputs).items() if leaf.is_floating_point()}
        given = answers_without_gradient(self.factory.build().float(), with_leaves(inputs, whole))
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in given)
        return ", ".join(sorted(map(kind_of_number, kinds))) if finite else ""

    def _compiled(self) -> str:
        """Modules and functions of the model's own files that torch.compile wraps."""
        model = self.shared_awake
        wrapped = [name or "the model" for name, module in model.named_modules() if hasattr(module, "_orig_mod")]
        for kind in {type(module) for module in model.modules()}:
            wrapped += [
                f"{kind.__name__}.{name}"
                for name, value in vars(kind).items()
                if hasattr(value, "_torchdynamo_orig_callable") and not kind.__module__.startswith("torch.")
            ]
        return ", ".join(dict.fromkeys(wrapped))

    # Gates

    def gates(self) -> Gates:
        if trained := self._trained():
            unseen = "whether its blocks began as the identity cannot be seen: audit the factory without its weights"
            raise NotAnswered(f"this model is trained ({trained}), so {unseen}")
        return super().gates()

    def _trained(self) -> str:
        """Why the weights are not those of a beginning; "" when they may be."""
        if self._said_trained:
            return "--trained says so"
        norms = [
            weight
            for module in self.fresh().modules()
            if "norm" in type(module).__name__.lower()
            for name, weight in module.named_parameters(recurse=False)
            if name == "weight" and weight.numel() > 1
        ]
        moved = sum(not is_constant(weight) for weight in norms)
        if moved > len(norms) / 2:
            return f"the weights of {moved} of {len(norms)} norms differ within a norm"
        return "" if self.large else self._loaded()

    def _loaded(self) -> str:
        """Whether two builds from different draws of chance have the same weights, and drew on."""
        ends, built = [], []
        for seed in (0, 1):
            with fixed_chance(seed):
                built.append(self.factory.make(**self.factory.kwargs))
                ends.append(torch.get_rng_state())
        weights = [dict(model.named_parameters()) for model in built if isinstance(model, nn.Module)]
        drawn = [name for name, weight in weights[0].items() if weight.dim() >= 2 and not is_constant(weight)]
        same = [name for name in drawn if torch.equal(weights[0][name], weights[1][name])]
        if torch.equal(*ends) or len(same) < max(len(drawn), 1):
            return ""
        return f"all {len(same)} drawn matrices are the same whatever the seed, so they were loaded"

    # Gradient checkpointing

    def checkpointing(self) -> Checkpointing:
        if self._fault_in_training:
            raise NotAnswered(
                f"checkpointing acts in training mode, and there the model's own code {self._fault_in_training}"
            )
        _ = self.blocks
        try:
            return super().checkpointing()
        except _SwitchFails as fails:
            nothing = TrainingPass(Counter(), Counter(), 0, {}, torch.empty(0), Counter())
            return Checkpointing("", nothing, nothing, (), ("", 0.0), broken=str(fails))

    def _checkpointing_switch(self) -> CheckpointingSwitch[nn.Module]:
        model = self.shared_awake
        for name in _switches(self.factory.settings):
            return CheckpointingSwitch(f"{name} ", partial(self._built_with, name))
        for on, off in _METHODS.items():
            if callable(getattr(model, on, None)):
                missing = off is not None and not callable(getattr(model, off, None))
                once = f"{on}() cannot be undone: there is no {off}()" if missing else ""
                return CheckpointingSwitch(f"{on}() ", partial(self._called, on, off), broken=once)
        for module in model.modules():
            for name in _switches(vars(module)):
                return CheckpointingSwitch(f"{name} ", partial(self._set, name), offered=module is model)
        where = "no keyword argument, attribute or method of it has 'checkpoint' in its name"
        raise NotAnswered(f"no switch was found: {where}")

    def _built_with(self, name: str, wanted: bool) -> nn.Module:
        """Switched by an argument of the factory."""
        return self.awake(0, **{name: wanted})

    def _called(self, on: str, off: str | None, wanted: bool) -> nn.Module:
        """Switched by a method, or by one method with a value; off after it was on."""
        model = self.awake()
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
            if isinstance(error, (ValueError, NotImplementedError)) and "support" in str(error):
                raise NotAnswered(f"the model has no gradient checkpointing: {on}() {fault}") from error
            raise _SwitchFails(f"{on}() {fault}") from error
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
        anatomy, feed = self.anatomy, self.feed
        if not anatomy.of_latent:
            why = anatomy.why_not or "the latent reaches none of the blocks"
            raise NotAnswered(f"the latent's tokens were not found: {why}")
        patch, grid = self._patch_and_grid()
        grids = OnGrids(
            self.shared_awake,
            anatomy,
            feed.latent,
            patch,
            lambda grid: (
                feed.inputs(size=(grid[0] * patch, grid[1] * patch)) if feed.sizes_can_change else feed.inputs()
            ),
            feed.without_content,
        )
        found = Positions(grids.stored_positions(grid), chance=self._repeated(self.shared_awake, self.inputs())[0])
        if not feed.sizes_can_change:
            if found.stored:
                return found
            why = "--example does not take a height and width, so other shapes cannot be tried"
            raise NotAnswered(f"the latent comes as tokens, and {why}")
        ran, problems = grids.grids_that_run(self._usual_grids(grid))
        oblong = [grid for grid in ran if grid[0] != grid[1]]
        if len(ran) >= _SHAPES_WANTED and oblong:
            # a window or a stage may ask for multiples of something; of the example's own grid they are that
            problems = [each for each in problems if each.grid[0] % grid[0] == 0 == each.grid[1] % grid[1]]
        weights = None if found.stored or problems else self._under_other_weights
        first = min(oblong or ran, key=math.prod)
        others = sorted(set(ran) - {first}, key=math.prod)[: _GRIDS_OF_LARGE if self.large else None]
        measured = [grids.measured(first, weights), *(grids.measured(grid, None) for grid in others)]
        return replace(found, ran=ran, problems=problems, grids=measured)

    def _patch_and_grid(self) -> tuple[int, Grid]:
        """Latent cells along one side of a token, and the example's rows and columns of tokens."""
        feed, inputs = self.feed, self.inputs()
        probe = OnGrids(self.shared_awake, self.anatomy, feed.latent, 1, lambda _grid: inputs, feed.without_content)
        tokens, size = probe.tokens_of_latent(inputs), feed.size
        if not tokens:
            raise NotAnswered("the latent's tokens were not found among what the first block takes")
        if size is None:
            side = math.isqrt(tokens)
            if not feed.sizes_can_change:
                return 1, (side, side) if side * side == tokens else (1, tokens)
            size = (2 * side, 2 * side)
            tokens = probe.tokens_of_latent(feed.inputs(size=size))
        patch = math.isqrt(math.prod(size) // tokens)
        if patch**2 * tokens != math.prod(size):
            raise NotAnswered(f"{tokens} tokens for a latent of {size}: no patch size gives that number")
        return patch, (size[0] // patch, size[1] // patch)

    def _usual_grids(self, grid: Grid) -> list[Grid]:
        """The example's own, small ones, with half and twice as many rows or columns, and odd ones, wide and tall."""
        rows, columns = grid
        halves = [(rows, max(columns // 2, 1)), (max(rows // 2, 1), columns)]
        more = [] if self.large else [(3, 2), (5, 9), (9, 5), (rows * 2, columns), (rows + 1, columns * 2 + 1)]
        return list(dict.fromkeys([grid, (2, 3), *halves, (rows, columns * 2), *more]))

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


def _how_to_correct(model: nn.Module, error: Exception) -> str:
    kinds = {parameter.dtype for parameter in model.parameters()}
    if "not implemented for" in str(error) and torch.float16 in kinds:
        return "its weights are float16, which a CPU computes in part only: build the model in float32"
    return "correct --example"


def _switches(settings: Mapping[str, object]) -> list[str]:
    return [name for name, value in settings.items() if isinstance(value, bool) and _SWITCH.search(name)]


def is_constant(tensor: Tensor) -> bool:
    return not bool((tensor != tensor.flatten()[0]).any())


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
