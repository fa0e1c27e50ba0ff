"""Layers that the models share: attention, MLP, timestep embedding, modulation.

B batch · N tokens · M context tokens · D width · H heads · F hidden width of the MLP
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dittool.models.fast_rms_norm import rms_norm_with_gain
from dittool.models.joined_attention import joined_attention, joining_pays
from dittool.models.rotary import rotate

TIMESTEP_SCALE = 1000.0  # t in [0, 1] becomes [0, 1000], the range that the sinusoid's periods are made for
_TIMESTEP_CHANNELS = 256


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x·(1 + scale) + shift, with (B, D) vectors over (B, N, D) tokens."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


def gated(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate·branch, with a (B, D) gate over (B, N, D) tokens. In one pass over memory, as `modulate`."""
    return torch.addcmul(x, gate[:, None], branch)


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without parameters: adaLN's shift and scale take their place."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def rms_norm(x: Tensor) -> Tensor:
    """x / √mean(x²) over the channels (arXiv 1910.07467), without parameters: a LayerNorm that leaves the mean in."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


TOKEN_NORMS = {"layer": layer_norm, "rms": rms_norm}  # the names of `model.norm`


class Modulation(nn.Linear):
    """Shifts, scales and gates from the condition vector: W·SiLU(c) + b. (B, D) → (B, vectors·D)."""

    def __init__(self, width: int, vectors: int) -> None:
        super().__init__(width, vectors * width)

    def forward(self, c: Tensor) -> Tensor:
        return super().forward(F.silu(c))


class ModulationOffset(nn.Module):
    """Of a block whose modulation all blocks share: what is its own is a learned offset, zero at first (adaLN-single,
    arXiv 2310.00426, section 2.3).
    """

    def __init__(self, width: int, vectors: int) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(vectors * width))

    def forward(self, shared: Tensor) -> Tensor:  # (B, vectors·D) → the same
        return shared + self.offset


class RMSNorm(nn.Module):
    """RMS-norm over the last axis with a learned gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:  # (…, width), under autocast in half precision
        return rms_norm_with_gain(x, self.gain.to(x.dtype))


class QKNorm(nn.Module):
    """One norm over a head's channels for the queries and one for the keys: it bounds the attention logits."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.query = RMSNorm(head_width)
        self.key = RMSNorm(head_width)


class SelfAttention(nn.Module):
    """Attention of the tokens among themselves, queries and keys normed and then turned by their places. No biases."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm = QKNorm(width // heads) if qk_norm else None

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:  # (B, N, D), (N, D/2H) → (B, N, D)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 × (B, H, N, D/H)
        if self.norm is not None:
            q, k = self.norm.query(q), self.norm.key(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        x = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, D/H)
        return self.out(x.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of the tokens to the context. Keys and values depend on the context alone. No biases."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm = QKNorm(width // heads) if qk_norm else None

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:  # (B, M, D) → 2 × (B, H, M, D/H)
        """What attention needs of the context; the same at every timestep, so sampling computes it once."""
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (self.norm.key(k) if self.norm is not None else k), v

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], bias: Tensor | None, unmasked: int = 0) -> Tensor:
        """x: (B, N, D); bias: (B, 1, 1, M), added to the logits, −inf where the context is padding, and one number for
        all of the last `unmasked` tokens of the context.
        """
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, N, D/H)
        if self.norm is not None:
            q = self.norm.query(q)
        k, v = keys_values
        if bias is not None and unmasked and joining_pays(q):
            x = joined_attention(q, k, v, bias, unmasked)
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.out(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """down·GELU(up·x). No biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) → (B, N, D)
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """down·(value·SiLU(gate)), value and gate two linear layers of x in one matrix (arXiv 2002.05202, eq. 6). No
    biases.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) → (B, N, D)
        value, gate = self.up(x).chunk(2, dim=-1)  # (B, N, F) each
        return self.down(value * F.silu(gate))


def swiglu_width(gelu_width: int) -> int:
    """The hidden width at which `SwiGLU` has the parameters of an `MLP` of this one, 3·D·F' = 2·D·F (the same, section
    2), as the nearest multiple of 8: within a percent from F = 512.
    """
    return max(8, 8 * round(gelu_width / 12))


class TimestepEmbedding(nn.Module):
    """t in [0, 1] → t·1000 → sinusoid → MLP. Without the factor the embedding is nearly constant over [0, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(_TIMESTEP_CHANNELS, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:  # (B,) → (B, D)
        half = _TIMESTEP_CHANNELS // 2
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, device=t.device) / half)
        angles = t.float()[:, None] * TIMESTEP_SCALE * frequencies  # (B, 128)
        return self.out(F.silu(self.up(torch.cat([angles.cos(), angles.sin()], dim=1))))
