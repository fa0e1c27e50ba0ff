"""Further variants of `foreign_kinds.Net`: what it answers with, what it draws, where its positions come from, and
inputs that switch each other off.

B batch · N tokens
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.audit.foreign_kinds import WIDTH, Block, Net, Turning, sincos


class AnAnswerEach(Net):
    """A list with a picture for each sample."""

    def forward(self, x, t, y):
        return list(super().forward(x, t, y))


class AnAnswerEachOfOneLabel(AnAnswerEach):
    def condition(self, t, y):
        return super().condition(t, y[:1].expand_as(y))


class AnAnswerEachWithoutPlaces(AnAnswerEach):
    def positions(self, rows, columns):
        return torch.zeros(1, 1, WIDTH)


class ParameterWithoutValues(Net):
    def __init__(self, depth=3):
        super().__init__(depth)
        self.registers = nn.Parameter(torch.zeros(1, 0, WIDTH))

    def run(self, z, c):
        return super().run(torch.cat([self.registers.expand(len(z), -1, -1), z], 1), c)


class ParameterWithoutValuesAndADeadOne(ParameterWithoutValues):
    def __init__(self, depth=3):
        super().__init__(depth)
        self.unused = nn.Linear(WIDTH, WIDTH)


# Chance


class NoiseOnItsInput(Net):
    def forward(self, x, t, y):
        return super().forward(x + 0.1 * torch.randn_like(x), t, y)


class NoiseOnItsInputExchanged(NoiseOnItsInput):
    def positions(self, rows, columns):
        return sincos(rows, columns, swapped=True)


class NoiseOnItsTokensWithoutPlaces(Net):
    def positions(self, rows, columns):
        return torch.zeros(1, 1, WIDTH)

    def run(self, z, c):
        return super().run(F.dropout(z, 0.1), c)


# Positions that hardly show


class NearlyEqualLogits(Turning):
    """Queries and keys so small that attention is nearly uniform."""

    def __init__(self, depth=3):
        super().__init__(depth)
        for block in self.blocks:
            nn.init.normal_(block.qkv.weight, std=2e-3)


class NearlyEqualLogitsExchanged(NearlyEqualLogits):
    def __init__(self, depth=3):
        super().__init__(depth)
        for block in self.blocks:
            block.swapped = True


class NearlyEqualLogitsWithoutPlaces(Net):
    block = Block

    def __init__(self, depth=3):
        super().__init__(depth)
        for block in self.blocks:
            nn.init.normal_(block.qkv.weight, std=2e-3)

    def positions(self, rows, columns):
        return torch.zeros(1, 1, WIDTH)


class PositionsOfTheCaller(Net):
    """Angles that a pipeline makes, and that may be left out."""

    class block(Block):
        angles = None

        def attend(self, x):
            if self.angles is None:
                return super().attend(x)
            q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            cos, sin = self.angles

            def turned(part):
                a, b = part.chunk(2, -1)
                return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

            return self.out(F.scaled_dot_product_attention(turned(q), turned(k), v).transpose(1, 2).flatten(2))

    def positions(self, rows, columns):
        return torch.zeros(1, 1, WIDTH)

    def forward(self, x, t, y, image_rotary_emb=None):
        for block in self.blocks:
            block.angles = image_rotary_emb
        return super().forward(x, t, y)


class PositionsOfTheCallerFed(PositionsOfTheCaller):
    pass


class PositionsOfTheCallerUnread(PositionsOfTheCaller):
    """They are taken, and nothing looks at them."""

    def forward(self, x, t, y, image_rotary_emb=None):
        return super().forward(x, t, y)


# Inputs that switch others off


class LabelSwitchedOff(Net):
    """Where `drop` is not zero a null label stands for the sample's."""

    def forward(self, x, t, y, drop):
        return super().forward(x, t, torch.where(drop.bool().reshape(len(drop), -1)[:, 0], 10, y))


class LabelSwitchedOffAlways(LabelSwitchedOff):
    def forward(self, x, t, y, drop):
        return super().forward(x, t, y, torch.ones_like(drop))


class LabelSwitchedOffAndShared(LabelSwitchedOff):
    def condition(self, t, y):
        return super().condition(t, y[:1].expand_as(y))


class TextSwitchedOn(Net):
    """`has_text` multiplies the text."""

    def __init__(self, depth=3):
        super().__init__(depth)
        self.text = nn.Linear(12, WIDTH)

    def forward(self, x, t, text, has_text):
        return self.drawn(
            x, lambda z: self.times(t) + self.text(text).mean(1) * has_text[:, None] + self.labels.weight[0]
        )


