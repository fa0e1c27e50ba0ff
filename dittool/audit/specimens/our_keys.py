"""C1 on a configuration: what each key changes when the network is built, timesteps, modes, rates and pictures are
drawn, and data are stored.

Keys that act only while a run trains, embeds or validates are named as not judged here: the audit never imports
training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Literal, cast, get_args, get_origin

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from dittool.audit.specimens.settings import Guess, effect_of, neighbours
from dittool.audit.specimens.specimen import Effect
from dittool.audit.specimens.watching import SavedBytes, answer, answer_without_gradient
from dittool.config.architectures import with_patch_storage
from dittool.config.load import config_from_dict, config_to_dict
from dittool.config.schema import Config, SampleSettings
from dittool.data.normalisation import latent_norm
from dittool.data.patch_storage import NONE, encode_patches
from dittool.encoders.cards import VaeCard
from dittool.errors import UsageError
from dittool.models.conditioning import Conditions
from dittool.objective import flow, schedule
from dittool.objective.alignment import Alignment
from dittool.objective.routing import passing_tokens
from dittool.sampling.latents import sample_latents

if TYPE_CHECKING:
    from dittool.audit.specimens.ours import FlowNetwork

Observer = Callable[[Config, "FlowNetwork"], object]
Observers = Mapping[str, Observer]  # by what they see, the cheap things first
Section = dict[str, object]
_UNIFORM = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
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
_USUAL: dict[str, list[object]] = {  # values of keys that are neither numbers nor choices
    "area": ["256x256", "1024x1024"],
    "buckets": [["256x256"]],
    "guidance_interval": [[0.2, 0.6]],
    "shift": [1.0],
    "guidance_norm": [1e-3],
    "averages": [[0.05, 0.1], [0.2]],
}


def key_effects(config: Config, network: FlowNetwork) -> dict[str, Effect]:
    """The effect of each key of a configuration but the description, by dotted name."""
    sections = {name: values for name, values in config_to_dict(config).items() if isinstance(values, dict)}
    seen_unchanged = cache(lambda observe: observe(config, network))
    return {
        f"{section}.{key}": key_effect(section, key, config, network, seen_unchanged)
        for section, values in sections.items()
        for key in values
    }


def key_effect(
    section: str,
    key: str,
    config: Config,
    network: FlowNetwork,
    seen_unchanged: Callable[[Observer], object] | None = None,
) -> Effect:
    """The effect of one key. `seen_unchanged`: what an observer sees of the configuration as it is."""
    seen_unchanged = seen_unchanged or cache(lambda observe: observe(config, network))
    tree = config_to_dict(config)
    values: Section = tree[section]
    if (section, values.get("schedule")) == ("train", "constant") and key in ("steps", "min_lr"):
        return Effect(
            "unseen", "says nothing of a constant rate, and where a cooldown from one of its checkpoints ends"
        )
    observers = _OBSERVERS.get(f"{section}.{key}") or _OBSERVERS.get(section) or {}
    if not observers:
        return Effect("unseen", _ELSEWHERE.get(section, "acts where this rule does not look"))

    def difference(value: object) -> str:
        changed = {**values, **_moved_along(section, key, value, values), key: value}
        set_keys = {name: other for name, other in changed.items() if other is not None}
        other = cast(Config, config_from_dict({**tree, section: set_keys}, "C1"))  # the architecture stays
        seen = (what for what, observe in observers.items() if seen_unchanged(observe) != observe(other, network))
        return next(seen, "")

    guess = Guess(_other_values(section, key, values[key]), why_none="has no other valid value here")
    return effect_of(values[key], guess, difference, list(observers), UsageError)


# What can be seen of a configuration


def _answer(network: FlowNetwork) -> list[float]:
    return answer_without_gradient(network.one_block.eval(), network.inputs()).flatten().tolist()


def _saved(network: FlowNetwork) -> int:
    saved = SavedBytes(network.one_block)
    with saved:
        answer(network.one_block.train(), network.inputs())
    return saved.bytes


@torch.no_grad()
def _training_loss(config: Config, network: FlowNetwork) -> float:
    """Of one batch in which every dropout mode stands."""
    inputs, repa = network.inputs(batch=len(flow.MODES)), config.repa
    conditions: Conditions = inputs["conditions"]
    assert conditions.cls is not None
    places = torch.linspace(-1, 1, math.prod(conditions.patch_grid))[:, None]  # (N, 1)
    seen = replace(conditions, patches=places * conditions.cls[:, None])
    aligned = Alignment(repa.weight, config.model.patch_size, active=True) if repa.weight else None
    model, z, modes = network.to_train(config), inputs["z"], torch.arange(len(flow.MODES))
    tokens = math.prod(model.token_grid(z))
    route = passing_tokens(range(len(z)), tokens, config.tread.share) if config.tread.share else None
    return float(flow.flow_loss(model, z, z.roll(1, 0), inputs["t"], seen, modes, aligned, route).mean)


def _aligned_updates(config: Config) -> float:
    return (config.repa.until or 1.0) * config.train.steps


def _drawn(config: Config, network: FlowNetwork) -> Tensor:
    inputs, settings = network.inputs(), SampleSettings.of(config)
    return sample_latents(network.shared_awake, inputs["conditions"], inputs["z"], settings)


def _timesteps(config: Config) -> list[float]:
    shift = flow.shift_at(config.flow.shift, config.data.bucket_sizes()[0].latent_grid())
    return flow.timesteps(_UNIFORM, config.flow.timestep_sampling, shift).tolist()


def _drawn_from_weak(config: Config, network: FlowNetwork) -> list[float]:
    inputs, settings = network.inputs(), SampleSettings.of(config)
    model, weak = network.shared_awake, None if settings.weak_routed else network.fresh()
    return sample_latents(model, inputs["conditions"], inputs["z"], settings, weak=weak).flatten().tolist()


def _rates(config: Config, _: FlowNetwork) -> list[float]:
    train = config.train
    # and behind the last update, where a run so short that it ends at its peak would have come down
    steps = (0, train.warmup_steps, *(train.steps * part // 8 for part in range(4, 8)), train.steps - 1, train.steps)
    return [schedule.learning_rate(step, train) for step in steps]


def _decays(config: Config, _: FlowNetwork) -> list[float]:
    return [schedule.ema_decay(update, config.ema) for update in (0, 3, 100, config.train.steps - 1, 10**9)]


def _stored(config: Config, _: FlowNetwork) -> bytes:
    patches = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    storage = with_patch_storage(config).data.patch_storage
    return b"" if storage == NONE else encode_patches(patches, (4, 4), storage).tobytes()


_SCHEDULE: Observers = {"learning rate": _rates}
_BUCKETS: Observers = {"buckets": lambda config, _: config.data.bucket_sizes()}
_CODEC = VaeCard("", "", "", "fp32", channels=2, stride=8, scale=0.5, shift=0.1)
_OBSERVERS: dict[str, Observers] = {  # of a key, or of all keys of a section
    "model": {
        "shapes": lambda config, network: network.with_config(config).shapes(),
        "answer": lambda config, network: _answer(network.with_config(config)),
        "bytes kept for backward": lambda config, network: _saved(network.with_config(config)),
    },
    "flow": {"timesteps": lambda config, _: _timesteps(config)},
    "repa": {"training loss": _training_loss, "aligned updates": lambda config, _: _aligned_updates(config)},
    "tread": {"training loss": _training_loss},
    "dropout": {"modes": lambda config, _: flow.dropout_modes(_UNIFORM, config.dropout.shares).tolist()},
    "ema": {"decay": _decays},
    "ema.averages": {"decay": lambda config, _: [schedule.power_decay(99, width) for width in config.ema.averages]},
    "sample": {"latents drawn": lambda config, network: _drawn(config, network).flatten().tolist()},
    "sample.cfg_weak": {"latents drawn away from an untrained model": _drawn_from_weak},
    **{f"train.{key}": _SCHEDULE for key in ("steps", "lr", "min_lr", "warmup_steps", "schedule", "cooldown_steps")},
    **{f"data.{key}": _BUCKETS for key in ("area", "buckets")},
    "data.patch_storage": {"stored bytes": _stored},
    "data.latent_scaling": {
        "normalisation": lambda config, _: latent_norm(config.data.latent_scaling, _CODEC, (1.0, 2.0), (3.0, 4.0))
    },
}


# Other values


def _moved_along(section: str, key: str, value: object, values: Section) -> Section:
    """Other values for keys that depend on this one."""
    shares = {name: share for name, share in values.items() if isinstance(share, float)}
    if section == "dropout" and isinstance(value, float):  # the shares sum to 1
        largest = max(shares.keys() - {key}, key=shares.__getitem__)
        return {largest: shares[largest] - (value - shares[key])}
    if (section, key) == ("ema", "warmup"):
        return {"warmup_steps": 10 if value == "linear" else None}
    if (section, key) == ("train", "schedule"):
        return {"cooldown_steps": None}
    return {}


def _other_values(section: str, key: str, value: object) -> list[object]:
    """The other choices of a key that has choices; else values near its own."""
    model = {field.alias or name: field.annotation for name, field in Config.model_fields.items()}[section]
    assert isinstance(model, type) and issubclass(model, BaseModel)  # a section is one
    annotation = model.model_fields[key].annotation
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    return [choice for choice in choices if choice != value] or neighbours(value, least=0) or _USUAL.get(key, [])
