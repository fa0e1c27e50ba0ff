"""A GPU that is not there: `torch.cuda` answers, and what goes to "cuda" stays on the CPU.

What walks on it are the lines that only a GPU reaches. A name that this torch does not have is an AttributeError, and a
function of `torch.cuda` that is not faked here fails as it does without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

NAME, BYTES = "Fake H100", 80_000_000_000
_PROPERTIES = SimpleNamespace(name=NAME, major=9, minor=0, total_memory=BYTES)
_ANSWERS = {
    "is_available": lambda: True,
    "device_count": lambda: 2,
    "get_device_name": lambda device=None: NAME,
    "get_device_properties": lambda device=None: _PROPERTIES,
    "mem_get_info": lambda device=None: (BYTES // 2, BYTES),
    "get_arch_list": lambda: ["sm_80", "sm_90"],
    "set_device": lambda device: None,
    "synchronize": lambda device=None: None,
    "reset_peak_memory_stats": lambda device=None: None,
    "max_memory_allocated": lambda device=None: 123_000_000,
    "current_stream": lambda device=None: SimpleNamespace(synchronize=lambda: None),
    "is_bf16_supported": lambda including_emulation=True: True,
    "is_initialized": lambda: False,
}


class _StaysOnTheCpu(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.pin_memory:
            return args[0]
        if function is torch.device:  # the word, not what goes there
            return function(*args, **(kwargs or {}))
        here = {key: _here(value) for key, value in (kwargs or {}).items() if key not in ("pin_memory", "non_blocking")}
        return function(*map(_here, args), **here)


def _here(value: Any) -> Any:
    if isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda")):
        return torch.device("cpu") if torch.device(value).type == "cuda" else value
    return value


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Inside there are two GPUs. Gives the names of the precisions that autocast was asked for on one of them."""
    asked: list[str] = []
    for name, answer in _ANSWERS.items():
        monkeypatch.setattr(torch.cuda, name, answer)  # raises for a name that torch does not have
    autocast = torch.autocast

    def recorded(device: str, dtype: torch.dtype | None = None, **options: Any) -> Any:
        if device == "cuda":
            asked.append(str(dtype))
            return autocast("cpu", dtype, **options)
        return autocast(device, dtype, **options)

    monkeypatch.setattr(torch, "autocast", recorded)
    with _StaysOnTheCpu():
        yield asked
