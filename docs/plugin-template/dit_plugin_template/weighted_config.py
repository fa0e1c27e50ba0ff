"""What can be configured for `model.arch = "dit-weighted"`. Light: no torch, so that `dit presets` stays quick."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dittool.config.architectures import ARCHITECTURES, Architecture
from dittool.config.schema import Config, Model
from dittool.config.values import Section


class WeightedModel(Model):
    """The transformer of "dit", under a name of its own."""

    arch: Literal["dit-weighted"]


class Weighting(Section):
    power: Annotated[float, Field(ge=0)] = 0.5  # of t in the weight; 0 is the loss of "dit"


class WeightedConfig(Config):
    """That of rectified flow, with one section more."""

    model: WeightedModel
    weighting: Weighting = Weighting()


ARCHITECTURE = Architecture(
    schema=WeightedConfig,
    family="dit_plugin_template.weighted",  # with a dot: a module of this package, imported when it is first used
    title="a rectified-flow transformer that counts noisy timesteps more",
    conditions=ARCHITECTURES["dit"].conditions,
    served_by=ARCHITECTURES["dit"].served_by,
)
