"""The weights in a checkpoint that anybody may have made: where its trainer put them, the averaged ones first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dittool.ckpt.load import check_pt, check_safetensors, keys_of, load_mapped, load_safetensors
from dittool.console import SILENT, Talk
from dittool.errors import BadDataError
from dittool.shell import command_line
from dittool.untrusted.tensor_spec import TensorSpec

# Where trainers keep their weights beside an average, by any name of `_AVERAGED`, which comes first.
RAW_KEYS = ("model", "state_dict", "model_state_dict", "module", "weights", "params")
_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)", re.IGNORECASE)  # state_dict_ema, ema_model_state_dict, …
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


def load_weights(path: Path, weights: str | None = None, talk: Talk = SILENT) -> dict[str, Tensor]:
    """The model's tensors by name, on the CPU, from a `.safetensors` file, one of our checkpoints, or a foreign `.pt`.

    `weights` picks a key ("ema", "model"); by default the averaged weights are taken where there are any, and `talk` is
    told which. Tensors of a `.pt` are mapped from the file and read when they are used. Raises `BadDataError` and
    `UnsafeFileError`.
    """
    if path.suffix.lower() == ".safetensors":
        check_safetensors(path)
        return _strip_wrappers(load_safetensors(path))
    report = check_pt(path)
    keys = find_weights(report.content, path, weights)
    if keys:
        talk.note(f"{path}: taking the weights under '{'.'.join(keys)}'")
    state = value_at(load_mapped(report), keys)
    if weights is None and not any(map(_AVERAGED.search, keys)):
        if averaged := _averaged_part(state):
            talk.note(f"{path}: taking the averaged weights in it, '{averaged}…'")
            return {name.removeprefix(averaged): state[name] for name in state if name.startswith(averaged)}
        if keys:
            talk.warn(f"{path}: holds no averaged (EMA) weights, so the raw ones are taken")
    return _strip_wrappers(state)


def find_weights(content: object, path: Path, weights: str | None = None) -> tuple[str, ...]:
    """The keys that lead to a checkpoint's model's tensors, the averaged ones where there are any; () when it is itself
    a state dict.

    `content` holds tensors or their `TensorSpec`. Raises `BadDataError` when there are none, or none under the key
    asked for.
    """
    if weights is None and is_state_dict(content):
        return ()
    for found in weight_keys(content):
        if weights is None or found[0] == weights:
            return found
    wanted = (
        f"no weights under '{weights}'"
        if weights
        else f"no state dict, neither at the top nor under {', '.join(RAW_KEYS)} or a name with ema, swa or average"
    )
    raise BadDataError(
        f"{path}: {wanted}; it has {keys_of(content)}",
        f"see what is in it with: {command_line('dit', 'inspect-ckpt', path, '--tree')}",
    )


def weight_keys(content: object) -> list[tuple[str, ...]]:
    """The keys that lead to a model's tensors in a checkpoint's content, averaged ones first. A state dict may lie one
    level deeper: {"ema": {"decay": 0.999, "state_dict": …}}.
    """
    if not isinstance(content, Mapping):
        return []
    averaged = [key for key in content if isinstance(key, str) and _AVERAGED.search(key)]
    found: list[tuple[str, ...]] = []
    for key in [*averaged, *(key for key in RAW_KEYS if key in content and key not in averaged)]:
        value = content[key]
        if is_state_dict(value):
            found.append((key,))
        elif isinstance(value, Mapping):
            inner = [name for name in value if isinstance(name, str) and is_state_dict(value[name])]
            found += [(key, name) for name in inner if _AVERAGED.search(name) or name in RAW_KEYS]
    return found


def value_at(content: Any, keys: Sequence[str]) -> Any:
    """What lies under nested keys."""
    for key in keys:
        content = content[key]
    return content


def is_state_dict(value: object) -> bool:
    """Whether a value is tensors (or their specs) by name, at least one."""
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(name, str) and isinstance(tensor, (Tensor, TensorSpec)) for name, tensor in value.items())


def _averaged_part(state: Mapping[str, Tensor]) -> str:
    """The prefix of the averaged weights in a state dict that holds them beside the raw ones, as ema-pytorch and
    Lightning write it: `model.x`, `ema_model.x`; "" where there is no such pair.
    """
    prefixes = {name.partition(".")[0] for name in state}
    for prefix in sorted(filter(_AVERAGED.search, prefixes)):
        names = {name.removeprefix(f"{prefix}.") for name in state if name.startswith(f"{prefix}.")}
        if any(names <= {name.removeprefix(f"{raw}.") for name in state} for raw in prefixes - {prefix}):
            return f"{prefix}."
    return ""


def _strip_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _WRAPPER_PREFIXES * 2:  # in either order
        if state and all(name.startswith(prefix) and name != prefix for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)
