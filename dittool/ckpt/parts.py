"""Which part of a checkpoint is its network: where trainers put the weights, and what they write before the names.

Three questions, each answered from keys and names alone: which of several state dicts (the averaged one first), which
tensors of it (a pipeline's file also holds its autoencoder and its text encoder), and which wrappers stand before the
names (DistributedDataParallel's `module.`, torch.compile's `_orig_mod.`, Lightning's `model.`, …).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dittool.ckpt.averages import is_tensor_list, pair_by_order, with_dots
from dittool.errors import listed
from dittool.untrusted.foreign_values import ForeignObject
from dittool.untrusted.tensor_spec import TensorSpec
from dittool.untrusted.torch_values import is_tensor

# Where trainers keep their weights beside an average, by any name of `AVERAGED`, which comes first.
RAW_KEYS = (
    *("model", "state_dict", "model_state_dict", "module", "weights", "params", "net", "network", "transformer"),
    *("dit", "denoiser", "generator", "backbone", "unet"),
)
AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?|shadow)(_|$)", re.IGNORECASE)  # state_dict_ema, ema_model, …
_MOST_PREFIXES = 12  # before one name
_MOST_KEYS = 1_000_000  # that are looked at in search of state dicts; objects may refer to each other in circles
_DEEPEST = 4  # keys that lead to a state dict: {"ema": {"module": {"state_dict": …}}}
# Wherever in a name they stand
_INSIDE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_flat_param)\.")
# Before all names of a network
_WRAPPERS = {
    *RAW_KEYS,
    "ema",
    "ema_model",
    "model_ema",
    "averaged_model",
    "diffusion_model",
    "diffusion",
    "online_model",
}
# Names before which a pipeline's other networks stand
_BESIDE = re.compile(
    r"(first_stage_model|cond_stage_model|conditioner|vae|autoencoder|text_encoders?|text_model|image_encoder|clip|t5"
    r"|loss|criterion|lpips|perceptual_loss|discriminator|teacher|encoder_ema|tokenizer|mel_spec|metrics?"
    r"|(train|val|test)_\w+)(_\d+)?\b"
)
_NO_NETWORK = re.compile(r"optim|^opt|sched|scal(er|ing)|rng|random|disc|loss|stat|vae|text|buffer", re.IGNORECASE)


@dataclass(frozen=True)
class Part:
    """The network in a checkpoint: the keys that lead to its state dict, and which of its names belong to it."""

    keys: tuple[str, ...]
    prefix: str = ""  # taken off the names; names without it are left out
    beside: tuple[str, ...] = ()  # what else the file holds
    averaged: bool = False
    bare: Mapping[str, str] = field(default_factory=dict)  # the file's name → the network's, in the file's order
    raw: Part | None = None  # what the average leaves out, buffers and frozen parameters, from the weights beside it
    listed: bool = False  # whether the file has it as a list, whose places are the file's names
    unpaired: str = ""  # why an average in the file could not be taken

    def __str__(self) -> str:
        where = f"under '{'.'.join(self.keys)}'" if self.keys else "of the whole file"
        prefix = f", without the prefix '{self.prefix}'" if self.prefix else ""
        beside = f"; beside them the file holds {listed(self.beside, 8)}" if self.beside else ""
        names = ", a list that is named by the order of the model's parameters" if self.listed else ""
        left = list(self.raw.bare.values()) if self.raw else []
        raw = f", with {len(left)} raw tensors that are not averaged ({listed(left, 2)})" if left else ""
        why = f"; the average is not taken: {self.unpaired}" if self.unpaired else ""
        return f"the {'averaged ' if self.averaged else ''}weights {where}{prefix}{names}{raw}{beside}{why}"


def state_dicts(content: object) -> list[tuple[str, ...]]:
    """The keys that lead to a model's tensors in a checkpoint's content, averaged ones first; () when it is itself a
    state dict.
    """
    found = list(_state_dicts(content, (), [_MOST_KEYS])) or _unusual(content)
    order = {key: index for index, key in enumerate(RAW_KEYS)}

    def rank(keys: tuple[str, ...]) -> tuple[bool, int, int]:
        return not is_averaged(keys), min((order.get(key, len(order)) for key in keys), default=-1), len(keys)

    return sorted(found, key=rank)


def _state_dicts(content: object, keys: tuple[str, ...], left: list[int]) -> Iterator[tuple[str, ...]]:
    """The keys that lead to state dicts below these keys; `left`: how many keys may still be looked at."""
    entries = entries_of(content)
    left[0] -= len(entries)
    if left[0] < 0:
        return
    if is_state_dict(entries):
        yield keys
    elif len(keys) < _DEEPEST:
        for key, value in entries.items():
            usual = isinstance(key, str) and (AVERAGED.search(key) or key in RAW_KEYS)
            if usual and AVERAGED.search(key) and is_tensor_list(value):
                yield (*keys, key)
            elif usual:
                yield from _state_dicts(value, (*keys, key), left)


def _unusual(content: object) -> list[tuple[str, ...]]:
    """The keys of state dicts under other names than trainers' usual ones, the largest first."""
    found = [
        (str(key),)
        for key, value in entries_of(content).items()
        if isinstance(key, str) and not _NO_NETWORK.search(key) and is_state_dict(value)
    ]
    return sorted(found, key=lambda keys: -len(entries_of(at(content, keys))))


