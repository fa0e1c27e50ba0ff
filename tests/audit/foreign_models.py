"""Small transformers as other people write them, in ten styles. Each has a clean form and forms with one planted fault.

A factory is a function whose name says both: `fused` is clean, `fused_open_modulation` has the fault. None of them uses
anything of ours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, CHANNELS, PATCH, TEXT = 16, 2, 4, 2, 12


def sincos(rows: int, columns: int, width: int = WIDTH, transposed: bool = False) -> torch.Tensor:
    """(1, rows·columns, width)."""
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    index = torch.arange(rows * columns)
    row, column = (index % rows, index // rows) if transposed else (index // columns, index % columns)
    return torch.cat(
        [f(place[:, None] * frequencies) for place in (row, column) for f in (torch.sin, torch.cos)], dim=1
    )[None]


def frequencies_of(t: torch.Tensor, width: int = 32, scale: float = 1000.0) -> torch.Tensor:
    angles = scale * t.float()[:, None] * torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def unpatchify(x: torch.Tensor, rows: int, columns: int, by_column: bool = False) -> torch.Tensor:
    x = (
        x.view(len(x), columns, rows, PATCH, PATCH, CHANNELS).transpose(1, 2)
        if by_column
        else x.view(len(x), rows, columns, PATCH, PATCH, CHANNELS)
    )
    return torch.einsum("nhwpqc->nchpwq", x).reshape(len(x), CHANNELS, rows * PATCH, columns * PATCH)


def modulate(x, shift, scale):
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def heads(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


# 1. A class-conditional model with fused q, k, v, as the first of its kind: (x, t, y), forward in one file.


class FusedBlock(nn.Module):
    def __init__(self, qk_norm=False):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2))
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32, bias=False), nn.GELU(), nn.Linear(32, WIDTH, bias=False))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        self.qk_norm = qk_norm

    def attend(self, x):
        q, k, v = (heads(projected) for projected in self.qkv(x).chunk(3, dim=-1))
        if self.qk_norm:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x, c):
        a, b, gate_a, d, e, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_a.unsqueeze(1) * self.attend(modulate(self.norm1(x), a, b))
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), d, e))


class Fused(nn.Module):
    scale = 1000.0

    def __init__(self, depth=2, num_classes=10, qk_norm=False, block=FusedBlock):
        super().__init__()
        self.x_embedder = nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH)
        self.t_embedder = nn.Sequential(nn.Linear(32, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.y_embedder = nn.Embedding(num_classes + 1, WIDTH)
        self.blocks = nn.ModuleList(self.make_block(block, qk_norm) for _ in range(depth))
        self.final_modulation, self.final = (
            nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH)),
            nn.Linear(WIDTH, PATCH**2 * CHANNELS),
        )
        self.initialize()

    def make_block(self, block, qk_norm):
        return block(qk_norm)

    def initialize(self):
        for block in self.blocks:
            nn.init.zeros_(block.adaLN_modulation[1].weight)
            nn.init.zeros_(block.adaLN_modulation[1].bias)
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)

    def positions(self, rows, columns):
        return sincos(rows, columns)

    def forward(self, x, t, y):
        x = self.x_embedder(x)
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self.positions(rows, columns).to(x.dtype)
        c = self.t_embedder(frequencies_of(t, scale=self.scale).to(x.dtype)) + self.y_embedder(y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_modulation(c).chunk(2, dim=1)
        return self.unpatch(self.final(modulate(F.layer_norm(x, (WIDTH,)), shift, scale)), rows, columns)

    def unpatch(self, x, rows, columns):
        return unpatchify(x, rows, columns)


class FusedOpenModulation(Fused):
    def initialize(self):  # as real repositories ship it: only the final layer
        nn.init.zeros_(self.final.weight)
        nn.init.zeros_(self.final.bias)


class FusedTransposed(Fused):
    def positions(self, rows, columns):
        return sincos(rows, columns, transposed=True)


class FusedNoPositions(Fused):
    def positions(self, rows, columns):
        return torch.zeros(1, rows * columns, WIDTH)


class FusedByColumn(Fused):
    def unpatch(self, x, rows, columns):
        return unpatchify(x, rows, columns, by_column=True)


class FusedDeafToClass(Fused):
    def forward(self, x, t, y):
        return super().forward(x, t, torch.zeros_like(y))


class FusedUnscaledTime(Fused):
    scale = 1.0


class FusedIgnoredNorm(Fused):
    def make_block(self, block, qk_norm):
        return block()


def fused(depth: int = 2, num_classes: int = 10, qk_norm: bool = False):
    return Fused(depth, num_classes, qk_norm)


def fused_open_modulation(depth: int = 2):
    return FusedOpenModulation(depth)


def fused_transposed_positions(depth: int = 2):
    return FusedTransposed(depth)


def fused_no_positions(depth: int = 2):
    return FusedNoPositions(depth)


def fused_columns_for_rows(depth: int = 2):
    return FusedByColumn(depth)


def fused_deaf_to_class(depth: int = 2):
    return FusedDeafToClass(depth)


def fused_unscaled_time(depth: int = 2):
    return FusedUnscaledTime(depth)


def fused_ignored_qk_norm(depth: int = 2, qk_norm: bool = False):
    return FusedIgnoredNorm(depth, qk_norm=qk_norm)


def fused_half(depth: int = 2):
    return Fused(depth).to(torch.bfloat16)


def unit_time(model):
    """As flow matching calls it: t in [0, 1]."""
    return {"x": torch.randn(2, CHANNELS, 8, 8), "t": torch.tensor([0.2, 0.7]), "y": torch.tensor([1, 2])}


# 2. Text tokens with a mask, separate q, k, v, three branches; with nine vectors and gates, or with six and none.


class Attention(nn.Module):
    def __init__(self, context_width=WIDTH, bias=False):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (
            nn.Linear(width, WIDTH, bias=bias) for width in (WIDTH, context_width, context_width)
        )
        self.to_out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        q, k, v = heads(self.to_q(x)), heads(self.to_k(context)), heads(self.to_v(context))
        mask = None if mask is None else mask[:, None, None].bool()
        return self.to_out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class TextBlock(nn.Module):
    vectors = 9

    def __init__(self, bias=False):
        super().__init__()
        self.self_attn, self.cross_attn = Attention(bias=bias), Attention(TEXT, bias=bias)
        self.up, self.down = nn.Linear(WIDTH, 32, bias=False), nn.Linear(32, WIDTH, bias=False)
        self.ada = nn.Linear(WIDTH, self.vectors * WIDTH)
        nn.init.zeros_(self.ada.weight)
        nn.init.zeros_(self.ada.bias)

    def branches(self, text, mask):
        return (self.self_attn, lambda x: self.cross_attn(x, text, mask), lambda x: self.down(F.gelu(self.up(x))))

    def forward(self, hidden, cond, text, mask):
        for branch, vectors in zip(
            self.branches(text, mask), self.ada(F.silu(cond)).view(len(cond), 3, 3, WIDTH).unbind(1), strict=True
        ):
            shift, scale, gate = vectors.unbind(1)
            hidden = hidden + gate[:, None] * branch(modulate(F.layer_norm(hidden, (WIDTH,)), shift, scale))
        return hidden


class TextBlockWithoutGates(TextBlock):
    vectors = 6

    def forward(self, hidden, cond, text, mask):
        for branch, vectors in zip(
            self.branches(text, mask), self.ada(F.silu(cond)).view(len(cond), 3, 2, WIDTH).unbind(1), strict=True
        ):
            shift, scale = vectors.unbind(1)
            hidden = hidden + branch(modulate(F.layer_norm(hidden, (WIDTH,)), shift, scale))
        return hidden


class DeadTextBlock(TextBlock):
    def forward(self, hidden, cond, text, mask):
        return hidden + 0 * super().forward(hidden, cond, text, mask)


class TextModel(nn.Module):
    block: type[nn.Module] = TextBlock
    masked = True

    def __init__(self, layers=2, bias=False):
        super().__init__()
        self.embed = nn.Linear(CHANNELS * PATCH**2, WIDTH)
        self.time_in, self.time_out = nn.Linear(32, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(self.block(bias) for _ in range(layers))
        self.head = nn.Linear(WIDTH, CHANNELS * PATCH**2)

    def forward(self, latent, timestep, context, context_mask=None):
        rows, columns = latent.shape[-2] // PATCH, latent.shape[-1] // PATCH
        x = F.unfold(latent, PATCH, stride=PATCH).transpose(1, 2)
        x = self.embed(x) + sincos(rows, columns)
        c = self.time_out(F.silu(self.time_in(frequencies_of(timestep))))
        for layer in self.layers:
            x = layer(x, c, context, context_mask if self.masked else None)
        return (F.fold(self.head(x).transpose(1, 2), latent.shape[-2:], PATCH, stride=PATCH),)


class GatelessTextModel(TextModel):
    block = TextBlockWithoutGates


class UnmaskedTextModel(TextModel):
    masked = False


class DeadTextModel(TextModel):
    block = DeadTextBlock


def text(layers: int = 2):
    return TextModel(layers)


def text_six_vectors_no_gates(layers: int = 2):
    return GatelessTextModel(layers)


def text_mask_ignored(layers: int = 2):
    return UnmaskedTextModel(layers)


def text_biased_attention(layers: int = 2):
    return TextModel(layers, bias=True)


def text_dead_blocks(layers: int = 2):
    return DeadTextModel(layers)


# 3. One modulation for all blocks, and a table in each that is added to it.


class SingleBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()
        self.cross = Attention()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 32, bias=False), nn.Linear(32, WIDTH, bias=False)
        self.scale_shift_table = nn.Parameter(torch.zeros(9, WIDTH))

    def forward(self, x, y, t):
        sa, ca, ga, sx, cx, gx, sm, cm, gm = (self.scale_shift_table[None] + t.reshape(len(x), 9, -1)).unbind(1)
        x = x + ga[:, None] * self.attn(modulate(F.layer_norm(x, (WIDTH,)), sa, ca))
        x = x + gx[:, None] * self.cross(modulate(F.layer_norm(x, (WIDTH,)), sx, cx), y)
        return x + gm[:, None] * self.fc2(F.gelu(self.fc1(modulate(F.layer_norm(x, (WIDTH,)), sm, cm))))


class Single(nn.Module):
    def __init__(self, depth=2, random_tables=False):
        super().__init__()
        self.x_embedder = nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH)
        self.t_embedder = nn.Sequential(nn.Linear(32, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 9 * WIDTH))
        self.y_embedder = nn.Linear(TEXT, WIDTH)
        self.blocks = nn.ModuleList(SingleBlock() for _ in range(depth))
        self.final_layer = nn.Linear(WIDTH, CHANNELS * PATCH**2)
        nn.init.zeros_(self.t_block[1].weight)
        nn.init.zeros_(self.t_block[1].bias)
        for block in self.blocks if random_tables else ():
            nn.init.normal_(block.scale_shift_table, std=WIDTH**-0.5)

    def forward(self, x, timestep, y):
        x = self.x_embedder(x)
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + sincos(rows, columns)
        t = self.t_block(self.t_embedder(frequencies_of(timestep)))
        for block in self.blocks:
            x = block(x, self.y_embedder(y), t)
        return unpatchify(self.final_layer(x), rows, columns)


def single(depth: int = 2):
    return Single(depth)


def single_random_tables(depth: int = 2):
    return Single(depth, random_tables=True)
