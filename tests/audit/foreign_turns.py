"""Foreign models whose positions turn queries and keys, rightly and in ways that are no rotation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.audit.foreign_kinds import HEADS, WIDTH, Block, Net, sincos


class Turned(Block):
    """Halves are turned by rows' and columns' angles"""

    columns, by_hand = 0, False

    def angles(self, rows, columns):
        """(N, d) cosines and sines' angles, the same in both halves."""
        quarter = WIDTH // HEADS // 4
        index, frequency = torch.arange(rows * columns), 0.2 ** (torch.arange(quarter) / quarter)
        half = torch.cat([(index // columns)[:, None] * frequency, (index % columns)[:, None] * frequency], 1)
        return torch.cat([half, half], 1)

    def turned(self, part, angle):
        a, b = part.chunk(2, -1)
        return part * angle.cos() + torch.cat([-b, a], -1) * angle.sin()

    def keys(self, part, angle):
        return self.turned(part, angle)

    def attend(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        angle = self.angles(x.shape[1] // self.columns, self.columns)
        q, k = self.turned(q, angle), self.keys(k, angle)
        if self.by_hand:
            mixed = (torch.einsum("bhnd,bhmd->bhnm", q, k) * q.shape[-1] ** -0.5).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Neighbours(Turned):
    """Neighbours are turned"""

    def angles(self, rows, columns):
        half = super().angles(rows, columns).chunk(2, -1)[0]
        return half.repeat_interleave(2, -1)

    def turned(self, part, angle):
        other = torch.stack([-part[..., 1::2], part[..., ::2]], -1).flatten(-2)
        return part * angle.cos() + other * angle.sin()


class OtherPairs(Neighbours):
    """Angles laid out for neighbours, and halves turned"""

    turned = Turned.turned


class OtherPairsByHand(OtherPairs):
    """The same, with attention written out"""

    by_hand = True


class NeighboursOfHalves(Turned):
    """Angles laid out for halves, and neighbours turned"""

    turned = Neighbours.turned


class WithoutMinus(Turned):
    """A sign lost"""

    def turned(self, part, angle):
        a, b = part.chunk(2, -1)
        return part * angle.cos() + torch.cat([b, a], -1) * angle.sin()


class KeysLeft(Turned):
    """Queries are turned, keys are not"""

    def keys(self, part, angle):
        return part


class KeysTheOtherWay(Turned):
    """Keys are turned the other way"""

    def keys(self, part, angle):
        return self.turned(part, -angle)


class AddedInside(Turned):
    """Positions added to the tokens that queries and keys are made of"""

    def attend(self, x):
        return super().attend(x + sincos(x.shape[1] // self.columns, self.columns))

    def turned(self, part, angle):
        return part


class _Net(Net):
    def positions(self, rows, columns):
        for block in self.blocks:
            block.columns = columns
        return torch.zeros(1, 1, WIDTH)


def made(block: str, depth: int = 2):
    return type(block, (_Net,), {"block": globals()[block]})(depth)


SOUND = (Turned, Neighbours, AddedInside)
WRONG = {
    OtherPairs: "no rotation",
    OtherPairsByHand: "no rotation",
    NeighboursOfHalves: "no rotation",
    WithoutMinus: "no rotation",
    KeysLeft: "not turned alike",
    KeysTheOtherWay: "not turned alike",
}
