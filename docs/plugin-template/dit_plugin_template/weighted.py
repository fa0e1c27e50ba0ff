"""Rectified flow whose loss counts noisy timesteps more: the family of "dit" with another loss.

w(t)·‖v(z_t, t, conditions) − (ε − x0)‖²     w(t) = (1 + p)·tᵖ, whose mean over t in [0, 1] is 1
"""

from __future__ import annotations

from dataclasses import replace

from dit_plugin_template.weighted_config import WeightedConfig
from dittool.families import flow


def loss(data: flow.FlowData, model: flow.Forward, batch: flow.Batch) -> flow.FlowLoss:
    assert isinstance(data.config, WeightedConfig)  # this family is only built for it
    p = data.config.weighting.power
    found = flow.loss(data, model, batch)
    return replace(found, per_sample=(1 + p) * found.t.to(found.per_sample.device) ** p * found.per_sample)  # (B,)


FAMILY = replace(flow.FAMILY, loss=loss)
