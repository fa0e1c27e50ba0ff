"""C1 on a configuration: what each key changes when the network is built, timesteps, modes, rates and pictures are
drawn, and data are stored.

Keys that act only while a run trains, embeds or validates are named as not judged here: the audit never imports
training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from dittool.audit.specimens.ours import ModelProbe
from dittool.audit.specimens.saved_bytes import SavedBytes
from dittool.config.load import config_from_dict, config_to_dict
from dittool.config.schema import Config
from dittool.data.normalisation import latent_norm
from dittool.data.patch_storage import encode_patches
from dittool.encoders.cards import VaeCard
from dittool.errors import UsageError
from dittool.objective import flow, schedule
from dittool.sampling.latents import sample_latents
from dittool.sampling.settings import SampleSettings

Key = tuple[str, str]  # (section, key)
ACTS, DEAD, UNSEEN = "acts", "dead", "unseen"
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


@dataclass(frozen=True)
class Effect:
    """What became of one key."""

    kind: str  # one of the three above
    told: str  # what changed, or which values were tried, or why it cannot be judged


def key_effects(config: Config, probe: ModelProbe) -> dict[str, Effect]:
    """The effect of each key of a configuration but the description, by dotted name."""
    tree = config_to_dict(config)
    keys = [(section, key) for section, values in tree.items() if isinstance(values, dict) for key in values]
    return {".".join(key): _effect(key, tree, config, probe) for key in keys}


def _effect(key: Key, tree: dict[str, Any], config: Config, probe: ModelProbe) -> Effect:
    observers = _observers(key)
    if not observers:
        return Effect(UNSEEN, _ELSEWHERE.get(key[0], "acts where this rule does not look"))
    tried = []
    for value, other in _changed_configs(key, tree):
        for what, observe in observers.items():
            try:
                if observe(config, probe) != observe(other, probe):
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


def _observers(key: Key) -> dict[str, Callable[[Config, ModelProbe], Any]]:
    """What may show a key's effect, the cheap things first."""
    section, name = key
    if section == "model":
        return {"shapes": _shapes, "answer": _answer, "bytes kept for backward": _saved}
    if section == "train" and name in _SCHEDULED:
        return {"learning rate": _rates}
    if section == "data" and name in ("area", "buckets"):
        return {"buckets": lambda config, _: config.data.bucket_sizes()}
    by_key = {
        ("data", "patch_storage"): {"stored bytes": _stored},
        ("data", "latent_scaling"): {"normalisation": _norm},
    }
    by_section = {
        "flow": {"timesteps": _timesteps},
        "dropout": {"modes": _modes},
        "ema": {"decay": _decays},
        "sample": {"latents drawn": _drawn},
    }
    return by_key.get(key) or by_section.get(section, {})


def _shapes(config: Config, probe: ModelProbe) -> Any:
    return {name: tuple(tensor.shape) for name, tensor in _probe(config, probe).at_real_size().state_dict().items()}


def _answer(config: Config, probe: ModelProbe) -> str:
    probe = _probe(config, probe)
    inputs = probe.inputs()
    with torch.no_grad():
        return _digest(probe.one_block.eval()(inputs.z, inputs.t, inputs.conditions))


def _saved(config: Config, probe: ModelProbe) -> int:
    probe = _probe(config, probe)
    model, inputs = probe.one_block.train(), probe.inputs()
    with SavedBytes(model) as saved:
        model(inputs.z, inputs.t, inputs.conditions)
    return saved.bytes


def _drawn(config: Config, probe: ModelProbe) -> str:
    inputs = probe.inputs()
    return _digest(sample_latents(probe.shared_awake, inputs.conditions, inputs.z, SampleSettings.of(config)))


def _rates(config: Config, _: ModelProbe) -> list[float]:
    train = config.train
    return [schedule.learning_rate(step, train) for step in (0, train.warmup_steps, train.steps // 2, train.steps - 1)]


def _decays(config: Config, _: ModelProbe) -> list[float]:
    return [schedule.ema_decay(update, config.ema) for update in (0, 3, 100, config.train.steps - 1, 10**9)]


def _timesteps(config: Config, _: ModelProbe) -> str:
    return _digest(flow.timesteps(_uniform(), config.flow.timestep_sampling, config.flow.shift))


def _modes(config: Config, _: ModelProbe) -> list[int]:
    d = config.dropout
    return flow.dropout_modes(_uniform(), d.shares).bincount(minlength=len(flow.MODES)).tolist()


def _stored(config: Config, _: ModelProbe) -> bytes:
    patches = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    return encode_patches(patches, (4, 4), config.data.patch_storage).tobytes()


def _norm(config: Config, _: ModelProbe) -> Any:
    codec = VaeCard("", "", "", "fp32", channels=2, stride=8, scale=0.5, shift=0.1)
    return latent_norm(config.data.latent_scaling, codec, mean=(1.0, 2.0), std=(3.0, 4.0))


def _probe(config: Config, probe: ModelProbe) -> ModelProbe:
    """The probe itself when it builds the same network."""
    return probe if config.model == probe.config.model else ModelProbe(config, probe.dims)


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
                yield value, config_from_dict({**tree, section: changed}, "C1")
                break
            except UsageError:
                continue


def _neighbours(key: Key, value: Any, section: dict[str, Any]) -> list[dict[str, Any]]:
    if key[0] == "dropout":  # the shares sum to 1
        other = max((name for name in section if name != key[1]), key=section.get)
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
    return {"area": ["256x256", "1024x1024"], "buckets": [["256x256"]], "guidance_interval": [[0.2, 0.6]]}.get(
        key[1], []
    )


def _choices(key: Key) -> tuple[Any, ...]:
    """The values that a key of fixed choices may have."""
    section: type[BaseModel] = next(
        field.annotation for name, field in Config.model_fields.items() if (field.alias or name) == key[0]
    )
    annotation = section.model_fields[key[1]].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()
