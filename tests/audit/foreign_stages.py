"""Two more styles of foreign models, each clean and with faults; see `foreign_models.py`.

B batch · N tokens
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.audit.foreign_models import CHANNELS, PATCH, WIDTH, frequencies_of, heads, sincos, unpatchify

# 7. Attention and a gated MLP side by side behind one norm and one gate; checkpointing by an attribute; the answer in a
# dict.


class ParallelBlock(nn.Module):
    def __init__(self, gate_mlp=True):
        super().__init__()
        self.gate_mlp = gate_mlp
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.fused = nn.Linear(WIDTH, 3 * WIDTH + 2 * 24, bias=False)
        self.attn_out, self.mlp_out = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(24, WIDTH, bias=False)
        self.modulation = nn.Linear(WIDTH, 3 * WIDTH)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens, vec):
        shift, scale, gate = self.modulation(F.silu(vec))[:, None].chunk(3, dim=-1)
        q, k, v, mlp = self.fused(self.norm(tokens) * (1 + scale) + shift).split([WIDTH, WIDTH, WIDTH, 48], dim=-1)
        attended = self.attn_out(
            F.scaled_dot_product_attention(heads(q), heads(k), heads(v)).transpose(1, 2).flatten(2)
        )
        value, opened = mlp.chunk(2, dim=-1)
        other = self.mlp_out(value * F.silu(opened))
        return tokens + gate * (attended + other) if self.gate_mlp else tokens + gate * attended + other


class Parallel(nn.Module):
    def __init__(self, depth=2, gate_mlp=True, recomputes=True):
        super().__init__()
        self.gradient_checkpointing, self.recomputes = False, recomputes
        self.embed, self.out = nn.Linear(CHANNELS * PATCH**2, WIDTH), nn.Linear(WIDTH, CHANNELS * PATCH**2)
        self.time, self.pooled = nn.Linear(32, WIDTH), nn.Linear(8, WIDTH)
        self.layers = nn.ModuleList(ParallelBlock(gate_mlp) for _ in range(depth))

    def forward(self, sample, timestep, pooled):
        rows, columns = sample.shape[-2] // PATCH, sample.shape[-1] // PATCH
        cells = sample.unflatten(3, (columns, PATCH)).unflatten(2, (rows, PATCH))  # (B, C, rows, p, columns, p)
        tokens = self.embed(cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)) + sincos(rows, columns)
        vec = self.time(frequencies_of(timestep)) + self.pooled(pooled)
        for layer in self.layers:
            again = self.gradient_checkpointing and self.recomputes and self.training
            tokens = checkpoint(layer, tokens, vec, use_reentrant=False) if again else layer(tokens, vec)
        return {"sample": unpatchify(self.out(tokens), rows, columns)}


def parallel(depth: int = 2):
    return Parallel(depth)


def parallel_ungated_mlp(depth: int = 2):
    return Parallel(depth, gate_mlp=False)


def parallel_checkpointing_ignored(depth: int = 2):
    return Parallel(depth, recomputes=False)


# 8. Two stages, lists in a list, each with one modulation of its own for its blocks, which take it as a list; scale and
# gate, no shift.


class StagedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.to_q, self.to_kv = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.to_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 24, bias=False), nn.Linear(24, WIDTH, bias=False)

    def forward(self, x, modulation):
        scale1, gate1, scale2, gate2 = (vector.unsqueeze(1) for vector in modulation.chunk(4, dim=1))
        h = self.norm1(x) * (1 + scale1)
        k, v = self.to_kv(h).chunk(2, dim=-1)
        x = x + gate1 * self.to_out(
            F.scaled_dot_product_attention(heads(self.to_q(h)), heads(k), heads(v)).transpose(1, 2).flatten(2)
        )
        return x + gate2 * self.down(F.gelu(self.up(self.norm2(x) * (1 + scale2))))


class Stage(nn.Module):
    def __init__(self, depth, opened):
        super().__init__()
        self.blocks = nn.ModuleList(StagedBlock() for _ in range(depth))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 4 * WIDTH))
        if not opened:
            nn.init.zeros_(self.modulation[1].weight)
            nn.init.zeros_(self.modulation[1].bias)

    def forward(self, x, c):
        modulation = self.modulation(c)
        for block in self.blocks:
            x = block(x, modulation)
        return x


class Staged(nn.Module):
    def __init__(self, depth=2, opened=False, deaf=False):
        super().__init__()
        self.deaf = deaf
        self.patches = nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH)
        self.embed_time = nn.Sequential(nn.Linear(32, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.classes = nn.Embedding(7, WIDTH)
        self.stages = nn.ModuleList([Stage(depth, False), Stage(depth, opened)])
        self.out = nn.Linear(WIDTH, CHANNELS * PATCH**2)

    def forward(self, latents, sigma, class_labels):
        x = self.patches(latents)
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2) + sincos(rows, columns)
        c = self.embed_time(frequencies_of(sigma)) * (0 if self.deaf else 1) + self.classes(class_labels)
        for stage in self.stages:
            x = stage(x, c)
        return (unpatchify(self.out(x), rows, columns),)


def staged(depth: int = 2):
    return Staged(depth)


def staged_open_second_stage(depth: int = 2):
    return Staged(depth, opened=True)


def staged_deaf_to_time(depth: int = 2):
    return Staged(depth, deaf=True)
