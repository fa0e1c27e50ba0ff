"""One small transformer and many variants of it, each with one habit that other people's models have, sound or broken.

`Net` keeps every rule: sin-cos positions, zero gates, no biases in attention and MLP. `KINDS` says of each variant what
the rules must answer. B batch · N tokens
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH, HEADS = 32, 2


def sincos(rows: int, columns: int, swapped: bool = False) -> Tensor:
    """(1, N, D)."""
    turns, index = 0.05 ** (torch.arange(WIDTH // 4) / (WIDTH // 4)), torch.arange(rows * columns)
    places = (index % rows, index // rows) if swapped else (index // columns, index % columns)
    return torch.cat([f(place[:, None] * turns) for place in places for f in (torch.sin, torch.cos)], 1)[None]


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


class Block(nn.Module):
    factor, one, normed, squashed = 1.0, 1.0, False, False

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 64, bias=False), nn.Linear(64, WIDTH, bias=False)
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def attend(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def vectors(self, c):
        return self.modulation(F.silu(c))[:, None].chunk(6, -1)

    def forward(self, x, c):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.vectors(c)
        gate_a, gate_m = (gate.tanh() if self.squashed else self.factor * gate for gate in (gate_a, gate_m))
        x = x + gate_a * self.attend(norm(x) * (self.one + scale_a) + shift_a)
        x = x + gate_m * self.down(F.gelu(self.up(norm(x) * (self.one + scale_m) + shift_m)))
        return norm(x) if self.normed else x


class Net(nn.Module):
    block = Block

    def __init__(self, depth=3):
        super().__init__()
        self.patches, self.time = nn.Conv2d(4, WIDTH, 2, 2), nn.Linear(32, WIDTH)
        self.labels = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList(self.block() for _ in range(depth))
        self.head = nn.Linear(WIDTH, 16)

    def positions(self, rows, columns):
        return sincos(rows, columns)

    def times(self, t):
        angles = t.float().reshape(-1)[:, None] * torch.exp(-torch.arange(16) / 2)
        return self.time(torch.cat([angles.cos(), angles.sin()], -1))

    def condition(self, t, y):
        return self.times(t) + self.labels(y)

    def run(self, z, c):
        for block in self.blocks:
            z = block(z, c)
        return z

    def drawn(self, x, condition):
        """`condition` of the tokens."""
        rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
        z = self.patches(x).flatten(2).transpose(1, 2)
        z = self.head(self.run(z + self.positions(rows, columns), condition(z)))
        return F.fold(z.transpose(1, 2), x.shape[-2:], 2, stride=2)

    def forward(self, x, t, y):
        return self.drawn(x, lambda z: self.condition(t, y))


# Modulation


class TanhGates(Net):
    class block(Block):
        squashed = True


class GatesTimesAConstant(Net):
    class block(Block):
        factor = 0.5


class NormBehindTheResidual(Net):
    class block(Block):
        normed = True


class ScaleWithoutOne(Net):
    """Gate and scale are zero, so nothing of a block ever gets a gradient."""

    class block(Block):
        one = 0.0


class LayerScale(Net):
    class block(Block):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.full((WIDTH,), 1e-5))
            nn.init.normal_(self.modulation.weight, std=0.1)

        def forward(self, x, c):
            shift_a, scale_a, _, shift_m, scale_m, _ = self.vectors(c)
            x = x + self.gamma * self.attend(norm(x) * (1 + scale_a) + shift_a)
            return x + self.gamma * self.down(F.gelu(self.up(norm(x) * (1 + scale_m) + shift_m)))


class TableOfVectors(Net):
    """(B, 6, D) for all blocks, to which each adds a table of its own."""

    class block(Block):
        def __init__(self):
            super().__init__()
            del self.modulation
            self.table = nn.Parameter(torch.zeros(1, 6, WIDTH))

        def vectors(self, c):
            return (self.table + c).chunk(6, 1)

    def __init__(self, depth=3, opened=0.0):
        super().__init__(depth)
        self.shared = nn.Linear(WIDTH, 6 * WIDTH)
        nn.init.constant_(self.shared.weight, opened)
        nn.init.zeros_(self.shared.bias)

    def condition(self, t, y):
        return self.shared(F.silu(super().condition(t, y))).unflatten(1, (6, WIDTH)) * 1.0


class OpenTableOfVectors(TableOfVectors):
    def __init__(self, depth=3):
        super().__init__(depth, opened=0.1)


class ConditionSeesThePicture(Net):
    def forward(self, x, t, y):
        return self.drawn(x, lambda z: self.condition(t, y) + z.mean(1))


class TimeOfEachToken(Net):
    class block(Block):
        def vectors(self, c):
            return self.modulation(F.silu(c)).chunk(6, -1)

    def forward(self, x, t, y):
        return self.drawn(x, lambda z: self.times(t).unflatten(0, t.shape) + self.labels(y)[:, None])


# Chains


class TokensJoinMidway(Net):
    def __init__(self, depth=4):
        super().__init__(depth)
        self.registers = nn.Parameter(torch.randn(1, 3, WIDTH))

    def run(self, z, c):
        for index, block in enumerate(self.blocks):
            z = block(torch.cat([self.registers.expand(len(z), -1, -1), z], 1) if index == 2 else z, c)
        return z[:, 3:]


class HalfOfTheTokensMidway(Net):
    def __init__(self, depth=4):
        super().__init__(depth)

    def run(self, z, c):
        z, kept = self.blocks[0](z, c), torch.arange(z.shape[1]) % 2 == 0
        few = self.blocks[2](self.blocks[1](z[:, kept], c), c)
        return self.blocks[3](torch.where(kept[:, None], few.repeat_interleave(2, 1)[:, : z.shape[1]], z), c)


class UShaped(Net):
    def __init__(self, depth=2, opened=False):
        super().__init__(depth)
        self.middle, self.ascent = Block(), nn.ModuleList(Block() for _ in range(depth))
        self.joins = nn.ModuleList([None, *(nn.Linear(2 * WIDTH, WIDTH, bias=False) for _ in range(depth))])
        if opened:
            nn.init.normal_(self.middle.modulation.weight)

    def run(self, z, c):
        skips = []
        for block in self.blocks:
            z = block(z, c)
            skips.append(z)
        z = self.middle(z, c)
        for block, join in zip(self.ascent, self.joins[1:], strict=True):
            z = block(join(torch.cat([z, skips.pop()], -1)), c)
        return z


class UShapedWithAnOpenMiddle(UShaped):
    def __init__(self, depth=2):
        super().__init__(depth, opened=True)


# Positions: right on a small grid


class IndicesClamped(Net):
    def positions(self, rows, columns):
        table = sincos(rows, columns).unflatten(1, (rows, columns))
        return table[:, torch.arange(rows).clamp(max=9)][:, :, torch.arange(columns).clamp(max=9)].flatten(1, 2)


class ExchangedWhenTall(Net):
    def positions(self, rows, columns):
        return sincos(rows, columns, swapped=rows > columns)


class ExchangedWhenLarge(Net):
    def positions(self, rows, columns):
        return sincos(rows, columns, swapped=rows * columns > 100)


class TurningBlock(Block):
    """Rotary angles of rows and columns instead of added positions."""

    columns, swapped = 0, False

    def attend(self, x):
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        rows, index, half = x.shape[1] // self.columns, torch.arange(x.shape[1]), q.shape[-1] // 4
        row, column = (index % rows, index // rows) if self.swapped else (index // self.columns, index % self.columns)
        turns = 0.2 ** (torch.arange(half) / half)
        angle = torch.cat([row[:, None] * turns, column[:, None] * turns], 1)

        def turned(part):
            a, b = part.chunk(2, -1)
            return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

        return self.out(F.scaled_dot_product_attention(turned(q), turned(k), v).transpose(1, 2).flatten(2))


class Turning(Net):
    block = TurningBlock

    def positions(self, rows, columns):
        for block in self.blocks:
            block.columns = columns
        return torch.zeros(1, 1, WIDTH)


class ExchangedInTheLastBlock(Turning):
    def __init__(self, depth=3):
        super().__init__(depth)
        self.blocks[-1].swapped = True


# Checkpointing


class Recomputed(Net):
    def __init__(self, depth=4, use_checkpoint=False):
        super().__init__(depth)
        self.use_checkpoint = use_checkpoint

    def maybe(self, part, *inputs):
        return (
            checkpoint(part, *inputs, use_reentrant=False) if self.use_checkpoint and self.training else part(*inputs)
        )


class RecomputedInPairs(Recomputed):
    def run(self, z, c):
        for i in range(0, len(self.blocks), 2):
            z = self.maybe(lambda z, c, i=i: self.blocks[i + 1](self.blocks[i](z, c), c), z, c)
        return z


class EverySecondRecomputed(Recomputed):
    def run(self, z, c):
        for i, block in enumerate(self.blocks):
            z = self.maybe(block, z, c) if i % 2 else block(z, c)
        return z


class NeverOffAgain(Net):
    recomputes = False

    def enable_gradient_checkpointing(self):
        self.recomputes = True

    def disable_gradient_checkpointing(self):
        pass

    def run(self, z, c):
        for block in self.blocks:
            again = self.recomputes and self.training
            z = checkpoint(block, z, c, use_reentrant=False) if again else block(z, c)
        return z


KINDS: dict[str, dict[str, str]] = {  # what must be answered; all else passes or skips
    "Net": {},
    "TanhGates": {},
    "GatesTimesAConstant": {},
    "NormBehindTheResidual": {"E1": "warn"},
    "ScaleWithoutOne": {"E1": "fail"},
    "LayerScale": {"E1": "warn"},
    "TableOfVectors": {},
    "OpenTableOfVectors": {"E1": "warn"},
    "ConditionSeesThePicture": {},
    "TimeOfEachToken": {},
    "TokensJoinMidway": {},
    "HalfOfTheTokensMidway": {},
    "UShaped": {},
    "UShapedWithAnOpenMiddle": {"E1": "fail"},
    "IndicesClamped": {"E2": "fail"},
    "ExchangedWhenTall": {"E2": "fail"},
    "ExchangedWhenLarge": {"E2": "fail"},
    "Turning": {},
    "ExchangedInTheLastBlock": {"E2": "fail"},
    "RecomputedInPairs": {},
    "EverySecondRecomputed": {"E5": "warn"},
    "NeverOffAgain": {"E5": "fail"},
}


def time_of_each_token(model, height=None, width=None):
    height, width = height or 16, width or 16
    t = torch.rand(2, height * width // 4, generator=torch.Generator().manual_seed(0)) * 1000
    return {"x": torch.randn(2, 4, height, width), "t": t, "y": torch.tensor([1, 3])}


EXAMPLES = {"TimeOfEachToken": "time_of_each_token"}
