"""The memory of a training step, counted without doing it: on tensors that have shapes, types and storages but no
values, so that any model and batch is counted in seconds on any machine.

    step = weights + gradients + averages + moments        whatever the batch
         + what autograd keeps for the backward pass       by hooks on saved tensors, each storage once
         + one block's share of it again                   where blocks are computed again in backward
         + the batch itself

Temporary tensors, the allocator's gaps and the device's context come on top; they were not measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dittool.config.architectures import AnyConfig
from dittool.config.load import changed
from dittool.devices import with_tensors
from dittool.families.family import MicroBatch, TrainingData, family_of
from dittool.models.conditioning import Kept
from dittool.models.positions import cached_positions
from dittool.models.recompute import ATTENTION, Recompute
from dittool.models.rotary import cached_angles
from dittool.objective.schedule import update_rule

_FLOAT = 4  # bytes
CARDS = (24, 48, 80, 141)  # 10⁹ bytes
_USABLE = 0.92  # of a card: the rest is context, workspaces and gaps


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a step, in one process that holds all of the model."""

    fixed: int  # weights, gradients, averages, moments; queues of real samples
    unscaled: int  # of the rest, what does not depend on the number of samples: weights in half precision
    per_sample: int

    def of(self, samples: int) -> int:
        return self.fixed + self.unscaled + samples * self.per_sample

    def fitting(self, card: int) -> int:
        """Samples of a micro-batch on a card of so many 10⁹ bytes; 0: not even one."""
        return max(0, int((card * 1e9 * _USABLE - self.of(0)) // self.per_sample))


def step_memory(config: AnyConfig, data: TrainingData, example: MicroBatch) -> StepMemory:
    """By two counts, at one and at two times the example's samples: what depends on their number is linear in it."""
    once, twice = (counted_bytes(config, data, example, times) for times in (1, 2))
    each = (twice - once) // len(example)
    return StepMemory(fixed_bytes(config, data), once - each * len(example), each)


def counted_bytes(config: AnyConfig, data: TrainingData, example: MicroBatch, times: int = 1) -> int:
    """Of a micro-batch, the example so many times over: itself, what autograd keeps of it at the end of the forward
    pass, and of one block what it keeps while it is computed again.
    """
    kept = _kept_bytes(config, data, example, times)
    if not _recompute_of(config):
        return kept
    plain = _kept_bytes(changed(config, {"model.gradient_checkpointing": False}, "to count"), data, example, times)
    return kept + (plain - kept) // config.model.depth


def fixed_bytes(config: AnyConfig, data: TrainingData) -> int:
    """Of weights, gradients, averages and the optimizer's moments, in fp32, and of data that lie on the device."""
    with FakeTensorMode():
        parameters = dict(family_of(config).build(config, data.provenance.widths).named_parameters())
    of_rule = {"muon": 1, "decayed": 2, "plain": 2}  # moments
    moments = sum(
        of_rule[update_rule(name, one.dim(), config.train.optimizer)] * one.numel() for name, one in parameters.items()
    )
    averages = 1 + len(config.ema.averages)
    in_floats = moments + (2 + averages) * sum(one.numel() for one in parameters.values())
    return _FLOAT * in_floats + family_of(config).device_bytes(data)


def _kept_bytes(config: AnyConfig, data: TrainingData, example: MicroBatch, times: int) -> int:
    family, bf16 = family_of(config), config.train.precision == "bf16"
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, _caches_of_its_own():
        model = family.build(config, data.provenance.widths).train()
        batch = with_tensors(example, lambda tensor: _repeated(mode.from_tensor(tensor), times))

        def forward(*inputs: Any) -> Any:
            # which conditions are dropped is a matter of values: here all are kept
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                return model(*(None if isinstance(one, Kept) else one for one in inputs))

        count = _KeptBytes(model, _recompute_of(config) == "selective")
        with torch.autograd.graph.saved_tensors_hooks(count.keep, lambda tensor: tensor), count:
            loss = family.loss(data, forward, batch)
            with_tensors(batch, count.keep)
        assert loss.mean.requires_grad  # the graph has lived until here
    return count.bytes


@contextmanager
def _caches_of_its_own() -> Iterator[None]:
    """Tensors without values must not stay behind where values are expected."""
    caches = (cached_positions, cached_angles)
    for cache in caches:
        cache.cache_clear()
    try:
        yield
    finally:
        for cache in caches:
            cache.cache_clear()


class _KeptBytes(TorchDispatchMode):
    """Counts storages, each once and those of the model's parameters not at all: those that it is given, and what
    selective recomputation keeps of attention without autograd's hooks.
    """

    def __init__(self, model: nn.Module, attention: bool) -> None:
        super().__init__()
        self._counted = {_storage(parameter) for parameter in model.parameters()}
        self._alive: list[Tensor] = []  # the number of a storage that is gone may be given again
        self._attention = attention
        self.bytes = 0

    def keep(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._counted:
            self._counted.add(_storage(tensor))
            self._alive.append(tensor)
            self.bytes += tensor.untyped_storage().nbytes()
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._attention and func in ATTENTION:
            with_tensors(list(out), self.keep)
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _repeated(tensor: Tensor, times: int) -> Tensor:
    return tensor if tensor.dim() == 0 else tensor.repeat(times, *(1 for _ in tensor.shape[1:]))


def _recompute_of(config: AnyConfig) -> Recompute:
    """Toys have no such key."""
    return getattr(config.model, "gradient_checkpointing", False)
