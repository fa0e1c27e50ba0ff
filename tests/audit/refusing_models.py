"""Models whose own code runs nowhere but on a GPU, or beside a package that few have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 16
try:
    from flash_attn_of_nobody import flash_attn_func
except ImportError:
    flash_attn_func = None


def cuda(_x: Tensor) -> Tensor:
    raise AssertionError("Torch not compiled with CUDA enabled")


def kernel(x: Tensor) -> Tensor:
    if not x.is_cuda:
        raise RuntimeError("this kernel only supports CUDA tensors")
    return x


def inner_import(x: Tensor) -> Tensor:
    from xformers_of_nobody.ops import memory_efficient_attention

    return memory_efficient_attention(x, x, x)


def optional_function(x: Tensor) -> Tensor:
    return flash_attn_func(x, x, x)


def plain(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


def own_mistake(x: Tensor) -> Tensor:
    return x + misspelt  # noqa: F821


ATTENTIONS = {each.__name__: each for each in (cuda, kernel, inner_import, optional_function, plain, own_mistake)}


class Block(nn.Module):
    def __init__(self, attention: str, bias: bool) -> None:
        super().__init__()
        self.attention = ATTENTIONS[attention]
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias), nn.Linear(WIDTH, WIDTH, bias)
        self.modulation = nn.Linear(WIDTH, 3 * WIDTH)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(c)[:, None].chunk(3, dim=-1)
        queries, _, _ = self.qkv(x * (1 + scale) + shift).chunk(3, dim=-1)
        return x + gate * self.out(self.attention(queries))


class Refusing(nn.Module):
    def __init__(self, attention: str = "cuda", depth: int = 2, bias: bool = True, unused: int = 3) -> None:
        super().__init__()
        self.inward, self.time = nn.Conv2d(4, WIDTH, 2, 2), nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Block(attention, bias) for _ in range(depth))
        self.outward = nn.Linear(WIDTH, 16)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        tokens, c = self.inward(x).flatten(2).transpose(1, 2), self.time(t[:, None].float())
        for block in self.blocks:
            tokens = block(tokens, c)
        return nn.functional.fold(self.outward(tokens).transpose(1, 2), x.shape[-2:], 2, stride=2)


class Uncheckpointed(Refusing):
    """Runs, until its own switch for gradient checkpointing is on."""

    def __init__(self) -> None:
        super().__init__("plain")
        self.checkpointing = False

    def gradient_checkpointing_enable(self) -> None:
        self.checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        self.checkpointing = False

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            checkpointed(self.blocks[0], mask=None)
        return super().forward(x, t)


def checkpointed(block: nn.Module, *args: Tensor) -> Tensor:
    return block(*args)


def example(model: nn.Module, height: int, width: int) -> dict[str, Tensor]:
    return {"x": torch.randn(2, 4, 8, 8), "t": torch.rand(2)}
