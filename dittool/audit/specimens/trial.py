"""A network to try out, ours or foreign: built as often as a question needs it, run, and watched.

Who knows or finds where blocks and modulation are (`anatomy`) and how the network is called (`inputs`) gets these
answers for nothing: gates, biases, gradient checkpointing, parameters that no gradient reaches.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from dittool.audit.specimens.anatomy import Anatomy, alike_blocks, modulation_tables
from dittool.audit.specimens.specimen import (
    Biases,
    Checkpointing,
    Gates,
    NotAnswered,
    Specimen,
    TrainingPass,
    relative_change,
)
from dittool.audit.specimens.watching import (
    Call,
    Inputs,
    SavedBytes,
    answer,
    answer_without_gradient,
    counted_runs,
    gradients_to,
    hooked,
    watch,
)

Network = TypeVar("Network", bound=nn.Module)

LARGEST_BUILT = 20_000_000  # parameters; a larger network is not built again and again
_WAKING_STD = 0.05  # of parameters that begin at zero
_ENTRIES_TRIED = 64
_KEPT_ENTRIES = 100_000  # of a large network's gradients
_TRIES_AT_START = 3  # inputs under which blocks are watched
_LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


@dataclass(frozen=True)
class CheckpointingSwitch(Generic[Network]):
    """What turns gradient checkpointing on and off."""

    name: str  # in words, with a space behind; "" for the key of our configurations
    build: Callable[[bool], Network]  # the network with open gates, switched on or off
    setting: str = ""  # what the configuration says, for the evidence


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

    @property
    def blocks(self) -> tuple[str, ...]:
        """Their names. Raises `NotAnswered` when none were found."""
        if not self.anatomy.blocks:
            raise NotAnswered(f"no blocks were found: {self.anatomy.why_not}")
        return self.anatomy.blocks

    # Gates

    def gates(self) -> Gates:
        blocks, model = self.blocks, self.fresh()
        runs = [self._block_calls(model, self.inputs(seed)) for seed in range(_TRIES_AT_START)]
        large = self.parameters > LARGEST_BUILT and not self.note
        tried = [alike[0] for alike in alike_blocks(model, blocks)] if large else blocks
        opened = self._block_calls(self.shared_awake, self.inputs())
        modulation = {name: float(tensor.detach().abs().max()) for name, tensor in self._modulation(model).items()}
        return Gates(
            self.anatomy.where,
            {name: max(_change(run[name]) for run in runs) for name in blocks},
            {name: self._change_without_modulation(model, name, runs[0][name]) for name in tried},
            {name: _change(call) for name, call in opened.items()},
            modulation,
            ", tried on one block of each kind" if large else "",
        )

    def _block_calls(self, model: nn.Module, inputs: Inputs) -> dict[str, Call]:
        """Each block's call while the model runs once."""
        with watch({name: model.get_submodule(name) for name in self.blocks}) as seen:
            answer_without_gradient(model, inputs)
        return {name: seen[name][0] for name in self.blocks}

    def _modulation(self, model: nn.Module) -> dict[str, Tensor]:
        anatomy = self.anatomy
        layers = [*(layer for block in anatomy.blocks for layer in anatomy.modulation[block]), *anatomy.shared]
        own = {layer: dict(model.get_submodule(layer).named_parameters()) for layer in layers}
        tables = {block: modulation_tables(model.get_submodule(block)) for block in anatomy.blocks}
        held = [*own.items(), *tables.items()]
        return {f"{place}.{name}": tensor for place, tensors in held for name, tensor in tensors.items()}

    @torch.no_grad()
    def _change_without_modulation(self, model: nn.Module, name: str, call: Call) -> float:
        """How far a block moves tokens when its modulation is zero and every other weight is drawn again."""
        block = copy.deepcopy(model.get_submodule(name))
        modulation = {layer.removeprefix(f"{name}.") for layer in self.anatomy.modulation[name]}
        held = set(modulation_tables(block))
        generator = torch.Generator().manual_seed(0)
        for parameter_name, parameter in block.named_parameters():
            layer = parameter_name.rpartition(".")[0]
            a_gate_of_its_own = parameter.dim() == 1 and not parameter.any() and not parameter_name.endswith("bias")
            if layer in modulation or parameter_name in held or a_gate_of_its_own:
                parameter.zero_()
            else:
                parameter.normal_(std=_WAKING_STD, generator=generator)
        shared = (model.get_submodule(name) for name in self.anatomy.shared)
        widths = {layer.out_features for layer in shared if isinstance(layer, nn.Linear)}

        def closed(value: object) -> object:
            """What shared modulation layers gave is replaced by zeros."""
            if widths and isinstance(value, Tensor) and value.is_floating_point() and value[0].numel() in widths:
                return torch.zeros_like(value)
            return value

        return _change(call.again(block, closed))

    # Biases

    def at_real_size(self) -> tuple[nn.Module, Anatomy]:
        """The network with the names and shapes of its real size, and its parts; its values do not count."""
        return self.shared_awake, self.anatomy

    def biases(self) -> Biases:
        _ = self.blocks
        model, anatomy = self.at_real_size()
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if _is_bias(name)}
        wrong, layers = [], 0
        for block in anatomy.blocks:
            for name, module in model.get_submodule(block).named_modules(prefix=block):
                is_norm = not any(module.children()) and not isinstance(module, _LAYERS)  # or one of its relatives
                if name in anatomy.inner[block] or is_norm:
                    continue
                layers += isinstance(module, _LAYERS)
                own = (parameter for parameter, _ in module.named_parameters(recurse=False))
                wrong += [f"{name}.{parameter}" for parameter in own if _is_bias(parameter)]
        elsewhere = {name: size for name, size in sizes.items() if name not in wrong}
        return Biases({name: sizes[name] for name in wrong}, layers, elsewhere, self.parameters)

    # Training

    def checkpointing(self) -> Checkpointing:
        blocks, switch = self.blocks, self._checkpointing_switch()
        off, on = (self.training_pass(switch.build(wanted)) for wanted in (False, True))
        return Checkpointing(switch.name, off, on, blocks, largest_gradient_difference(off, on), switch.setting)

    def training_pass(self, model: nn.Module, bf16: bool = False) -> TrainingPass:
        """Forward and backward in training mode, with seeded random draws; under autocast for bf16."""
        model.train()
        large = sum(parameter.numel() for parameter in model.parameters()) > LARGEST_BUILT
        compared = _some if large else torch.Tensor.detach
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
        layers = [layer for name in blocks for layer in model.get_submodule(name).modules()]
        with (
            torch.random.fork_rng(devices=[]),
            counted_runs(model, blocks) as runs,
            hooked(layer.register_forward_hook(count) for layer in layers if isinstance(layer, nn.Linear)),
            gradients_to(take, model),
        ):
            torch.manual_seed(0)
            with saved, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                given = answer(model, self.inputs())
            forward = runs.copy()
            given.float().square().sum().backward()
        gradients = {name: gradient for name, gradient in kept.items() if name in reached}
        return TrainingPass(forward, runs - forward, saved.bytes, gradients, given.detach(), linear)

    def dead_parameters(self, model: nn.Module) -> list[str]:
        """Parameters that no gradient reaches."""
        without = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

        def take(name: str, gradient: Tensor) -> None:
            if not is_zero(gradient):
                without.discard(name)

        with torch.random.fork_rng(devices=[]), gradients_to(take, model):
            torch.manual_seed(0)
            for seed in range(self.training_passes):
                answer(model, self._training_inputs(seed)).float().square().sum().backward()
                if not without:
                    break
        return [name for name, _ in model.named_parameters() if name in without]

    def _training_inputs(self, seed: int) -> Inputs:
        """One batch as training has it, with conditions dropped."""
        return self.inputs(seed)

    def zero_at_start(self) -> list[str]:
        return [name for name, parameter in self.fresh().named_parameters() if not parameter.any()]


