"""Foreign models whose latent stands inside of an argument, or has its channels last; each also deaf to its label."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from tests.audit.foreign_kinds import Net


class Hearing(Net):
    def __init__(self, depth=2, deaf=False):
        super().__init__(depth)
        self.deaf = deaf

    def drawn_from(self, x, t, y):
        return self.drawn(x, lambda z: self.times(t) + self.labels(y) * (0 if self.deaf else 1))


class InADictionary(Hearing):
    def forward(self, batch):
        return self.drawn_from(batch["latents"], batch["timesteps"], batch["labels"])


class InADictionaryReadElsewhere(Hearing):
    def forward(self, batch):
        x, label = self.unpacked(batch)
        return {"prediction": self.drawn_from(x, batch.get("sigma"), label)}

    def unpacked(self, sample):
        return sample["image"], sample["class_id"]


class InAnObject(Hearing):
    def forward(self, inputs):
        return self.drawn_from(inputs.latent, inputs.timestep, inputs.label)


@dataclass
class Batch:
    latent: Tensor
    timestep: Tensor
    label: Tensor


class InADataclass(Hearing):
    def forward(self, data: Batch):
        return self.drawn_from(data.latent, data.timestep, data.label)


class InAList(Hearing):
    def forward(self, batch):
        x, t, y = batch
        return self.drawn_from(x, t, y)


class ByPlace(Hearing):
    def forward(self, batch):
        return self.drawn_from(batch[0], batch[1], batch[2])


class AsKeywords(Hearing):
    def forward(self, **given):
        return self.drawn_from(given["x"], given["t"], given["y"])


class ChannelsLast(Hearing):
    def forward(self, x, t, y):
        return self.drawn_from(x.movedim(-1, 1), t, y).movedim(1, -1)


class ChannelsLastInADictionary(Hearing):
    def forward(self, batch):
        x = batch["noisy_latents"].movedim(-1, 1)
        return {"prediction": self.drawn_from(x, batch["t"], batch["y"]).movedim(1, -1)}


HOLDERS = (
    InADictionary,
    InADictionaryReadElsewhere,
    InAnObject,
    InADataclass,
    InAList,
    ByPlace,
    AsKeywords,
    ChannelsLast,
    ChannelsLastInADictionary,
)


def _values(height=None, width=None):
    return torch.randn(2, 4, height or 8, width or 8), torch.tensor([100.0, 700.0]), torch.tensor([1, 2])


def dictionary(model, height=None, width=None):
    return {"batch": dict(zip(("latents", "timesteps", "labels"), _values(height, width), strict=True))}


def bare_dictionary(model, height=None, width=None):
    return dictionary(model, height, width)["batch"]


def instance(model, height=None, width=None):
    return SimpleNamespace(**dict(zip(("latent", "timestep", "label"), _values(height, width), strict=True)))


def parts(model):
    return [list(_values())]


def channels_last(model, height=None, width=None):
    x, t, y = _values(height, width)
    return {"x": x.movedim(1, -1), "t": t, "y": y}


EXAMPLES = {
    "dictionary": InADictionary,
    "bare_dictionary": InADictionary,
    "instance": InAnObject,
    "parts": InAList,
    "channels_last": ChannelsLast,
}
