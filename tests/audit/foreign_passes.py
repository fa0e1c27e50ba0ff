"""Mixins about how a forward pass runs: what it recomputes, what it answers, what it draws, what it needs. Each goes
with each style of `foreign_styles`. B batch · N tokens · D width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.audit.foreign_styles import WIDTH, Hooks, recomputed

# Gradient checkpointing


class RecomputedInside(Hooks):
    """Blocks that recompute parts of themselves"""

    use_checkpoint = True

    def step(self, block, z, c):
        if not (self.use_checkpoint and self.training):
            return super().step(block, z, c)
        return recomputed(lambda z, c: super(RecomputedInside, self).step(block, z, c), z, c)


class RecomputedByTwo(Hooks):
    """Groups of two blocks recomputed at once"""

    use_checkpoint = True

    def run(self, z, c):
        def two(z, c, i):
            for block in self.blocks[i : i + 2]:
                z = self.step(block, z, c)
            return z

        for i in range(0, len(self.blocks), 2):
            z = recomputed(two, z, c, i) if self.use_checkpoint and self.training else two(z, c, i)
        return z


class SwitchRaises(Hooks):
    """enable_gradient_checkpointing() that raises"""

    def enable_gradient_checkpointing(self):
        return self.no_such_list


class SwitchIgnored(Hooks):
    """enable_gradient_checkpointing() that sets what nothing reads"""

    def enable_gradient_checkpointing(self):
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self):
        self.gradient_checkpointing = False


class NeverOffAgain(Hooks):
    """Gradient checkpointing that cannot be switched off again"""

    again = False

    def enable_gradient_checkpointing(self):
        self.again = True

    def disable_gradient_checkpointing(self):
        pass

    def step(self, block, z, c):
        if not (self.again and self.training):
            return super().step(block, z, c)
        return recomputed(lambda z, c: super(NeverOffAgain, self).step(block, z, c), z, c)


# Answers


@dataclass
class Pair:
    text: Tensor
    pictures: dict[str, Tensor]


class TextFirst(Hooks):
    """A vector of the condition in front of the picture"""

    def given(self, vector):
        self.kept = vector
        return vector

    def answer(self, picture):
        return self.kept, picture


class Nested(TextFirst):
    """A dataclass that holds the picture in a dictionary"""

    def answer(self, picture):
        return Pair(self.kept, {"sample": picture})


class AnswerEach(Hooks):
    """A list with a picture for each sample"""

    def answer(self, picture):
        return list(picture)


class AnswerEachMixed(AnswerEach):
    """A list with a picture for each sample, and the first one's condition for all"""

    def given(self, vector):
        return vector[:1].expand_as(vector)


class DeafBeforeTheText(TextFirst):
    """A condition that acts on nothing, beside an answer of constants"""

    def given(self, vector):
        self.kept = torch.ones_like(vector)
        return vector * 0


# Chance, and no numbers


class Noisy(Hooks):
    """Noise on the tokens that eval() does not stop"""

    def run(self, z, c):
        return super().run(z + 0.1 * torch.randn_like(z), c)


class NoisyExchanged(Noisy):
    """Noise on the tokens, and rows and columns exchanged"""

    def place(self, rows, columns):
        return super().place(columns, rows)


class NoisyDeaf(Noisy):
    """Noise on the tokens, and a condition that acts on nothing"""

    def given(self, vector):
        return vector * 0


class OpenedInfinite(Hooks):
    """Infinite as soon as gates are open"""

    @staticmethod
    def gate(gate):
        return gate / (gate.abs().amax() == 0)


class CudaInTraining(Hooks):
    """`.cuda()` in training mode"""

    def time(self, t):
        return t.cuda() if self.training else t


class MissingPackage(Hooks):
    """A package that is missing, imported in training mode"""

    def run(self, z, c):
        if self.training:
            import no_such_package_of_anyone  # noqa: F401
        return super().run(z, c)


class NoValues(Hooks):
    """A parameter without values"""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.none = nn.Parameter(torch.zeros(0, WIDTH))
