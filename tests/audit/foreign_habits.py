"""Habits and faults that a model of any style may have, put from outside into clean models of three styles: by hooks
around its forward, by its weights, by a method.

B batch
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.audit.foreign_models import fused
from tests.audit.foreign_stages import parallel
from tests.audit.foreign_streams import rotary

# style → the clean model, its names of time and of a condition, and the bias of its last block's modulation
STYLES: dict[str, tuple[Callable[[], nn.Module], str, str, Callable[[Any], Tensor]]] = {
    "fused": (fused, "t", "y", lambda model: model.blocks[-1].adaLN_modulation[1].bias),
    "rotary": (rotary, "t", "y", lambda model: model.trunk["layers"][-1].adaLN.bias),
    "parallel": (parallel, "timestep", "pooled", lambda model: model.layers[-1].modulation.bias),
}


def _with_input(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    def changed(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return args, {**kwargs, name: change(kwargs[name])}

    model.register_forward_pre_hook(changed, with_kwargs=True)


def _with_output(model: nn.Module, change: Callable[[Tensor], object]) -> None:
    model.register_forward_hook(
        lambda _module, _args, output: change(output["sample"] if isinstance(output, dict) else output)
    )


def second_output(model, time, condition, bias):
    """A vector of each sample in front of the picture."""
    _with_output(model, lambda picture: (picture.mean(dim=(2, 3)), picture))


def nested_output(model, time, condition, bias):
    """The picture two dictionaries deep."""
    _with_output(model, lambda picture: {"losses": {}, "out": {"aux": [picture.mean()], "picture": picture}})


def half_opened_time(model, time, condition, bias):
    """A time that moves half as far."""
    _with_input(model, time, lambda t: t * 0.5)


def one_time_for_all(model, time, condition, bias):
    """The first sample's time used for the whole batch."""
    _with_input(model, time, lambda t: t[:1].expand_as(t))


def averaged_time(model, time, condition, bias):
    """A time that is averaged over the batch."""
    _with_input(model, time, lambda t: t.float().mean().expand_as(t).to(t.dtype))


def batch_statistics(model, time, condition, bias):
    """An answer whose mean over the batch is taken away."""
    _with_output(model, lambda picture: picture - picture.mean(dim=0, keepdim=True))


def not_a_number(model, time, condition, bias):
    """An answer that is NaN."""
    _with_output(model, lambda picture: picture * float("nan"))


def noise_in_evaluation(model, time, condition, bias):
    """Dropout that eval() does not stop."""
    _with_output(model, lambda picture: F.dropout(picture, 0.1))


def deaf_behind_noise(model, time, condition, bias):
    """A condition that acts on nothing, hidden by dropout that eval() does not stop."""
    _with_input(model, condition, lambda value: value * 0)
    noise_in_evaluation(model, time, condition, bias)


def whole_times(model, time, condition, bias):
    """A time that is cut to whole numbers."""
    _with_input(model, time, torch.floor)


def last_block_open(model, time, condition, bias):
    """Every block begins closed but the last."""
    nn.init.ones_(bias(model))


def switch_that_raises(model, time, condition, bias):
    """A method enable_gradient_checkpointing that raises."""
    model.enable_gradient_checkpointing = lambda: model.no_such_list


HABITS: dict[str, set[str]] = {  # the rules that must alarm; none for a sound habit
    "second_output": set(),
    "nested_output": set(),
    "half_opened_time": set(),
    "one_time_for_all": {"C8"},
    "averaged_time": {"C8"},
    "batch_statistics": {"C8"},
    "not_a_number": {"R1"},
    "noise_in_evaluation": {"R2"},
    "deaf_behind_noise": {"C6", "R2"},
    "whole_times": {"C6"},
    "last_block_open": {"E1"},
    "switch_that_raises": {"E5"},
}


def with_habit(style: str, habit: str) -> nn.Module:
    """The factory: a clean model of a style with one habit."""
    build, time, condition, bias = STYLES[style]
    model = build()
    globals()[habit](model, time, condition, bias)
    return model