class TextSwitchedOnUnread(TextSwitchedOn):
    def forward(self, x, t, text, has_text):
        return super().forward(x, t, text * 0, has_text)


class TokensSwitchedOff(Net):
    """Whole numbers index the samples whose text is dropped, as a mask that was guessed wrongly does."""

    def __init__(self, depth=3):
        super().__init__(depth)
        self.text = nn.Linear(12, WIDTH)

    def forward(self, x, t, text, text_drop):
        tokens = self.text(text)
        tokens[text_drop] *= 0.0
        return self.drawn(x, lambda z: self.times(t) + tokens.mean(1) + self.labels.weight[0])


class LayersOfWhichSomeAreChosen(Net):
    """A list of a text's states, layer by layer."""

    def __init__(self, depth=3):
        super().__init__(depth)
        self.text = nn.Linear(12, WIDTH)

    def forward(self, x, t, states):
        kept = self.text(states[0] + states[2]).mean(1) + self.labels.weight[0]
        return self.drawn(x, lambda z: self.times(t) + kept)


class LayersOfWhichNoneIsRead(LayersOfWhichSomeAreChosen):
    def forward(self, x, t, states):
        return super().forward(x, t, [state * 0 for state in states])


KINDS: dict[str, dict[str, str]] = {  # what must be answered; all else passes or skips
    "AnAnswerEach": {},
    "AnAnswerEachOfOneLabel": {"C8": "fail"},
    "AnAnswerEachWithoutPlaces": {"E2": "fail"},
    "ParameterWithoutValues": {},
    "ParameterWithoutValuesAndADeadOne": {"C6": "warn"},
    "NoiseOnItsInput": {"R2": "warn"},
    "NoiseOnItsInputExchanged": {"R2": "warn", "E2": "fail"},
    "NoiseOnItsTokensWithoutPlaces": {"R2": "warn", "E2": "fail"},
    "NearlyEqualLogits": {},
    "NearlyEqualLogitsExchanged": {"E2": "fail"},
    "NearlyEqualLogitsWithoutPlaces": {"E2": "fail"},
    "PositionsOfTheCaller": {},
    "PositionsOfTheCallerFed": {},
    "PositionsOfTheCallerUnread": {"E2": "fail"},
    "LabelSwitchedOff": {},
    "LabelSwitchedOffAlways": {"C6": "fail"},
    "LabelSwitchedOffAndShared": {"C8": "fail"},
    "TextSwitchedOn": {},
    "TextSwitchedOnUnread": {"C6": "fail"},
    "TokensSwitchedOff": {},
    "LayersOfWhichSomeAreChosen": {},
    "LayersOfWhichNoneIsRead": {"C6": "fail"},
}


def with_angles(model, height=None, width=None):
    rows, columns = (height or 16) // 2, (width or 16) // 2
    index, turns = torch.arange(rows * columns), 0.2 ** (torch.arange(4) / 4)
    angles = torch.cat([(index // columns)[:, None] * turns, (index % columns)[:, None] * turns], 1)
    x, y = torch.randn(2, 4, rows * 2, columns * 2), torch.tensor([1, 3])
    return {"x": x, "t": torch.tensor([200.0, 700.0]), "y": y, "image_rotary_emb": (angles.cos(), angles.sin())}


def with_switch(model, height=None, width=None):
    x, text = torch.randn(2, 4, height or 16, width or 16), torch.randn(2, 7, 12)
    return {"x": x, "t": torch.tensor([200.0, 700.0]), "text": text, "has_text": torch.zeros(2)}


def with_drop(model, height=None, width=None):
    x, text = torch.randn(2, 4, height or 16, width or 16), torch.randn(2, 7, 12)
    return {"x": x, "t": torch.tensor([200.0, 700.0]), "text": text, "text_drop": torch.tensor([[1] * 7, [0] * 7])}


def with_layers(model, height=None, width=None):
    x, t = torch.randn(2, 4, height or 16, width or 16), torch.tensor([200.0, 700.0])
    return {"x": x, "t": t, "states": [torch.randn(2, 7, 12) for _ in range(4)]}


EXAMPLES = {
    "LayersOfWhichSomeAreChosen": "with_layers",
    "LayersOfWhichNoneIsRead": "with_layers",
    "PositionsOfTheCallerFed": "with_angles",
    "PositionsOfTheCallerUnread": "with_angles",
    "TextSwitchedOn": "with_switch",
    "TextSwitchedOnUnread": "with_switch",
    "TokensSwitchedOff": "with_drop",
}
