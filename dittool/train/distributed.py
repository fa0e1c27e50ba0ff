"""Several processes on one run, as torchrun starts them: each computes its share of every batch, gradients are averaged.

Nothing here launches anything. `torchrun --nproc-per-node N -m dittool train …` sets the environment that is read below; nodes are
added with torchrun's own options. The order of samples does not depend on the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dittool.encoders.pretrained import device_of_choice


@dataclass(frozen=True)
class Ranks:
    """This process among all. The first one writes; the others only compute."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward averages gradients over all processes; the model itself when there is one."""
        if self.count == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def local_gradients(self, model: nn.Module, wanted: bool) -> AbstractContextManager:
        """Inside, a wrapped model's backward only adds up: for all micro-batches of a step but the last."""
        return model.no_sync() if wanted and self.count > 1 else nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """The mean of each process's value, on all of them."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.count
        return value

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process; all get the same answer."""
        if self.count == 1:
            return flag
        votes = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes)


@contextmanager
def process_group() -> Iterator[Ranks]:
    """The processes that torchrun started; a single one without it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(0, 1, device_of_choice())
        return
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), count, device)
    finally:
        dist.destroy_process_group()