def find_part(content: object, keys: tuple[str, ...]) -> Part:
    """The network in the state dict under these keys."""
    state = entries_of(at(content, keys))
    top = [str(key) for key in entries_of(content) if key != keys[0]] if keys else []
    bare = {name: _INSIDE.sub("", name) for name, value in state.items() if isinstance(value, (Tensor, TensorSpec))}
    groups = {f"{name.partition('.')[0]}." for name in bare.values()}
    dots = with_dots(list(bare.values()), [group for group in groups if AVERAGED.search(group[:-1])])
    bare = full = {name: dots.get(short, short) for name, short in bare.items()}
    small = {name for name in bare if state[name].shape in ((), (1,))}
    prefix, averaged = "", is_averaged(keys)
    for _ in range(_MOST_PREFIXES):
        inner = _inner(list(bare.values()), averaged, {bare[name] for name in small & bare.keys()})
        if not inner:
            break
        prefix += inner
        averaged = averaged or bool(AVERAGED.search(inner[:-1]))
        bare = {name: short.removeprefix(inner) for name, short in bare.items() if short.startswith(inner)}
    left = {full.get(name, name).removeprefix(prefix).partition(".")[0] for name in state if name not in bare}
    raw = _raw_beside(keys, full, bare) if averaged and not is_averaged(keys) else None
    return Part(keys, prefix, (*top, *sorted(left)), averaged, bare, raw)


def _raw_beside(keys: tuple[str, ...], full: Mapping[str, str], averaged: Mapping[str, str]) -> Part | None:
    """What an average leaves out of the network whose raw weights stand in the same state dict."""
    some = next(iter(averaged.values()), "")
    origin = next(
        (long for name, long in full.items() if name not in averaged and f".{long}".endswith(f".{some}")), None
    )
    if not origin or not some:
        return None
    before, known = origin.removesuffix(some), set(averaged.values())
    bare = {name: long.removeprefix(before) for name, long in full.items() if before and long.startswith(before)}
    lacking = {name: short for name, short in bare.items() if short not in known and name not in averaged}
    return Part(keys, before, bare=lacking) if lacking else None


def named_by_order(content: object, keys: tuple[str, ...]) -> Part:
    """An average that is a list, with the names of the model in the same file; `unpaired` says why it has none."""
    top = tuple(str(key) for key in entries_of(content) if key != keys[0])
    models = [other for other in state_dicts(content) if not is_averaged(other)]
    tensors, where = at(content, keys), ".".join(keys)
    if not models:
        return Part(
            keys, unpaired=f"'{where}' is a list of {len(tensors)} tensors, and the file has no model to name them"
        )
    model = find_part(content, models[0])
    state = entries_of(at(content, model.keys))
    names, why = pair_by_order(tensors, {short: state[name] for name, short in model.bare.items()})
    if why:
        return Part(keys, unpaired=f"'{where}' is a list of {why}")
    known = set(names)
    lacking = {name: short for name, short in model.bare.items() if short not in known}
    places = {str(place): name for place, name in enumerate(names)}
    raw = Part(model.keys, model.prefix, bare=lacking) if lacking else None
    return Part(keys, model.prefix, top, True, places, raw, listed=True)


def _inner(names: Sequence[str], averaged: bool, small: set[str]) -> str:
    """The prefix of the network among these names; "" when all of them are its own."""
    groups: dict[str, list[str]] = {}
    for name in names:
        first, dot, rest = name.partition(".")
        groups.setdefault(f"{first}{dot}", []).append(rest)
    wrapped = [
        group for group in groups if group.endswith(".") and (group[:-1] in _WRAPPERS or AVERAGED.search(group[:-1]))
    ]
    others = {group for group in groups if group not in wrapped}
    foreign = {group for group in others if group in small or _BESIDE.match(group) or _is_number(groups[group], group)}
    if not averaged:
        for group in wrapped:
            own = {rest for rest in groups[group] if group + rest not in small}  # without how often it was updated
            raw = [other for other in groups if other != group and own <= set(groups[other])]
            if AVERAGED.search(group[:-1]) and (raw or len(groups) == 1 + len(foreign)):
                return group
    if len(wrapped) == 1 and others == foreign:
        return wrapped[0]
    if averaged and not others:  # an average's own wrapper beside another's
        return next((group for group in wrapped if AVERAGED.search(group[:-1])), "")
    raw = [group for group in wrapped if not AVERAGED.search(group[:-1])]
    return raw[0] if len(raw) == 1 and others == foreign else ""


def _is_number(rest: list[str], group: str) -> bool:
    return rest == [""] and re.fullmatch(r"(alphas|betas|sigmas|log_|sqrt_|posterior_|lvlb_)\w*", group) is not None


def is_averaged(keys: Sequence[str]) -> bool:
    return any(map(AVERAGED.search, keys))


def tensors_of(content: Any, part: Part) -> dict[str, Any]:
    """The tensors (or their specs) of a part by the file's names, without those of its raw part."""
    held = at(content, part.keys)
    state = {str(place): one for place, one in enumerate(held)} if part.listed else entries_of(held)
    return {name: state[name] for name in part.bare}


def at(content: Any, keys: Sequence[str]) -> Any:
    """What lies under nested keys."""
    for key in keys:
        content = entries_of(content)[key]
    return content


def entries_of(value: object) -> Mapping[Any, Any]:
    """What a dict, or an object with pairs or attributes, holds by name; of a network its state dict."""
    if isinstance(value, ForeignObject):
        return value.state_dict() if value.is_network else value.entries
    return value if isinstance(value, Mapping) else {}


def is_state_dict(value: object) -> bool:
    """Whether a value is tensors (or their specs) by name, at least one. Layers may have a state that is none."""
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) for name in value):
        return False
    return any(isinstance(tensor, (Tensor, TensorSpec)) for tensor in value.values()) and all(
        isinstance(tensor, Tensor) or is_tensor(tensor) or name.endswith("_extra_state")
        for name, tensor in value.items()
    )
