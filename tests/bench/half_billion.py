"""Models of about half a billion parameters, of three kinds of which `tests/bench/bench_audit.py` measures the audit.

B batch · N tokens · L text tokens · D width
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.models.positions import grid_positions


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """(B,) → (B, D)."""
    half = width // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * freqs
    return torch.cat([angles.cos(), angles.sin()], -1)


def as_picture(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """(B, N, p·p·C) → (B, C, rows·p, columns·p)."""
    cells = tokens.unflatten(1, (rows, columns)).unflatten(-1, (patch, patch, -1))
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class TimeMLP(nn.Module):
    """(B,) → (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(t, 256))


class Attention(nn.Module):
    """Self-attention without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    """Without biases."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 4 * width, bias=False), nn.GELU(), nn.Linear(4 * width, width, bias=False))


class DiTBlock(nn.Module):
    """adaLN-Zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.ada = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.ada.weight)
        nn.init.zeros_(self.ada.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        a, b, g, d, e, f = self.ada(F.silu(c))[:, None].chunk(6, -1)
        x = x + g * self.attn(self.norm1(x) * (1 + b) + a)
        return x + f * self.mlp(self.norm2(x) * (1 + e) + d)


class DiT(nn.Module):
    """Class-conditional, 675 million parameters."""

    def __init__(
        self,
        depth: int = 28,
        width: int = 1152,
        heads: int = 16,
        channels: int = 4,
        patch: int = 2,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.time, self.label = TimeMLP(width), nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.final_ada = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, patch * patch * channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        h, w = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = tokens + grid_positions((h, w), tokens.shape[-1])
        c = self.time(t) + self.label(y)
        for block in self.blocks:
            tokens = block(tokens, c)
        a, b = self.final_ada(F.silu(c))[:, None].chunk(2, -1)
        out = self.head(self.norm(tokens) * (1 + b) + a)
        return as_picture(out, h, w, self.patch)


class Double(nn.Module):
    """Two streams that attend together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mod_x, self.mod_c = nn.Linear(width, 6 * width), nn.Linear(width, 6 * width)
        for mod in (self.mod_x, self.mod_c):
            nn.init.zeros_(mod.weight)
            nn.init.zeros_(mod.bias)
        self.qkv_x, self.qkv_c = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.out_x, self.out_c = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.mlp_x, self.mlp_c = Mlp(width), Mlp(width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, x: Tensor, c: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        mx, mc = self.mod_x(F.silu(v))[:, None].chunk(6, -1), self.mod_c(F.silu(v))[:, None].chunk(6, -1)
        parts = []
        for qkv, m, s in ((self.qkv_c, mc, c), (self.qkv_x, mx, x)):
            parts.append(
                qkv(self.norm(s) * (1 + m[1]) + m[0]).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            )
        q, k, val = torch.cat(parts, 3)
        out = F.scaled_dot_product_attention(q, k, val).transpose(1, 2).flatten(2)
        n = c.shape[1]
        c = c + mc[2] * self.out_c(out[:, :n])
        x = x + mx[2] * self.out_x(out[:, n:])
        c = c + mc[5] * self.mlp_c(self.norm(c) * (1 + mc[4]) + mc[3])
        x = x + mx[5] * self.mlp_x(self.norm(x) * (1 + mx[4]) + mx[3])
        return x, c


class MMDiT(nn.Module):
    """Double and single streams, 770 million parameters."""

    def __init__(
        self,
        double: int = 9,
        single: int = 14,
        width: int = 1152,
        heads: int = 16,
        channels: int = 16,
        patch: int = 2,
        text: int = 2048,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.context, self.time, self.pooled = nn.Linear(text, width), TimeMLP(width), nn.Linear(768, width)
        self.doubles = nn.ModuleList(Double(width, heads) for _ in range(double))
        self.singles = nn.ModuleList(DiTBlock(width, heads) for _ in range(single))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, patch * patch * channels)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        h, w = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = tokens + grid_positions((h, w), tokens.shape[-1])
        v, c = self.time(t) + self.pooled(pooled), self.context(context)
        for block in self.doubles:
            tokens, c = block(tokens, c, v)
        n = c.shape[1]
        tokens = torch.cat([c, tokens], 1)
        for block in self.singles:
            tokens = block(tokens, v)
        out = self.head(self.norm(tokens[:, n:]))
        return as_picture(out, h, w, self.patch)


class UBlock(nn.Module):
    """Without a modulation: time is a token."""

    def __init__(self, width: int, heads: int, skip: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None:
            assert skip is not None
            x = self.skip_linear(torch.cat([x, skip], -1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    """A U shape with skips, 502 million parameters."""

    def __init__(
        self, depth: int = 29, width: int = 1152, heads: int = 16, channels: int = 4, patch: int = 2, text: int = 768
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.time, self.context = TimeMLP(width), nn.Linear(text, width)
        self.in_blocks = nn.ModuleList(UBlock(width, heads, False) for _ in range(depth // 2))
        self.mid_block = UBlock(width, heads, False)
        self.out_blocks = nn.ModuleList(UBlock(width, heads, True) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, patch * patch * channels)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        h, w = x.shape[-2] // self.patch, x.shape[-1] // self.patch
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = tokens + grid_positions((h, w), tokens.shape[-1])
        tokens = torch.cat([self.time(timesteps)[:, None], self.context(context), tokens], 1)
        skips = []
        for block in self.in_blocks:
            tokens = block(tokens)
            skips.append(tokens)
        tokens = self.mid_block(tokens)
        for block in self.out_blocks:
            tokens = block(tokens, skips.pop())
        out = self.head(self.norm(tokens[:, 1 + context.shape[1] :]))
        return as_picture(out, h, w, self.patch)


def pixart() -> nn.Module:
    """Of diffusers at its real size, 605 million parameters."""
    ensure_torchvision()
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(sample_size=128)


def sd3() -> nn.Module:
    """Of diffusers with 13 blocks, 617 million parameters."""
    ensure_torchvision()
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        num_layers=13, attention_head_dim=64, num_attention_heads=18, caption_projection_dim=1152, sample_size=64
    )


def flux() -> nn.Module:
    """Of diffusers with 6 double and 14 single blocks, 712 million parameters."""
    ensure_torchvision()
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(num_layers=6, num_single_layers=14, attention_head_dim=128, num_attention_heads=10)
