"""C1 on a configuration: what each key changes when the network is built, timesteps, modes, rates and pictures are
drawn, and data are stored.

Keys that act only while a run trains, embeds or validates are named as not judged here: the audit never imports
training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from dittool.audit.specimens.specimen import ACTS, DEAD, UNSEEN, Effect
from dittool.audit.specimens.trial import answer
from dittool.audit.specimens.watching import SavedBytes
from dittool.config.load import config_from_dict, config_to_dict
from dittool.config.schema import Config, SampleSettings
from dittool.data.normalisation import latent_norm
from dittool.data.patch_storage import encode_patches
from dittool.encoders.cards import VaeCard
from dittool.errors import UsageError
from dittool.objective import flow, schedule
from dittool.sampling.latents import sample_latents

if TYPE_CHECKING:
    from dittool.audit.specimens.ours import FlowNetwork

Key = tuple[str, str]  # (section, key)
Observers = dict[str, Callable[[Config, "FlowNetwork"], Any]]  # by what they see
_DRAWS = 1000
_SCHEDULED = ("steps", "lr", "min_lr", "warmup_steps")
_IN_THE_LOOP = (
    "acts in the training loop, which an audit does not run: shown key by key in tests/train/test_live_keys.py"
)
_ELSEWHERE = {
    "encoders": "acts while features are made",
    "data": "acts while features are made",
    "train": _IN_THE_LOOP,
    "checkpoint": _IN_THE_LOOP,
    "validate": "acts in validation",
}


def key_effects(config: Config, network: FlowNetwork) -> dict[str, Effect]:
    """The effect of each key of a configuration but the description, by dotted name."""
    tree = config_to_dict(config)
    keys = [(section, key) for section, values in tree.items() if isinstance(values, dict) for key in values]
    return {".".join(key): _effect(key, tree, config, network) for key in keys}


def _effect(key: Key, tree: dict[str, Any], config: Config, network: FlowNetwork) -> Effect:
    observers = _observers(key)
    if not observers:
        return Effect(UNSEEN, _ELSEWHERE.get(key[0], "acts where this rule does not look"))
    tried = []
    for value, other in _changed_configs(key, tree):
        for what, observe in observers.items():
            try:
                if observe(config, network) != observe(other, network):
                    return Effect(ACTS, what)
            except UsageError:
                break  # this value does not go with the others
        else:
            tried.append(value)
    if not tried:
        return Effect(UNSEEN, "has no other valid value here")
    what = ", ".join(observers)
    return Effect(
        DEAD,
        f"{tree[key[0]][key[1]]!r} → {', '.join(repr(value) for value in tried)} changes none of {len(observers)}"
        f" things: {what}",
    )


# What can be seen of a configuration


def _observers(key: Key) -> Observers:
    """What may show a key's effect, the cheap things first."""
    section, name = key
    if section == "model":
        return {"shapes": _shapes, "answer": _answer, "bytes kept for backward": _saved}
    if section == "train" and name in _SCHEDULED:
        return {"learning rate": _rates}
    if section == "data" and name in ("area", "buckets"):
        return {"buckets": lambda config, _: config.data.bucket_sizes()}
    by_key: dict[Key, Observers] = {
        ("data", "patch_storage"): {"stored bytes": _stored},
        ("data", "latent_scaling"): {"normalisation": _norm},
    }
    by_section: dict[str, Observers] = {
        "flow": {"timesteps": _timesteps},
        "dropout": {"modes": _modes},
        "ema": {"decay": _decays},
        "sample": {"latents drawn": _drawn},
    }
    return by_key.get(key) or by_section.get(section) or {}


def _shapes(config: Config, network: FlowNetwork) -> Any:
    return network.with_config(config).shapes()


def _answer(config: Config, network: FlowNetwork) -> str:
    network = network.with_config(config)
    with torch.no_grad():
        return _digest(answer(network.one_block.eval(), network.inputs()))


