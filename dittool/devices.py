"""The device that this process computes on, and the precision of training on it.

A process has one device: the one that `--device` names, else the first GPU, else the CPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from dittool.errors import UsageError

Made = TypeVar("Made")
V = TypeVar("V")

_chosen: torch.device | None = None  # by --device; None: the best there is


def choose_device(name: str | None) -> torch.device:
    """Makes `cpu`, `cuda`, `cuda:N` or `mps` the device of this process, None the best one. Raises `UsageError` with
    what is there.
    """
    global _chosen
    _chosen = None
    if name is not None:
        _chosen = _named(name)
        if _chosen.type == "cuda" and _chosen.index is not None:
            torch.cuda.set_device(_chosen)
    return device_of_choice()


def device_of_choice() -> torch.device:
    """The device of this process."""
    return _chosen or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in named.split(",")][:count] if named else [str(index) for index in range(count)]


def device_of_rank() -> torch.device:
    """The device of one of several processes, as torchrun numbers them on each machine: each has a GPU of its own."""
    device = device_of_choice()
    if device.type != "cuda":
        return device
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


@contextmanager
def as_in_training(device: torch.device, precision: str) -> Iterator[None]:
    """Inside, a GPU computes a network as training does: products of fp32 in TF32 and, for bf16, under autocast.

    On a CPU nothing changes: what is drawn and judged there is fp32, and stays the same to the bit.
    """
    if device.type == "cpu":
        yield
        return
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    try:
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def in_parts(compute: Callable[[slice], Made], count: int, at_once: int) -> list[Made]:
    """`compute(rows)` for `count` rows, `at_once` of them together, and half as many wherever that did not fit into the
    memory of the device.

    Raises what `compute` raises, also when a single row does not fit.
    """
    made, start = [], 0
    while start < count:
        rows = slice(start, min(start + at_once, count))
        try:
            made.append(compute(rows))
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error) or rows.stop - rows.start == 1:
                raise
            at_once = (rows.stop - rows.start + 1) // 2
            continue
        start = rows.stop
    return made


def _out_of_memory(error: Exception) -> bool:
    """torch has a class of its own for a GPU's memory, and a RuntimeError of its allocator for a CPU's."""
    cpu = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    return cpu or isinstance(error, torch.OutOfMemoryError)


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors as they are, on the host: all that lie on the device come in one transfer, so with one wait."""
    there = [tensor.detach() for tensor in tensors if tensor.device.type != "cpu"]
    if not there:
        return [tensor.detach() for tensor in tensors]
    packed = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in there]).cpu()
    pieces = iter(packed.split([tensor.nbytes for tensor in there]))

    def arrived(tensor: Tensor) -> Tensor:
        if tensor.device.type == "cpu":
            return tensor.detach()
        return next(pieces).clone().view(tensor.dtype).view(tensor.shape)  # a copy begins where its dtype may

    return [arrived(tensor) for tensor in tensors]


def on_host(value: V) -> V:
    """The same with every tensor in it on the host, in one transfer. Looks into lists, dicts and dataclasses."""
    there: list[Tensor] = []

    def remembered(tensor: Tensor) -> Tensor:
        there.append(tensor)
        return tensor

    with_tensors(value, remembered)
    arrived = iter(fetched(there))
    return with_tensors(value, lambda _: next(arrived))


def with_tensors(value: Any, changed: Callable[[Tensor], Any]) -> Any:
    """The same with every tensor in it changed. Looks into lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return changed(value)
    if isinstance(value, list):
        return [with_tensors(item, changed) for item in value]
    if isinstance(value, dict):
        return {key: with_tensors(item, changed) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        held = {one.name: getattr(value, one.name) for one in fields(value)}
        return replace(value, **{name: with_tensors(item, changed) for name, item in held.items()})
    return value


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """What figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else f"CPU, {torch.get_num_threads()} threads"


def _named(name: str) -> torch.device:
    there = _present()
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,3})?", name):
        raise UsageError(f"--device {name}: no kind of device", f"there are here: {', '.join(there)}")
    if name not in there:
        raise UsageError(f"--device {name}: not on this machine, which has {', '.join(there)}", "see: dit doctor")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and name not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: {count} processes were started", "each takes its own GPU: --device cuda")
    return torch.device(name)


def _present() -> list[str]:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    numbered = ["cuda", *(f"cuda:{index}" for index in range(gpus))] if gpus else []
    return ["cpu", *numbered, *(["mps"] if torch.backends.mps.is_available() else [])]
