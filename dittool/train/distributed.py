"""Several processes on one run, as torchrun starts them: each computes its share of every batch, gradients are
averaged.

Nothing here launches anything. `torchrun --nproc-per-node N -m dittool train …` sets the environment that is read
below; nodes are added with torchrun's own options. The order of samples does not depend on the number of processes.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dittool.ckpt.load import named_tensors
from dittool.devices import device_of_choice, device_of_rank
from dittool.errors import Interrupted

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

_DONE, _FAILED = "done", "failed"  # what the first process says of its work alone
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0  # seconds between two questions to it

# for the others' share of a step; what the first one does alone may take longer
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Ranks:
    """This process among all. The first one writes; the others only compute."""

    rank: int
    count: int
    device: torch.device
    # each process holds a part of weights, average and moments (FSDP2), instead of all of them (DDP)
    sharded: bool = False
    store: dist.Store | None = None  # where the processes leave each other word; None: there is one
    # over which tensors of the host travel, without a wait for the device; None: over the same as those of the device
    host: dist.ProcessGroup | None = None
    _turns: Iterator[int] = field(default_factory=itertools.count, repr=False)  # of the first process alone

    @property
    def first(self) -> bool:
        return self.rank == 0

    def shard(self, model: nn.Module, precision: str) -> None:
        """Splits a model's parameters over the processes, block by block, so that only one block is whole at a time.

        For "bf16" they travel in bf16, as autocast would round them anyway, and gradients are added up in fp32; what
        each process holds, and the tokens between blocks, stay fp32.
        """
        if self.sharded:
            from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # a second that one process spares

            half = torch.bfloat16 if precision == "bf16" else None
            policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
            for block in model.get_submodule("blocks").children():
                fully_shard(block, mp_policy=policy)
            fully_shard(model, mp_policy=policy)

    def replica(self, model: nn.Module) -> nn.Module:
        """The model whose backward averages gradients over all processes; the model itself when there is one."""
        if self.count == 1 or self.sharded:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        # a gradient is a part of the buffer that travels: no second copy of all of them
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    @contextmanager
    def local_gradients(self, replica: nn.Module, wanted: bool) -> Iterator[None]:
        """Inside, backward only adds up: for all micro-batches of a step but the last."""
        if self.sharded:
            cast("FSDPModule", replica).set_requires_gradient_sync(not wanted)
        with replica.no_sync() if wanted and isinstance(replica, DistributedDataParallel) else nullcontext():
            yield

    @contextmanager
    def first_alone(self) -> Iterator[bool]:
        """Inside, the first process (True) works for as long as it takes; the others (False) wait at the end for it.

        They ask the store, not in a collective: those of NCCL time out after ten minutes, and a judgement or a
        checkpoint on a slow disk takes longer. All processes must come here together. Raises `Interrupted` in the
        others when the first one's work has ended in an error.
        """
        if self.store is None:
            yield self.first
            return
        key = f"turn/{next(self._turns)}"
        try:
            yield self.first
        except BaseException:
            if self.first:
                _leave_word(self.store, key, _FAILED)
            raise
        if self.first:
            _leave_word(self.store, key, _DONE)
        elif _word_of_first(self.store, key) == _FAILED:
            raise Interrupted("the first process failed; its message says why", "", signal.SIGTERM)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of each process's value, on all of them."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value, group=self._group_of(value))
            value /= self.count
        return value

    def gather(self, values: Tensor) -> Tensor:
        """(n, …) of each process → (processes · n, …) on all of them."""
        if self.count == 1:
            return values
        gathered = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(gathered, values.contiguous(), group=self._group_of(values))
        return torch.cat(gathered)

    def gather_names(self, names: list[str]) -> list[str]:
        """The names of all processes one after the other, on all of them."""
        if self.count == 1:
            return names
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, names, group=self.host)
        return [name for part in gathered for name in part]

    def take_from_first(self, module: nn.Module) -> None:
        """The first process's parameters and buffers in all of them. The module is whole in each."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process; all get the same answer, without a wait for the device."""
        if self.count == 1:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.host)
        return bool(votes)

    def leave_word(self, key: str, word: str) -> None:
        """For the other processes, from any thread. Only where there are several."""
        assert self.store is not None
        _leave_word(self.store, key, word)

    def word(self, key: str) -> str | None:
        """What another process has left, None where it has not yet. Raises DistError when the store is gone."""
        assert self.store is not None
        return self.store.get(key).decode() if self.store.check([key]) else None

    def _group_of(self, tensor: Tensor) -> dist.ProcessGroup | None:
        return self.host if tensor.device.type == "cpu" else None


def _leave_word(store: dist.Store, key: str, word: str) -> None:
    with suppress(dist.DistError):  # torchrun holds the store, and may be gone
        store.set(key, word)


def _word_of_first(store: dist.Store, key: str) -> str:
    pause = _SHORTEST_PAUSE
    try:
        while not store.check([key]):
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        return store.get(key).decode()
    except dist.DistError:
        return _DONE  # the next collective, which has a time-out, shows whether it is


def gathered(value: Any) -> Any:
    """A tensor, or dicts and lists of them, with every split tensor in one piece. All processes must ask together."""
    if _is_split(value):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: gathered(item) for key, item in value.items()}
    return [gathered(item) for item in value] if isinstance(value, list) else value


def own_tensors(state: Any, first: bool) -> dict[str, Tensor]:
    """What this process holds of the tensors in a state, by their dotted names: its rows of those that are split, and
    in the first process all of the others.
    """
    own: dict[str, Tensor] = {}
    for name, tensor in named_tensors(state):
        if _is_split(tensor):
            rows = tensor.to_local()
            if rows.numel():
                own[name] = rows
        elif first:
            own[name] = tensor
    return own


def parts_like(saved: Mapping[Any, Any], present: Mapping[Any, Any]) -> dict[Any, Any]:
    """Whole tensors by name, each split as the tensor of that name in `present` is. Each process has them all, or reads
    them one after the other.
    """

    def part(tensor: Tensor, like: Any) -> Tensor:
        if not _is_split(like) or tensor.shape != like.shape:
            return tensor
        return own_part(tensor.to(like.device), like).clone()  # a part would keep all of its tensor

    return {name: part(tensor, present[name]) for name, tensor in saved.items()}


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that each has in one piece, split as `like` is."""
    if not _is_split(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def _is_split(value: object) -> TypeGuard[DTensor]:
    """Whether this process holds a part of a tensor alone. Where its class was never imported there is none."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(value, loaded.DTensor)


@contextmanager
def process_group(parallel: str) -> Iterator[Ranks]:
    """The processes that torchrun started, as "ddp" or "fsdp"; a single one without torchrun. fp32 products use
    TF32 where a GPU has it.
    """
    torch.backends.cuda.matmul.allow_tf32 = True
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(0, 1, device_of_choice())
        return
    device = device_of_rank()
    store, rank, count = next(dist.rendezvous("env://"))
    backend, own = "nccl" if device.type == "cuda" else "gloo", dist.PrefixStore("collectives", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=count, timeout=COLLECTIVE_TIMEOUT)
    try:
        host = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if device.type == "cuda" else None
        yield Ranks(rank, count, device, parallel == "fsdp", dist.PrefixStore("dit", store), host)
        dist.barrier()
    finally:
        dist.destroy_process_group()