def changes(model: nn.Module, inputs: Inputs, others: Mapping[str, Inputs]) -> dict[str, float]:
    """Relative change of the answer under each of other inputs, of which only what differs is given."""
    plain = answer_without_gradient(model, inputs).float()
    return {
        name: relative_change(plain, answer_without_gradient(model, {**inputs, **other}).float())
        for name, other in others.items()
    }


def wake(model: nn.Module, seed: int) -> None:
    """Draws every parameter that is zero throughout from N(0, 0.05²)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if is_zero(parameter):
                parameter.normal_(std=_WAKING_STD, generator=generator)


def is_zero(tensor: Tensor) -> bool:
    """Whether a tensor is zero throughout; of one that is not, most often a few entries are read."""
    return not tensor.flatten()[:_ENTRIES_TRIED].any() and not tensor.any()


def largest_gradient_difference(a: TrainingPass, b: TrainingPass) -> tuple[str, float]:
    """The parameter whose gradients differ most between two passes, and by how much of the largest gradient."""
    if missing := a.gradients.keys() ^ b.gradients.keys():
        return min(missing), float("inf")
    largest = max(float(gradient.abs().max()) for gradient in a.gradients.values())
    differences = {name: float((a.gradients[name] - b.gradients[name]).abs().max()) for name in a.gradients}
    name = max(differences, key=differences.__getitem__)
    return name, differences[name] / max(largest, 1e-30)


def kind_of_number(dtype: torch.dtype) -> str:
    """`float32`, `bfloat16`."""
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def _some(gradient: Tensor) -> Tensor:
    """A gradient, or of a large one its mean and some 100,000 entries from all its rows and columns."""
    if gradient.numel() <= _KEPT_ENTRIES:
        return gradient
    step = gradient.numel() // _KEPT_ENTRIES | 1  # odd, so that widths of an even number do not hide columns
    return torch.cat([gradient.flatten()[::step], gradient.mean()[None]])


def _change(call: Call) -> float:
    """max |block(x) − x| over the streams of tokens; a NaN counts as a change."""
    return max(float((after - before).abs().max().nan_to_num(torch.inf, torch.inf)) for before, after in call.streams)


def _is_bias(name: str) -> bool:
    """By torch's own names: bias, in_proj_bias, bias_k; and q_bias, as many write it."""
    leaf = name.rpartition(".")[2]
    return leaf == "bias" or leaf.endswith("_bias") or leaf.startswith("bias_")