def _saved(config: Config, network: FlowNetwork) -> int:
    network = network.with_config(config)
    model = network.one_block.train()
    saved = SavedBytes(model)
    with saved:
        answer(model, network.inputs())
    return saved.bytes


def _drawn(config: Config, network: FlowNetwork) -> str:
    inputs = network.inputs()
    return _digest(sample_latents(network.shared_awake, inputs["conditions"], inputs["z"], SampleSettings.of(config)))


def _rates(config: Config, _: FlowNetwork) -> list[float]:
    train = config.train
    # and behind the last update, where a run so short that it ends at its peak would have come down
    steps = (0, train.warmup_steps, train.steps // 2, train.steps - 1, train.steps)
    return [schedule.learning_rate(step, train) for step in steps]


def _decays(config: Config, _: FlowNetwork) -> list[float]:
    return [schedule.ema_decay(update, config.ema) for update in (0, 3, 100, config.train.steps - 1, 10**9)]


def _timesteps(config: Config, _: FlowNetwork) -> str:
    return _digest(flow.timesteps(_uniform(), config.flow.timestep_sampling, config.flow.shift))


def _modes(config: Config, _: FlowNetwork) -> list[int]:
    d = config.dropout
    return flow.dropout_modes(_uniform(), d.shares).bincount(minlength=len(flow.MODES)).tolist()


def _stored(config: Config, _: FlowNetwork) -> bytes:
    patches = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    return encode_patches(patches, (4, 4), config.data.patch_storage).tobytes()


def _norm(config: Config, _: FlowNetwork) -> Any:
    codec = VaeCard("", "", "", "fp32", channels=2, stride=8, scale=0.5, shift=0.1)
    return latent_norm(config.data.latent_scaling, codec, mean=(1.0, 2.0), std=(3.0, 4.0))


def _uniform() -> Tensor:
    return torch.rand(_DRAWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().float().contiguous().numpy().tobytes()).hexdigest()


# Other values


def _changed_configs(key: Key, tree: dict[str, Any]) -> Iterator[tuple[Any, Config]]:
    """Other values of a key with the configurations that have them; neighbours that depend on it are moved along."""
    section, name = key
    for value in _other_values(key, tree[section][name]):
        for neighbours in _neighbours(key, value, tree[section]):
            changed = {
                one: other for one, other in {**tree[section], **neighbours, name: value}.items() if other is not None
            }
            try:
                config = config_from_dict({**tree, section: changed}, "C1")
            except UsageError:
                continue
            yield value, cast(Config, config)  # the architecture stays
            break


def _neighbours(key: Key, value: Any, section: dict[str, Any]) -> list[dict[str, Any]]:
    if key[0] == "dropout":  # the shares sum to 1
        other = max((name for name in section if name != key[1]), key=section.__getitem__)
        return [{other: section[other] - (value - section[key[1]])}]
    if key == ("ema", "warmup"):
        return [{"warmup_steps": 10 if value == "linear" else None}]
    return [{}]


def _other_values(key: Key, value: Any) -> list[Any]:
    choices = _choices(key)
    if choices:
        return [one for one in choices if one != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [one for one in dict.fromkeys((value * 2, value // 2, value + 4, value + 1)) if one != value]
    if isinstance(value, float):
        return [one for one in dict.fromkeys((value * 2, value / 2, value + 0.05, value - 0.05)) if one != value]
    return _USUAL.get(key[1], [])


_USUAL: dict[str, list[Any]] = {  # of keys whose values are neither numbers nor choices
    "area": ["256x256", "1024x1024"],
    "buckets": [["256x256"]],
    "guidance_interval": [[0.2, 0.6]],
}


def _choices(key: Key) -> tuple[Any, ...]:
    """The values that a key of fixed choices may have."""
    sections = {field.alias or name: field.annotation for name, field in Config.model_fields.items()}
    section = sections[key[0]]
    if not (isinstance(section, type) and issubclass(section, BaseModel)):
        return ()
    annotation = section.model_fields[key[1]].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()
