"""Further variants of `foreign_kinds.Net`: what its inputs are, how samples and chance mix, what its weights and
arguments are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.audit.foreign_kinds import WIDTH, Net


@dataclass
class Given:
    text: Tensor
    pooled: Tensor
    mask: Tensor


class ConditionsInADataclass(Net):
    pooled_acts = True

    def __init__(self, depth=3):
        super().__init__(depth)
        del self.labels  # text and a pooled vector take their place
        self.text, self.pooled = nn.Linear(12, WIDTH), nn.Linear(5, WIDTH)

    def forward(self, x, t, given):
        kept = given.mask.float()[..., None]
        c = self.times(t) + (self.text(given.text) * kept).sum(1) / kept.sum(1)
        return {"aux": [c], "picture": self.drawn(x, lambda z: c + self.pooled(given.pooled) * self.pooled_acts)}


class PooledOfADataclassUnread(ConditionsInADataclass):
    pooled_acts = False


class MaskOfPadding(ConditionsInADataclass):
    """Ones hide, as of a key_padding_mask."""

    def forward(self, x, t, given):
        return super().forward(x, t, Given(given.text, given.pooled, ~given.mask))


class ClassesOfPlaces(Net):
    """A map of classes, looked up for each token: no position."""

    def forward(self, x, t, segmentation):
        rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
        z = self.patches(x).flatten(2).transpose(1, 2) + self.labels(segmentation).flatten(1, 2)
        z = self.head(self.run(z + self.positions(rows, columns), self.times(t)))
        return F.fold(z.transpose(1, 2), x.shape[-2:], 2, stride=2)


class CountsItsCalls(Net):
    calls = 0

    def run(self, z, c):
        self.calls += 1
        return super().run(z, c) * (1 + 0.01 * self.calls)


class SwitchThatCrashes(Net):
    def __init__(self, depth=3, fast=False):
        super().__init__(depth)
        self.fast = fast

    def run(self, z, c):
        return self.run_fast(z, c) if self.fast else super().run(z, c)


class LabelAveragedOverTheBatch(Net):
    def condition(self, t, y):
        return super().condition(t, y) + self.labels(y).mean(0)


class NormOverTheBatch(Net):
    def __init__(self, depth=3):
        super().__init__(depth)
        self.batch_norm = nn.BatchNorm1d(WIDTH)

    def run(self, z, c):
        return self.batch_norm(super().run(z, c).transpose(1, 2)).transpose(1, 2)


class NeverWritten(Net):
    def __init__(self, depth=3):
        super().__init__(depth)
        self.gain = nn.Parameter(torch.empty(WIDTH))

    def run(self, z, c):
        return super().run(z, c) * self.gain


class DeviceInTraining(Net):
    def condition(self, t, y):
        return super().condition(t, y.cuda() if self.training else y)


class ArgumentBesideAnother(Net):
    def __init__(self, depth=3, scaled=False, factor=0.5):
        super().__init__(depth)
        self.scaled, self.factor = scaled, factor

    def run(self, z, c):
        return super().run(z * self.factor if self.scaled else z, c)


class ArgumentPastAThreshold(Net):
    def __init__(self, depth=3, most_tokens=1000):
        super().__init__(depth)
        self.most_tokens = most_tokens

    def run(self, z, c):
        return super().run(z * 0.5 if z.shape[1] > self.most_tokens else z, c)


class ArgumentUnread(Net):
    def __init__(self, depth=3, bound=0.5):
        super().__init__(depth)


class StoredForASampler(Net):
    def __init__(self, depth=3, sigma_min=0.002):
        super().__init__(depth)
        self.sigma_min = sigma_min


class HalfOnAGpu(Net):
    def __init__(self, depth=3, use_half=False):
        super().__init__(depth)
        self.use_half = use_half

    def run(self, z, c):
        half = self.use_half and z.device.type == "cuda"
        return super().run(z.half(), c.half()).float() if half else super().run(z, c)


class FlagOfForward(Net):
    """A token and a factor that act where the caller turns a flag alone."""

    def __init__(self, depth=3, ratio=0.3):
        super().__init__(depth)
        self.ratio, self.blank = ratio, nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x, t, y, masked=False):
        return self.drawn(x, lambda z: self.condition(t, y) + (self.blank + self.ratio if masked else 0))


class BlockLeftOut(Net):
    def run(self, z, c):
        for block in [*self.blocks[:1], *self.blocks[2:]]:
            z = block(z, c)
        return z


class LogarithmOfNoise(Net):
    """Its embedding hardly turns over [0, 1], which is not what it is given in."""

    def forward(self, x, log_snr, y):
        return super().forward(x, log_snr / 20, y)


class TimeHardlyTurns(Net):
    def forward(self, x, t, y):
        return super().forward(x, t / 20, y)


KINDS: dict[str, dict[str, str]] = {  # what must be answered; all else passes or skips
    "ConditionsInADataclass": {},
    "PooledOfADataclassUnread": {"C6": "fail"},
    "MaskOfPadding": {},
    "ClassesOfPlaces": {},
    "CountsItsCalls": {"R2": "warn"},
    "SwitchThatCrashes": {"C1": "warn"},
    "LabelAveragedOverTheBatch": {"C8": "fail"},
    "NormOverTheBatch": {"C8": "fail"},
    "DeviceInTraining": {"R1": "warn"},
    "ArgumentBesideAnother": {},
    "ArgumentPastAThreshold": {},
    "ArgumentUnread": {"C1": "fail"},
    "StoredForASampler": {"C1": "warn"},
    "HalfOnAGpu": {},
    "FlagOfForward": {},
    "BlockLeftOut": {"C6": "fail"},
    "LogarithmOfNoise": {},
    "TimeHardlyTurns": {"C6": "fail"},
}


def given(model, height=None, width=None):
    conditions = Given(torch.randn(2, 7, 12), torch.randn(2, 5), torch.arange(7)[None] < torch.tensor([[7], [4]]))
    return {"x": torch.randn(2, 4, height or 16, width or 16), "t": torch.tensor([200.0, 700.0]), "given": conditions}


def padded(model, height=None, width=None):
    inputs = given(model, height, width)
    return inputs | {"given": Given(inputs["given"].text, inputs["given"].pooled, ~inputs["given"].mask)}


def classes(model, height=None, width=None):
    rows, columns = (height or 16) // 2, (width or 16) // 2
    x, segmentation = torch.randn(2, 4, rows * 2, columns * 2), torch.arange(rows * columns).view(rows, columns) % 11
    return {"x": x, "t": torch.tensor([200.0, 700.0]), "segmentation": segmentation.expand(2, -1, -1)}


def in_unit_time(model, height=None, width=None):
    time = "log_snr" if isinstance(model, LogarithmOfNoise) else "t"
    x = torch.randn(2, 4, height or 16, width or 16)
    return {"x": x, time: torch.tensor([0.2, 0.7]), "y": torch.tensor([1, 2])}


EXAMPLES = {
    "LogarithmOfNoise": "in_unit_time",
    "TimeHardlyTurns": "in_unit_time",
    "MaskOfPadding": "padded",
    "ClassesOfPlaces": "classes",
    "ConditionsInADataclass": "given",
    "PooledOfADataclassUnread": "given",
}
