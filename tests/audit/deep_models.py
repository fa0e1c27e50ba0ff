"""A deep chain of equal blocks, one of which may be other: what a copy with fewer of them must not hide."""

from __future__ import annotations

import types

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dittool.models.positions import grid_positions

WIDTH, PATCH, CHANNELS = 32, 2, 4


class Block(nn.Module):
    """adaLN-Zero; what it does otherwise is said by attributes that every block has."""

    def __init__(self, index: int, depth: int) -> None:
        super().__init__()
        self.index, self.rate = index, 0.1 * index / depth  # as blocks know their place, and drop paths by it
        self.heads, self.averages, self.noisy = 2, False, False
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH, bias=False)
        )
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, N, D), (B, D) → (B, N, D)."""
        if self.averages:
            c = c + c.mean(0, keepdim=True)
        if self.noisy:
            c = c + torch.randn_like(c)
        a, b, gate, d, e, other_gate = self.modulation(F.silu(c))[:, None].chunk(6, -1)
        q, k, v = self.qkv(self.norm(x) * (1 + b) + a).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + gate * self.scale * self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + other_gate * self.mlp(self.norm(x) * (1 + e) + d)


class Deep(nn.Module):
    """A clean class-conditional transformer."""

    checkpointed = frozenset(range(99))  # blocks, where checkpointing is on

    def __init__(self, depth: int = 7, use_checkpoint: bool = False) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.embed = nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH)
        self.time, self.label = nn.Linear(1, WIDTH), nn.Embedding(10, WIDTH)
        self.blocks = nn.ModuleList(self.block(index, depth) for index in range(depth))
        self.head = nn.Linear(WIDTH, PATCH * PATCH * CHANNELS)

    def block(self, index: int, depth: int) -> nn.Module:
        return Block(index, depth)

    def condition(self, index: int, c: Tensor, y: Tensor) -> Tensor:
        """(B, D) for block `index`."""
        return c

    def run(self, index: int, x: Tensor, c: Tensor) -> Tensor:
        block = self.blocks[index]
        if self.use_checkpoint and self.training and index in self.checkpointed:
            return checkpoint(block, x, c, use_reentrant=False)
        return block(x, c)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        h, w = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        x = self.embed(x).flatten(2).transpose(1, 2) + grid_positions((h, w), WIDTH)  # (B, N, D)
        c = self.time(t[:, None]).sin() + self.base(y)
        conditions = [self.condition(index, c, y) for index in range(len(self.blocks))]
        for index, own in enumerate(conditions):
            x = self.run(index, x, own)
        x = self.head(x).unflatten(1, (h, w)).unflatten(-1, (PATCH, PATCH, -1))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def base(self, y: Tensor) -> Tensor:
        return self.label(y)


class Odd(Deep):
    """Block 3 has something that no other has."""

    def __init__(self, depth: int = 7, what: str = "", use_checkpoint: bool = False) -> None:
        super().__init__(depth, use_checkpoint)
        odd = self.blocks[3]
        if what == "attribute":
            odd.averages = True
        elif what == "chance":
            odd.noisy = True
        elif what == "open gate":
            nn.init.normal_(odd.modulation.weight)
        elif what == "not a number":
            nn.init.constant_(odd.out.weight, torch.nan)
        elif what == "bias":
            odd.out = nn.Linear(WIDTH, WIDTH)
        elif what == "forward":
            odd.forward = types.MethodType(_without_mlp, odd)
        elif what == "hook":
            odd.register_forward_pre_hook(_averaging)
        elif what == "buffer":
            odd.scale.fill_(2)
        elif what == "shared":
            odd.mlp = self.blocks[1].mlp
        elif what == "frozen":
            odd.qkv.requires_grad_(False)


def _without_mlp(self: Block, x: Tensor, c: Tensor) -> Tensor:
    return x + self.modulation(c)[:, None, :WIDTH]


def _averaging(_block: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return args[0], args[1].mean(0, keepdim=True).expand_as(args[1])


class Kept(Deep):
    """Checkpointing passes block 3 by."""

    checkpointed = frozenset(range(99)) - {3}


class Mixed(Deep):
    """The condition that block 3 is given is the batch's mean."""

    def condition(self, index: int, c: Tensor, y: Tensor) -> Tensor:
        return c.mean(0, keepdim=True).expand_as(c) if index == 3 else c * 1.0


class Late(Deep):
    """Sound: the label reaches block 3 alone."""

    def condition(self, index: int, c: Tensor, y: Tensor) -> Tensor:
        return c + self.label(y) if index == 3 else c * 1.0

    def base(self, y: Tensor) -> Tensor:
        return torch.zeros(len(y), WIDTH)


class Tables(Deep):
    """Sound: each block has a table of its own, beside the blocks."""

    def __init__(self, depth: int = 7) -> None:
        super().__init__(depth)
        self.tables = nn.ParameterList(torch.randn(WIDTH) for _ in range(depth))

    def condition(self, index: int, c: Tensor, y: Tensor) -> Tensor:
        return c + self.tables[index]


class Indexed(Deep):
    """Block 3 does otherwise, by its own index."""

    def block(self, index: int, depth: int) -> nn.Module:
        return _ByIndex(index, depth)


class _ByIndex(Block):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return super().forward(x, c.mean(0, keepdim=True).expand_as(c) if self.index == 3 else c)


class Paired(Deep):
    """Sound: the second half gets what the first half gave, the last of it first."""

    def run(self, index: int, x: Tensor, c: Tensor) -> Tensor:
        half = len(self.blocks) // 2
        if index == 0:
            self._given: list[Tensor] = []
        if index > half:
            x = x + self._given.pop()
        x = super().run(index, x, c)
        if index < half:
            self._given.append(x)
        return x


class Weighed(Deep):
    """Sound, and it counts on what its blocks hold."""

    def condition(self, index: int, c: Tensor, y: Tensor) -> Tensor:
        return c * self.blocks[index].out.weight.mean()


class Widening(nn.Module):
    """Sound: each block gives more channels than it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(4 + i, 5 + i, 3, padding=1), nn.SiLU()) for i in range(5))
        self.head = nn.Conv2d(9, 4, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x) * t[:, None, None, None]


class Wavering(Deep):
    """How often it norms its tokens depends on what they hold."""

    def run(self, index: int, x: Tensor, c: Tensor) -> Tensor:
        if index == 6:
            for _ in range(int(x.abs().sum()) % 1000):
                x = x * 1.0
        return super().run(index, x, c)

    def block(self, index: int, depth: int) -> nn.Module:
        block = Block(index, depth)
        nn.init.ones_(block.modulation.bias)
        return block
