"""A network to try out, ours or foreign: built as often as a question needs it, run, and watched.

Who knows or finds where blocks and modulation are (`anatomy`) and how the network is called (`inputs`) gets these
answers for nothing: gates, biases, gradient checkpointing, parameters that no gradient reaches.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from dittool.audit.specimens.anatomy import (
    Anatomy,
    alike_blocks,
    blocks_in_words,
    kind_of_block,
    modulation_tables,
)
from dittool.audit.specimens.biases import biases_of
from dittool.audit.specimens.changes import OWN, Shift, largest_change, sample_shifts
from dittool.audit.specimens.gates import is_normed, is_stuck, is_zero, moved_by, moved_without_modulation, wake
from dittool.audit.specimens.gradients import backward, largest_gradient_difference, some_entries
from dittool.audit.specimens.leaves import leaves, other_value
from dittool.audit.specimens.parts import never_run_and_frozen, part_of, sizes_of_parts, weights_not_finite
from dittool.audit.specimens.specimen import (
    AsBuilt,
    Biases,
    Checkpointing,
    ForwardRun,
    Gates,
    Independence,
    NotAnswered,
    Specimen,
    TrainingPass,
)
from dittool.audit.specimens.watching import (
    Call,
    Inputs,
    SavedBytes,
    answers,
    answers_without_gradient,
    counted_runs,
    fixed_chance,
    gradients_to,
    hooked,
    watch,
)

Network = TypeVar("Network", bound=nn.Module)

LARGEST_BUILT = 20_000_000  # parameters; a larger network is not built again and again
_TRIES_AT_START = 3  # inputs under which blocks are watched


@dataclass(frozen=True)
class CheckpointingSwitch(Generic[Network]):
    """What turns gradient checkpointing on and off."""

    name: str  # in words, with a space behind; "" for the key of our configurations
    build: Callable[[bool], Network]  # the network with open gates, switched on or off
    setting: str = ""  # what the configuration says, for the evidence
    broken: str = ""  # what the switch itself does wrong
    offered: bool = True  # by the model itself, not by a part of it alone


class Trial(Specimen, Generic[Network]):
    """Builds the same network as often as a question needs it."""

    training_passes = 1  # in which a gradient may reach a parameter

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Of the network at its real size."""

    @abstractmethod
    def fresh(self, seed: int = 0, **changes: object) -> Network:
        """The network at step 0, in evaluation mode; `changes` are settings of it by name."""

    @property
    @abstractmethod
    def anatomy(self) -> Anatomy:
        """Where its parts are."""

    @abstractmethod
    def inputs(self, seed: int = 0) -> Inputs:
        """One batch."""

    @abstractmethod
    def _checkpointing_switch(self) -> CheckpointingSwitch[Network]:
        """Raises `NotAnswered` when none is found."""

    def awake(self, seed: int = 0, **changes: object) -> Network:
        """The network with everything that begins at zero drawn at random, as if training had opened its gates."""
        model = self.fresh(seed, **changes)
        wake(model, seed)
        return model

    @cached_property
    def shared_awake(self) -> Network:
        """`awake()`, built once for all questions that only run it."""
        return self.awake()

    def untouched(self) -> nn.Module:
        """`fresh()` at its real size; only to be run."""
        return self.fresh()

    @contextmanager
    def woken(self) -> Iterator[nn.Module]:
        """`awake()` at its real size, inside the `with`."""
        yield self.shared_awake

    @property
    def blocks(self) -> tuple[str, ...]:
        """Their names. Raises `NotAnswered` when none were found."""
        if not self.anatomy.blocks:
            raise NotAnswered(f"no blocks were found: {self.anatomy.why_not}")
        return self.anatomy.blocks

    # Gates

    def gates(self) -> Gates:
        """Of the blocks that the latent passes, and of those of a condition's tokens that have a modulation."""
        anatomy, model = self.anatomy, self.untouched()
        blocks = [name for name in self.blocks if name not in anatomy.of_conditions or anatomy.modulation[name]]
        if not blocks:
            raise NotAnswered(f"the blocks found, {anatomy.where}, are of a condition's tokens and have no modulation")
        runs = [self._block_calls(model, self.inputs(seed)) for seed in range(_TRIES_AT_START)]
        timed = self._block_calls(model, self._at_another_time())
        large = self.parameters > LARGEST_BUILT and not self.note
        tried = [alike[0] for alike in alike_blocks(model, blocks)] if large else blocks
        modulation = {name: float(tensor.detach().abs().max()) for name, tensor in self._modulation(model).items()}

        def moved(model: nn.Module, calls: dict[str, Call], name: str) -> float:
            return moved_by(calls[name], part_of(model, name), name in anatomy.branches)

        with self.woken() as awake:
            calls = self._block_calls(awake, self.inputs())
            opened = {name: moved(awake, calls, name) for name in blocks}
        at_start = {name: max(moved(model, run, name) for run in runs) for name in blocks}
        return Gates(
            blocks_in_words(blocks),
            at_start,
            {name: moved_without_modulation(model, anatomy, name, runs[0][name], timed[name]) for name in tried},
            opened,
            modulation,
            ", tried on one block of each kind" if large else "",
            {name: kind_of_block(part_of(model, name)) for name in blocks},
            tuple(name for name in tried if not at_start[name] and is_stuck(part_of(model, name), runs[0][name])),
            frozenset(name for name in blocks if at_start[name] and is_normed(runs[0][name])),
            frozenset(name for name in blocks if not runs[0][name].streams),
        )

    def _at_another_time(self) -> Inputs:
        """The inputs with another timestep; the same where nothing is known of it."""
        return self.inputs()

    def _block_calls(self, model: nn.Module, inputs: Inputs) -> dict[str, Call]:
        """Each block's call while the model runs once."""
        with watch({name: part_of(model, name) for name in self.blocks}, first_only=True) as seen:
            answers_without_gradient(model, inputs)
        return {name: seen[name][0] for name in self.blocks}

    def _modulation(self, model: nn.Module) -> dict[str, Tensor]:
        anatomy = self.anatomy
        layers = [*(layer for block in anatomy.blocks for layer in anatomy.modulation[block]), *anatomy.shared]
        own = {layer: dict(part_of(model, layer).named_parameters()) for layer in layers}
        tables = {block: modulation_tables(part_of(model, block)) for block in anatomy.blocks}
        held = [*own.items(), *tables.items()]
        return {f"{place}.{name}": tensor for place, tensors in held for name, tensor in tensors.items()}

    # Biases

    def at_real_size(self) -> tuple[nn.Module, Anatomy]:
        """The network with the names and shapes of its real size, and its parts; its values do not count."""
        return self.shared_awake, self.anatomy

    def biases(self) -> Biases:
        _ = self.blocks
        return biases_of(*self.at_real_size(), self.parameters)

    # Training

    def checkpointing(self) -> Checkpointing:
        blocks, switch = self.anatomy.of_latent or self.anatomy.blocks, self._checkpointing_switch()
        off, on = (self.training_pass(switch.build(wanted)) for wanted in (False, True))
        if not switch.offered and not any(on.again.values()):
            part = f"parts of the model have {switch.name.strip()}, which nothing was seen to read"
            raise NotAnswered(f"{part}, and the model itself has no switch for gradient checkpointing")
        difference = largest_gradient_difference(off, on)
        kinds = {name: name.rpartition(".")[0] for name in blocks}
        return Checkpointing(switch.name, off, on, blocks, difference, switch.setting, kinds, switch.broken)

    def training_pass(self, model: nn.Module, bf16: bool = False) -> TrainingPass:
        """Forward and backward in training mode, with seeded random draws; under autocast for bf16."""
        model.train(not self.fault_in_training)
        large = sum(parameter.numel() for parameter in model.parameters()) > LARGEST_BUILT
        compared = some_entries if large else torch.Tensor.detach
        # ahead, lest they split the heap
        kept = {name: torch.zeros_like(compared(parameter)) for name, parameter in model.named_parameters()}
        reached: set[str] = set()
        linear: Counter[str] = Counter()  # kinds of numbers

        def take(name: str, gradient: Tensor) -> None:
            kept[name] += compared(gradient)
            reached.add(name)

        def count(_layer: nn.Module, _inputs: tuple[object, ...], output: Tensor) -> None:
            linear[kind_of_number(output.dtype)] += 1

        blocks, saved = self.anatomy.blocks, SavedBytes(model)
        layers = [layer for name in blocks for layer in part_of(model, name).modules()]
        with (
            fixed_chance(),
            counted_runs(model) as runs,
            hooked(layer.register_forward_hook(count) for layer in layers if isinstance(layer, nn.Linear)),
            gradients_to(take, model),
        ):
            with saved, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                given = answers(model, self.inputs())
            forward = runs.copy()
            backward(given)
        gradients = {name: gradient for name, gradient in kept.items() if name in reached}
        values = torch.cat([tensor.detach().flatten() for tensor in given])
        return TrainingPass(forward, runs - forward, saved.bytes, gradients, values, linear)

    def dead_parameters(self, model: nn.Module) -> list[str]:
        """Parameters that no gradient reaches."""
        without = {name for name, tensor in model.named_parameters() if tensor.requires_grad and tensor.numel()}

        def take(name: str, gradient: Tensor) -> None:
            if not is_zero(gradient):
                without.discard(name)

        with fixed_chance(), gradients_to(take, model):
            for seed in range(self.training_passes):
                backward(answers(model, self._training_inputs(seed)))
                if not without:
                    break
        return [name for name, _ in model.named_parameters() if name in without]

    def _training_inputs(self, seed: int) -> Inputs:
        """One batch as training has it, with conditions dropped."""
        return self.inputs(seed)

    @property
    def fault_in_training(self) -> str:
        """What the network's own code raises in training mode: it is then run in evaluation mode; "" when nothing."""
        return ""

    @property
    def gradients_not_finite(self) -> tuple[str, ...]:
        """Parameters whose gradients are NaN or infinite in training mode."""
        return ()

    # Before anything is judged

    def forward_run(self) -> ForwardRun:
        return self._forward_run

    @cached_property
    def _forward_run(self) -> ForwardRun:
        """On the network as it begins, and once more with everything that begins at zero drawn at random."""
        model, inputs = self.untouched(), self.inputs()
        with counted_runs(model) as runs:
            plain = answers_without_gradient(model, inputs)
        with self.woken() as awake:
            woken = answers_without_gradient(awake, inputs)
            plain += woken
            not_finite = sum(int((~torch.isfinite(tensor)).sum()) for tensor in plain)
            chance, unsteady = (0.0, 0.0) if not_finite else self._repeated(awake, inputs, woken)
        real, anatomy = (model, Anatomy((), {}, {}, ())) if not_finite else self.at_real_size()
        copies = never_run_and_frozen(real, runs)
        sizes = sizes_of_parts(real, anatomy.blocks, copies)
        total = sum(sizes.values()) or 1
        return ForwardRun(
            [tuple(tensor.shape) for tensor in plain[: len(plain) // 2]],
            not_finite,
            sum(tensor.numel() for tensor in plain),
            self._never_written(),
            weights_not_finite(model) if not_finite else [],
            None if not_finite else self._as_built(inputs),
            chance,
            unsteady,
            anatomy.where or anatomy.why_not,
            sizes[""] / total,
            [f"{name} {size / total:.0%}" for name, size in sizes.most_common(5) if name and size > 0.005 * total],
            self.fault_in_training,
            self._compiled(),
            copies,
            () if not_finite else self.gradients_not_finite,
        )

    def _never_written(self) -> list[str]:
        """Parameters and buffers that hold whatever their memory held."""
        return []

    def _as_built(self, inputs: Inputs) -> AsBuilt | None:
        """What it does in half precision, where it was built so and is judged in float32."""
        return None

    def _compiled(self) -> str:
        return ""

    @torch.no_grad()
    def _repeated(self, model: nn.Module, inputs: Inputs, plain: list[Tensor] | None = None) -> tuple[float, float]:
        """How much the answer, `plain` where it is known, changes when the same input is given again: with other draws
        of chance, with the same.
        """
        plain = plain or answers_without_gradient(model, inputs)
        same = answers_without_gradient(model, inputs)
        with fixed_chance(seed=1):
            other = answers(model, inputs)
        return largest_change(plain, other), largest_change(plain, same)

    @cached_property
    def unsteadiness(self) -> float:
        """Change of the answer between two runs that are given the same input and the same draws of chance."""
        return self._repeated(self.shared_awake, self.inputs())[1]

    # Samples

    def of_each_sample(self, inputs: Inputs) -> dict[str, Tensor]:
        """The inputs that differ from sample to sample, by name, each with other values."""
        return {
            name: other_value(tensor)
            for name, tensor in leaves(inputs).items()
            if tensor.is_floating_point() and tensor.dim() > 0
        }

    def independence(self) -> Independence:
        """In each batch one sample's input is exchanged at a time, in evaluation mode and in training mode."""
        return self._independence(self.shared_awake, self.awake)

    def _independence(self, awake: nn.Module, in_training: Callable[[], nn.Module]) -> Independence:
        inputs = self.inputs()
        batch = self._batch(inputs)
        if batch < 2:
            raise NotAnswered("the example is a batch of one: give one of two samples or more with --example")
        shifts = {
            name: self._shift(awake, inputs, name, other, batch)
            for name, other in self.of_each_sample(inputs).items()
            if batch in leaves(inputs)[name].shape
        }
        found = Independence(
            {name: shift.others for name, shift in shifts.items()},
            {name: min(shift.own) for name, shift in shifts.items()},
            {name: max(shift.own) for name, shift in shifts.items()},
            batch,
            tolerance=self.unsteadiness,
        )
        if self.fault_in_training:
            return found
        training, others = in_training().train(), self.of_each_sample(inputs)
        mixed = {name: sample_shifts(training, inputs, name, others[name], batch).others for name in shifts}
        return replace(found, in_training=mixed)

    def _shift(self, awake: nn.Module, inputs: Inputs, name: str, other: Tensor, batch: int) -> Shift:
        """Of an input that does not move each sample, also where what may switch it off is turned."""
        shift = sample_shifts(awake, inputs, name, other, batch)
        for turned in self._turned(inputs, name) if min(shift.own) <= OWN else []:
            more = sample_shifts(awake, turned, name, other, batch)
            shift = Shift(max(shift.others, more.others), tuple(map(max, shift.own, more.own)))
        return shift

    def _turned(self, inputs: Inputs, name: str) -> list[Inputs]:
        """The inputs with each but this one that may switch others off at another value."""
        return []

    def _batch(self, inputs: Inputs) -> int:
        return next((len(tensor) for tensor in leaves(inputs).values() if tensor.dim() > 1), 0)

    def zero_at_start(self) -> list[str]:
        return [name for name, parameter in self.fresh().named_parameters() if not parameter.any()]


def kind_of_number(dtype: torch.dtype) -> str:
    """`float32`, `bfloat16`."""
    return str(dtype).removeprefix("torch.")
