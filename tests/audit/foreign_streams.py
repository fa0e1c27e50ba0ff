"""Four more styles of foreign models, each clean and with faults: one sequence, rotary angles, two streams, a residual
outside of the modules; see `foreign_models.py`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.audit.foreign_models import (
    CHANNELS,
    HEADS,
    PATCH,
    TEXT,
    WIDTH,
    Attention,
    frequencies_of,
    heads,
    modulate,
    sincos,
    unpatchify,
)

# 4. Everything in one sequence, time and text in front; learned gates of each block's own; positions added or looked
# up.


class ScaledBlock(nn.Module):
    def __init__(self, gated=True):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32, bias=False), nn.GELU(), nn.Linear(32, WIDTH, bias=False))
        self.gamma1, self.gamma2 = (nn.Parameter(torch.zeros(WIDTH)) if gated else 1.0 for _ in range(2))
        if not gated:  # the identity by another accident
            nn.init.zeros_(self.attn.out_proj.weight)
            nn.init.zeros_(self.mlp[2].weight)

    def forward(self, x):
        h = self.norm1(x)
        x = x + self.gamma1 * self.attn(h, h, h, need_weights=False)[0]
        return x + self.gamma2 * self.mlp(self.norm2(x))


class Sequence(nn.Module):
    def __init__(self, depth=2, gated=True, learned=0, stored=0):
        super().__init__()
        self.proj_in, self.proj_out = nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH), nn.Linear(WIDTH, CHANNELS * PATCH**2)
        self.time_embed = nn.Sequential(nn.Linear(32, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.text_embed = nn.Linear(TEXT, WIDTH)
        self.encoder = nn.Sequential(*(ScaledBlock(gated) for _ in range(depth)))
        if learned:
            self.pos_embed = nn.Embedding(learned, WIDTH)
        if stored:
            self.register_buffer("grid", sincos(stored, stored))

    def positions(self, rows, columns):
        if hasattr(self, "pos_embed"):
            return self.pos_embed(torch.arange(rows * columns))
        if hasattr(self, "grid"):
            side = math.isqrt(self.grid.shape[1])
            return self.grid.unflatten(1, (side, side))[:, :rows, :columns].flatten(1, 2)
        return sincos(rows, columns)

    def forward(self, x, t, text):
        x = self.proj_in(x)
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + self.positions(rows, columns)
        front = torch.cat([self.time_embed(frequencies_of(t))[:, None], self.text_embed(text)], dim=1)
        x = self.encoder(torch.cat([front, x], dim=1))[:, front.shape[1] :]
        return unpatchify(self.proj_out(x), rows, columns)


def sequence(depth: int = 2):
    return Sequence(depth)


def sequence_zero_projections(depth: int = 2):
    return Sequence(depth, gated=False)


def sequence_learned_positions(depth: int = 2):
    return Sequence(depth, learned=64)


def sequence_stored_positions(depth: int = 2):
    return Sequence(depth, stored=16)


# 5. Rotary angles on queries and keys, from rows and columns.


class RotaryBlock(nn.Module):
    def __init__(self, q_bias=False):
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.w1, self.w2, self.w3 = (
            nn.Linear(WIDTH, 24, bias=False),
            nn.Linear(24, WIDTH, bias=False),
            nn.Linear(WIDTH, 24, bias=False),
        )
        self.adaLN = nn.Linear(WIDTH, 6 * WIDTH)
        self.q_bias = nn.Parameter(torch.zeros(WIDTH)) if q_bias else 0.0
        nn.init.zeros_(self.adaLN.weight)
        nn.init.zeros_(self.adaLN.bias)

    def attend(self, x, angles):
        q, k, v = heads(self.wq(x) + self.q_bias), heads(self.wk(x)), heads(self.wv(x))
        q, k = (
            torch.view_as_real(torch.view_as_complex(rows.float().unflatten(-1, (-1, 2))) * angles).flatten(-2)
            for rows in (q, k)
        )
        weights = ((q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5).softmax(dim=-1)
        return self.wo((weights @ v).transpose(1, 2).flatten(2))

    def forward(self, x, angles, c):
        a, b, g, d, e, h = self.adaLN(F.silu(c)).chunk(6, dim=-1)
        x = x + g[:, None] * self.attend(modulate(F.rms_norm(x, (WIDTH,)), a, b), angles)
        y = modulate(F.rms_norm(x, (WIDTH,)), d, e)
        return x + h[:, None] * self.w2(F.silu(self.w1(y)) * self.w3(y))


class Rotary(nn.Module):
    def __init__(self, n_layers=2, transposed=False, raster=False, q_bias=False):
        super().__init__()
        self.transposed, self.raster = transposed, raster
        self.x_in, self.x_out = nn.Linear(CHANNELS * PATCH**2, WIDTH), nn.Linear(WIDTH, CHANNELS * PATCH**2)
        self.t_mlp = nn.Sequential(nn.Linear(32, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.y = nn.Embedding(11, WIDTH)
        self.trunk = nn.ModuleDict({"layers": nn.ModuleList(RotaryBlock(q_bias) for _ in range(n_layers))})

    def angles(self, rows, columns):
        index, pairs = torch.arange(rows * columns), WIDTH // HEADS // 2
        row, column = (index % rows, index // rows) if self.transposed else (index // columns, index % columns)
        row, column = (index, index) if self.raster else (row, column)
        turn = torch.tensor([1.0, 0.4][: pairs // 2])
        return torch.polar(
            torch.ones(rows * columns, pairs), torch.cat([row[:, None] * turn, column[:, None] * turn], dim=1)
        )

    def forward(self, z, t, y):
        rows, columns = z.shape[-2] // PATCH, z.shape[-1] // PATCH
        x = self.x_in(F.unfold(z, PATCH, stride=PATCH).transpose(1, 2))
        c = self.t_mlp(frequencies_of(t)) + self.y(y)
        for layer in self.trunk["layers"]:
            x = layer(x, self.angles(rows, columns), c)
        return F.fold(self.x_out(x).transpose(1, 2), z.shape[-2:], PATCH, stride=PATCH)


def rotary(n_layers: int = 2):
    return Rotary(n_layers)


def rotary_transposed(n_layers: int = 2):
    return Rotary(n_layers, transposed=True)


def rotary_in_raster_order(n_layers: int = 2):
    return Rotary(n_layers, raster=True)


def rotary_query_bias(n_layers: int = 2):
    return Rotary(n_layers, q_bias=True)


# 6. Two streams that attend together, then blocks of one stream; a pooled vector; a switch for checkpointing.


class JointBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.x_qkv, self.c_qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.x_out, self.c_out = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.x_mod, self.c_mod = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        for modulation in (self.x_mod, self.c_mod):
            nn.init.zeros_(modulation.weight)
            nn.init.zeros_(modulation.bias)

    def forward(self, x, c, vec):
        (xs, xc, xg), (cs, cc, cg) = self.x_mod(vec).chunk(3, -1), self.c_mod(vec).chunk(3, -1)
        qkv = torch.cat(
            [
                self.c_qkv(modulate(F.layer_norm(c, (WIDTH,)), cs, cc)),
                self.x_qkv(modulate(F.layer_norm(x, (WIDTH,)), xs, xc)),
            ],
            dim=1,
        )
        q, k, v = (heads(projected) for projected in qkv.chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + xg[:, None] * self.x_out(mixed[:, c.shape[1] :]), c + cg[:, None] * self.c_out(
            mixed[:, : c.shape[1]]
        )


class LowRankBlock(nn.Module):
    """Its modulation is two layers deep."""

    def __init__(self):
        super().__init__()
        self.attn = Attention()
        self.mod = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 4, bias=False), nn.Linear(4, 3 * WIDTH))
        nn.init.zeros_(self.mod[2].weight)
        nn.init.zeros_(self.mod[2].bias)

    def forward(self, x, vec):
        shift, scale, gate = self.mod(vec).chunk(3, dim=-1)
        return x + gate[:, None] * self.attn(modulate(F.layer_norm(x, (WIDTH,)), shift, scale))


class TwoStreams(nn.Module):
    recomputed = ("double", "single")
    pooled_read = True

    def __init__(self, depth=2, use_checkpoint=False):
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.img_in, self.txt_in, self.vec_in = (
            nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH),
            nn.Linear(TEXT, WIDTH),
            nn.Linear(10, WIDTH),
        )
        self.time_in = nn.Sequential(nn.Linear(32, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.joint_blocks = nn.ModuleList(JointBlock() for _ in range(depth))
        self.low_rank_blocks = nn.ModuleList(LowRankBlock() for _ in range(depth))
        self.out = nn.Linear(WIDTH, CHANNELS * PATCH**2)

    def run(self, kind, block, *inputs):
        if self.use_checkpoint and self.training and kind in self.recomputed:
            return checkpoint(block.forward, *inputs, use_reentrant=False)
        return block(*inputs)

    def forward(self, img, txt, timesteps, pooled):
        x = self.img_in(img)
        rows, columns = x.shape[-2:]
        x, c = x.flatten(2).transpose(1, 2) + sincos(rows, columns), self.txt_in(txt)
        vec = F.silu(self.time_in(frequencies_of(timesteps)) + self.vec_in(pooled) * (1 if self.pooled_read else 0))
        for block in self.joint_blocks:
            x, c = self.run("double", block, x, c, vec)
        x = torch.cat([c, x], dim=1)
        for block in self.low_rank_blocks:
            x = self.run("single", block, x, vec)
        return {"sample": unpatchify(self.out(x[:, c.shape[1] :]), rows, columns)}


class NoStreamRecomputed(TwoStreams):
    recomputed = ()


class OneStreamRecomputed(TwoStreams):
    recomputed = ("double",)


class PooledUnread(TwoStreams):
    pooled_read = False


def streams(depth: int = 1, use_checkpoint: bool = False):
    return TwoStreams(depth, use_checkpoint)


def streams_checkpointing_ignored(depth: int = 1, use_checkpoint: bool = False):
    return NoStreamRecomputed(depth, use_checkpoint)


def streams_half_recomputed(depth: int = 1, use_checkpoint: bool = False):
    return OneStreamRecomputed(depth, use_checkpoint)


def streams_pooled_unread(depth: int = 1):
    return PooledUnread(depth)


# 7. The residual stands outside of the modules: nothing that can be called is a block.


class Outside(nn.Module):
    def __init__(self, depth=2):
        super().__init__()
        self.inward, self.outward = nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH), nn.Linear(WIDTH, CHANNELS * PATCH**2)
        self.layers = nn.ModuleList(
            nn.ModuleList([Attention(), nn.Sequential(nn.LayerNorm(WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH)))])
            for _ in range(depth)
        )
        self.time = nn.Linear(32, WIDTH)

    def forward(self, x, t):
        x = self.inward(x)
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + sincos(rows, columns) + self.time(frequencies_of(t))[:, None]
        for attend, feed in self.layers:
            x = x + attend(x)
            x = x + feed(x)
        return unpatchify(self.outward(x), rows, columns)


def outside(depth: int = 2):
    return Outside(depth)
