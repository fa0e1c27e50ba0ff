"""What a checkpoint may hold: its keys, tensors and plain values, which any reader can check."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dittool.ckpt.load import FORMAT_VERSION, named_tensors

STATE_KEYS = ("format_version", "config", "model", "ema", "optimizer", "step", "samples_seen", "rng", "data")
_BYTES_BESIDE_TENSORS = 1 << 20  # pickle, configuration, archive directory


def require_plain(state: Mapping[str, object]) -> None:
    """Raises TypeError unless the state has every key of a checkpoint and holds only tensors and plain values,
    which any reader can check.
    """
    require_state(state)
    _require_plain(state, "state")


def require_state(state: Mapping[str, object]) -> None:
    """Raises TypeError unless the state has every key of a checkpoint."""
    if missing := [key for key in STATE_KEYS if key not in state]:
        raise TypeError(f"a checkpoint's state lacks {', '.join(missing)}")
    if state["format_version"] != FORMAT_VERSION or type(state["step"]) is not int or state["step"] < 0:
        raise TypeError(
            f"format_version {state['format_version']!r} or step {state['step']!r} is not what a checkpoint has"
        )


def state_bytes(state: Mapping[str, object]) -> int:
    """About how many bytes the state takes on disk: each storage once, and a margin for the rest."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for _, tensor in named_tensors(state)
    }
    return sum(storages.values()) + 1024 * len(storages) + _BYTES_BESIDE_TENSORS


def _require_plain(value: Any, where: str) -> None:
    # Exact types: numpy's float64 is a float, and a subclass is pickled by its class's name.
    if type(value) in (str, int, float, bool, type(None)):
        return
    if type(value) in (Tensor, torch.nn.Parameter):
        own = value.layout == torch.strided and not value.is_meta and not value.is_quantized
        if not own or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise TypeError(
                f"{where}: a tensor that is not simply its own values (sparse, meta, quantized or expanded)"
            )
    elif type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{where}: the key {key!r} is neither str nor int")
            _require_plain(inner, f"{where}.{key}")
    elif type(value) in (list, tuple):
        for index, inner in enumerate(value):
            _require_plain(inner, f"{where}.{index}")
    else:
        raise TypeError(
            f"{where}: {type(value).__module__}.{type(value).__name__} is neither a tensor nor a plain value"
        )
