"""Habits and faults as mixins, each of which goes with each style of `foreign_styles`: those of structure, positions,
samples and time stand here, those of how a forward pass runs in `foreign_passes`.

`made(style, habit)` is the factory. B batch · N tokens · D width
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.audit.foreign_passes import (
    AnswerEach,
    AnswerEachMixed,
    CudaInTraining,
    DeafBeforeTheText,
    MissingPackage,
    Nested,
    NeverOffAgain,
    Noisy,
    NoisyDeaf,
    NoisyExchanged,
    NoValues,
    OpenedInfinite,
    RecomputedByTwo,
    RecomputedInside,
    SwitchIgnored,
    SwitchRaises,
    TextFirst,
)
from tests.audit.foreign_styles import STYLES, WIDTH, Config, Hooks


class Clean(Hooks):
    """Nothing else"""


# Chains


class EncoderDecoder(Hooks):
    """An encoder whose mean joins the condition, and a decoder, in one list"""

    def run(self, z, c):
        seen = z
        for block in self.blocks[:1]:
            seen = self.step(block, seen, c)
        for block in self.blocks[1:]:
            z = self.step(block, z, c + seen.mean(1))
        return z


class EncoderDecoderOpen(EncoderDecoder):
    """An encoder and a decoder in one list, whose last block is open"""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        nn.init.ones_(self.blocks[-1].modulation.bias)


class SkipsWithNone(Hooks):
    """Skips in a list that holds None"""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.joins = nn.ModuleList([None, *(nn.Linear(2 * WIDTH, WIDTH, bias=False) for _ in self.blocks[1:])])

    def run(self, z, c):
        first = z
        for block, join in zip(self.blocks, self.joins, strict=True):
            z = self.step(block, z if join is None else join(torch.cat([z, first], -1)), c)
        return z


class FirstOpen(Hooks):
    """Every block begins closed but the first"""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        nn.init.normal_(self.blocks[0].modulation.weight)


# Modulation


class TanhGates(Hooks):
    """tanh around the gates"""

    @staticmethod
    def gate(gate):
        return gate.tanh()


class SmallGates(Hooks):
    """Gates times a tenth"""

    @staticmethod
    def gate(gate):
        return 0.1 * gate


class OnePlusGates(Hooks):
    """Gates that begin at one"""

    @staticmethod
    def gate(gate):
        return 1 + gate


class ScaleAlone(Hooks):
    """A scale without its 1 +"""

    one = 0.0


class NormBehind(Hooks):
    """A norm behind the residual"""

    @staticmethod
    def after(x):
        return F.layer_norm(x, x.shape[-1:])


# Positions


class Exchanged(Hooks):
    """Rows and columns exchanged"""

    def place(self, rows, columns):
        return super().place(columns, rows)


class ExchangedWhenWide(Hooks):
    """Rows and columns exchanged of wide pictures"""

    def place(self, rows, columns):
        return super().place(columns, rows) if columns > rows else super().place(rows, columns)


class Clamped(Hooks):
    """Places clamped to a table of ten"""

    def place(self, rows, columns):
        row, column = super().place(rows, columns)
        return row.clamp(max=9), column.clamp(max=9)


class CutOff(Hooks):
    """A table of eight places a side, beyond which the first are taken again"""

    def place(self, rows, columns):
        row, column = super().place(rows, columns)
        return row % 8, column % 8


class SequenceAlone(Hooks):
    """The place in the sequence alone"""

    def place(self, rows, columns):
        index = torch.arange(rows * columns)
        return index, index


class NoPlaces(Hooks):
    """No positions"""

    def place(self, rows, columns):
        row, column = super().place(rows, columns)
        return row * 0, column * 0


class ByTheSide(Hooks):
    """Places as shares of the larger side"""

    def place(self, rows, columns):
        row, column = super().place(rows, columns)
        return 8 * row / max(rows, columns), 8 * column / max(rows, columns)


class FromTheMiddle(Hooks):
    """Places counted from the middle"""

    def place(self, rows, columns):
        row, column = super().place(rows, columns)
        return row - rows / 2, column - columns / 2


# Samples and time


class OneTime(Hooks):
    """The first sample's time for all"""

    def time(self, t):
        return t[:1].expand_as(t)


class MeanCondition(Hooks):
    """The condition less its mean over the batch"""

    def given(self, vector):
        return vector - vector.mean(0)


class NormOfTheBatch(Hooks):
    """A norm over the batch, in training mode alone"""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batch_norm = nn.BatchNorm1d(WIDTH)

    def given(self, vector):
        return self.batch_norm(vector)


class RolledCondition(Hooks):
    """Each sample is given its neighbour's condition"""

    def given(self, vector):
        return vector.roll(1, 0)


class WholeTimes(Hooks):
    """Times cut to whole numbers"""

    def time(self, t):
        return t.long()


class DeafToTime(Hooks):
    """A time that acts on nothing"""

    def time(self, t):
        return t * 0


class RegistersMidway(Hooks):
    """Tokens that join between two blocks"""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.registers = nn.Parameter(torch.randn(1, 3, WIDTH))

    def run(self, z, c):
        for i, block in enumerate(self.blocks):
            if i == 1:
                z = torch.cat([self.registers.expand(len(z), -1, -1), z], 1)
                if self.angle is not None:
                    self.angle = torch.cat([self.angle[:1].expand(3, -1) * 0, self.angle])
            z = self.step(block, z, c)
        return z[:, 3:]


HABITS: dict[type[Hooks], dict[str, str]] = {  # what must be answered; all else passes or skips
    Clean: {},
    RecomputedInside: {},
    RecomputedByTwo: {},
    SwitchRaises: {"E5": "fail"},
    SwitchIgnored: {"E5": "fail"},
    NeverOffAgain: {"E5": "fail"},
    TextFirst: {},
    Nested: {},
    AnswerEach: {},
    AnswerEachMixed: {"C8": "fail"},
    DeafBeforeTheText: {"C6": "fail"},
    Noisy: {"R2": "warn"},
    NoisyExchanged: {"R2": "warn", "E2": "fail"},
    NoisyDeaf: {"R2": "warn", "C6": "fail"},
    OpenedInfinite: {"R1": "fail"},
    CudaInTraining: {"R1": "warn"},
    MissingPackage: {"R1": "warn"},
    NoValues: {},
    EncoderDecoder: {},
    EncoderDecoderOpen: {"E1": "fail"},
    SkipsWithNone: {},
    FirstOpen: {"E1": "fail"},
    TanhGates: {},
    SmallGates: {},
    OnePlusGates: {"E1": "warn"},
    ScaleAlone: {"E1": "fail"},
    NormBehind: {"E1": "warn"},
    Exchanged: {"E2": "fail"},
    ExchangedWhenWide: {"E2": "fail"},
    Clamped: {"E2": "fail"},
    CutOff: {"E2": "fail"},
    SequenceAlone: {"E2": "fail"},
    NoPlaces: {"E2": "fail"},
    ByTheSide: {},
    FromTheMiddle: {},
    OneTime: {"C8": "fail"},
    MeanCondition: {"C8": "fail"},
    NormOfTheBatch: {"C8": "fail"},
    RolledCondition: {"C8": "fail"},
    WholeTimes: {"C6": "fail"},
    DeafToTime: {"C6": "fail"},
    RegistersMidway: {},
}


def made(style: str, habit: str) -> nn.Module:
    """The factory: a style with one habit."""
    mixin = next(one for one in HABITS if one.__name__ == habit)
    kind = type(habit, (mixin, STYLES[style]), {})
    return kind(Config()) if style == "configured" else kind()
