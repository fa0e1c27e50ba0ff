"""Small transformers as other people write them, in ten styles. Each has a clean form and forms with one planted fault.

A factory is a function whose name says both: `fused` is clean, `fused_open_modulation` has the fault. None of them uses
anything of ours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

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
        q, k, v = (heads(one) for one in self.qkv(x).chunk(3, dim=-1))
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
            torch.view_as_real(torch.view_as_complex(one.float().unflatten(-1, (-1, 2))) * angles).flatten(-2)
            for one in (q, k)
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
        for one in (self.x_mod, self.c_mod):
            nn.init.zeros_(one.weight)
            nn.init.zeros_(one.bias)

    def forward(self, x, c, vec):
        (xs, xc, xg), (cs, cc, cg) = self.x_mod(vec).chunk(3, -1), self.c_mod(vec).chunk(3, -1)
        qkv = torch.cat(
            [
                self.c_qkv(modulate(F.layer_norm(c, (WIDTH,)), cs, cc)),
                self.x_qkv(modulate(F.layer_norm(x, (WIDTH,)), xs, xc)),
            ],
            dim=1,
        )
        q, k, v = (heads(one) for one in qkv.chunk(3, dim=-1))
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
