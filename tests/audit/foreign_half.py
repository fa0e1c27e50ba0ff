"""Foreign models built in half precision: what is judged of them is what their twins in float32 answer."""

from __future__ import annotations

import torch

from tests.audit import foreign_kinds, foreign_layouts, foreign_turns
from tests.audit.foreign_kinds import Net


def half(kind: str, dtype: str = "bfloat16"):
    """A model of positions added, turned, or of convolutions."""
    makes = {**vars(foreign_layouts), **vars(foreign_kinds)}
    return makes[kind]().to(getattr(torch, dtype))


def turned(block: str):
    return foreign_turns.made(block).bfloat16()


class CastAtItsBlocks(Net):
    """Of mixed kinds: blocks in bfloat16, and tokens cast on their way in and out."""

    def __init__(self):
        super().__init__()
        self.blocks.bfloat16()

    def run(self, z, c):
        kind = self.blocks[0].qkv.weight.dtype
        return super().run(z.to(kind), c.to(kind)).to(self.head.weight.dtype)


class KeepsItsKind(Net):
    """Casts what it is given to the kind of number that it was built for, and runs in bfloat16."""

    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.kind = dtype
        self.to(dtype)

    def times(self, t):
        angles = (t.reshape(-1)[:, None] * torch.exp(-torch.arange(16) / 2)).to(self.kind)
        return self.time(torch.cat([angles.cos(), angles.sin()], -1))

    def positions(self, rows, columns):
        return super().positions(rows, columns).to(self.kind)

    def forward(self, x, t, y):
        return super().forward(x.to(self.kind), t, y)


class CastsItself(KeepsItsKind):
    """To bfloat16 whatever its weights have become."""

    def forward(self, x, t, y):
        return Net.forward(self, x.to(torch.bfloat16), t, y)

    def times(self, t):
        return super().times(t).to(torch.bfloat16)

    def run(self, z, c):
        return super().run(z.to(torch.bfloat16), c)


class Overflows(Net):
    """Its values are larger than float16 has numbers."""

    def __init__(self):
        super().__init__()
        self.half()

    def forward(self, x, t, y):
        return super().forward(x, t, y) * 1e7


class Misfit(Net):
    """In float32 by its own code where its weights are not, and with a kind that does not go with it."""

    def __init__(self):
        super().__init__()
        self.bfloat16()

    def run(self, z, c):
        if self.head.weight.dtype != torch.float32:
            raise RuntimeError("expected Float, found BFloat16")
        return super().run(z, c)


def example_in_half(model):
    drawn = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 4, 8, 8, generator=drawn).bfloat16()
    return {"x": latent, "t": torch.tensor([0.2, 0.7], dtype=torch.bfloat16), "y": torch.tensor([1, 2])}
