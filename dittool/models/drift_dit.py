"""The one-step generator: noise, a class and a guidance scale in, a latent out, in one evaluation.

After "Generative Modeling via Drifting" (arXiv 2602.04770); what of it the paper states stands in
audit/specs/drifting.toml.

B batch · C latent channels · p patch size · h w = grid in tokens · R registers · N = R + h·w tokens · S style tokens ·
D width · H heads · K = D/H channels of a head · F inner width of SwiGLU
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dittool.models.dit import patchify, unpatchify
from dittool.models.layers import QKNorm, TimestepEmbedding, gated, modulate
from dittool.models.recompute import Recompute, keeping_attention
from dittool.models.rotary import cached_angles, rotate

_ALPHA_CHANNELS = 128  # hidden width of the guidance scale's MLP
_SINUSOID_GAIN = 0.02  # of the authors' guidance embedding, behind its norm
_EPS = 1e-6


@dataclass(frozen=True)
class ClassConditions:
    """What each sample of a batch is."""

    labels: Tensor  # (B,) int64, class numbers
    style: Tensor  # (B, S) int64, code words drawn at random: they tell the samples of one class apart beside the noise


@dataclass(frozen=True)
class DriftDiTConfig:
    """The architecture; the keys are explained in config/drift_schema.py."""

    depth: int
    width: int
    heads: int
    mlp_width: int
    patch_size: int
    channels: int
    cells: tuple[int, int]
    classes: int
    registers: int
    register_tensors: str
    style_tokens: int
    style_codebook: int
    style_tables: str
    alpha_embedding: str
    patch_embedding: str
    norm: str
    qk_norm: str
    rope: str
    swiglu: str
    output_modulation: bool
    zero_output: bool
    embedding_std: float
    gradient_checkpointing: Recompute

    @property
    def grid(self) -> tuple[int, int]:
        return self.cells[0] // self.patch_size, self.cells[1] // self.patch_size


class RotaryAttention(nn.Module):
    """Attention of all tokens among themselves, with biases; queries and keys normed, then turned by their
    positions.
    """

    def __init__(self, config: DriftDiTConfig) -> None:
        super().__init__()
        self.heads, self.qk_norm = config.heads, config.qk_norm
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        if config.qk_norm == "rms_gain":
            self.norm = QKNorm(config.width // config.heads)

    # (B, N, D) → 3 × (B, H, N, K)
    def queries_keys_values(self, x: Tensor, angles: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.qk_norm == "rms":  # x / rms(x) = √K · x / ‖x‖: logits q·k/√K up to ±√K
            q, k = (F.rms_norm(x, x.shape[-1:], eps=_EPS) for x in (q, k))
        elif self.qk_norm == "rms_gain":
            q, k = self.norm.query(q), self.norm.key(k)
        # logits q·k/√K within ±1/√K: softmax over them is almost uniform whatever is learned
        elif self.qk_norm == "l2":
            q, k = (F.normalize(x, dim=-1) for x in (q, k))
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return q, k, v

    def forward(self, x: Tensor, angles: Tensor | None) -> Tensor:  # (B, N, D) → (B, N, D)
        x = F.scaled_dot_product_attention(*self.queries_keys_values(x, angles))
        return self.out(x.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """value·SiLU(gate) between two linear layers with biases (arXiv 2002.05202); value and gate in one matrix or in
    two.
    """

    def __init__(self, width: int, hidden: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        if fused:
            self.up = nn.Linear(width, 2 * hidden)
        else:
            self.value = nn.Linear(width, hidden)
            self.gate = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) → (B, N, D)
        value, gate = self.up(x).chunk(2, dim=-1) if self.fused else (self.value(x), self.gate(x))  # (B, N, F) each
        return self.down(value * F.silu(gate))


class GeneratorBlock(nn.Module):
    """Attention and SwiGLU, each with shift, scale and gate from the condition vector (adaLN-Zero)."""

    def __init__(self, config: DriftDiTConfig) -> None:
        super().__init__()
        self.attention_norm = token_norm(config)
        self.attention = RotaryAttention(config)
        self.mlp_norm = token_norm(config)
        self.mlp = SwiGLU(config.width, config.mlp_width, config.swiglu == "fused")
        self.modulation = nn.Linear(config.width, 6 * config.width)
        self.keeps_attention = config.gradient_checkpointing == "selective"

    def forward(self, x: Tensor, c: Tensor, angles: Tensor | None) -> Tensor:
        """x: (B, N, D) tokens; c: (B, D) condition vector; angles: (N, K/2)."""
        if self.keeps_attention and self.training:
            return keeping_attention(self._branches, x, c, angles)
        return self._branches(x, c, angles)

    def _branches(self, x: Tensor, c: Tensor, angles: Tensor | None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(F.silu(c)).chunk(6, dim=1)  # 6 × (B, D)
        x = gated(x, gate_a, self.attention(modulate(self.attention_norm(x), shift_a, scale_a), angles))
        return gated(x, gate_m, self.mlp(modulate(self.mlp_norm(x), shift_m, scale_m)))


class AlphaMLP(nn.Module):
    """The guidance scale itself through Linear, SiLU, Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(1, _ALPHA_CHANNELS)
        self.out = nn.Linear(_ALPHA_CHANNELS, width)

    def forward(self, alpha: Tensor) -> Tensor:  # (B,) → (B, D)
        return self.out(F.silu(self.up(alpha[:, None])))


class AlphaSinusoid(nn.Module):
    """The guidance scale as 256 sines and cosines through an MLP and a norm, kept small."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = TimestepEmbedding(width)
        self.norm = nn.RMSNorm(width, eps=_EPS)

    def forward(self, alpha: Tensor) -> Tensor:  # (B,) → (B, D)
        return _SINUSOID_GAIN * self.norm(self.mlp(alpha).float())


class DriftDiT(nn.Module):
    """f(ε; class, α): one latent for each noise."""

    def __init__(self, config: DriftDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch_values = config.width, config.channels * config.patch_size**2
        self.patch_embedding: nn.Conv2d | nn.Linear
        if config.patch_embedding == "conv":
            self.patch_embedding = nn.Conv2d(config.channels, width, config.patch_size, config.patch_size)
        else:
            self.patch_embedding = nn.Linear(patch_values, width)
        self.positions = nn.Parameter(torch.empty(1, config.grid[0] * config.grid[1], width))
        self.class_embedding = nn.Embedding(config.classes, width)
        self.alpha = AlphaMLP(width) if config.alpha_embedding == "mlp" else AlphaSinusoid(width)
        if config.style_tokens:
            tables = config.style_tokens if config.style_tables == "separate" else 1
            self.style = nn.Embedding(tables * config.style_codebook, width)  # separate tables lie one below the other
        if config.registers:
            self.register_base = nn.Parameter(torch.empty(1, config.registers, width))
            if config.register_tensors == "base_and_position":
                self.register_positions = nn.Parameter(torch.empty(1, config.registers, width))
            self.condition_to_registers = nn.Linear(width, width)
        self.blocks = nn.ModuleList(GeneratorBlock(config) for _ in range(config.depth))
        self.output_norm = token_norm(config)
        if config.output_modulation:
            self.output_modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, patch_values)
        self.initialize_weights()

    def initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)  # keeps the variance of activations from layer to layer
                nn.init.zeros_(module.bias)
        # a convolution of stride p is a linear layer on patches
        nn.init.xavier_uniform_(self.patch_embedding.weight.view(self.config.width, -1))
        assert self.patch_embedding.bias is not None
        nn.init.zeros_(self.patch_embedding.bias)
        for parameter in self.parameters(recurse=False):  # positions and registers
            nn.init.normal_(parameter, std=0.02)
        nn.init.normal_(self.class_embedding.weight, std=self.config.embedding_std)
        if self.config.style_tokens:
            nn.init.normal_(self.style.weight, std=self.config.embedding_std)
        # adaLN-Zero: every gate is zero, so every block is the identity at step 0.
        for block in cast("Iterator[GeneratorBlock]", iter(self.blocks)):
            nn.init.zeros_(block.modulation.weight)
        if self.config.output_modulation:
            nn.init.zeros_(self.output_modulation.weight)
        if self.config.zero_output:
            nn.init.zeros_(self.output.weight)

    def forward(self, noise: Tensor, alpha: Tensor, conditions: ClassConditions) -> Tensor:
        """noise: (B, C, h·p, w·p) N(0, 1); alpha: (B,) guidance scales. Returns latents of the noise's shape.

        Raises ValueError for noise of another size than the learned positions.
        """
        config = self.config
        if tuple(noise.shape[1:]) != (config.channels, *config.cells):
            wanted = "×".join(map(str, (config.channels, *config.cells)))
            raise ValueError(f"noise of {'×'.join(map(str, noise.shape[1:]))} values; this generator draws {wanted}")
        c = self.condition(alpha, conditions)  # (B, D)
        x = self.embed(noise) + self.positions  # (B, h·w, D)
        if config.registers:
            x = torch.cat([self.register_tokens(c), x], dim=1)  # (B, N, D)
        angles = self.angles(x.device)
        for block in self.blocks:
            recomputed = config.gradient_checkpointing is True and self.training
            x = checkpoint(block, x, c, angles, use_reentrant=False) if recomputed else block(x, c, angles)
        x = self.output_norm(x[:, config.registers :])
        if config.output_modulation:
            x = modulate(x, *self.output_modulation(F.silu(c)).chunk(2, dim=1))
        return unpatchify(self.output(x), config.grid, config.patch_size)

    def embed(self, noise: Tensor) -> Tensor:
        """Patches of the noise as tokens, (B, h·w, D), in row-major order."""
        if self.config.patch_embedding == "conv":
            return self.patch_embedding(noise).flatten(2).transpose(1, 2)
        return self.patch_embedding(patchify(noise, self.config.patch_size))

    def angles(self, device: torch.device) -> Tensor | None:
        """Rotary angles of all tokens, (N, K/2)."""
        config = self.config
        if config.rope == "none":
            return None
        return cached_angles(config.rope, config.registers, config.grid, config.width // config.heads, device)

    def condition(self, alpha: Tensor, conditions: ClassConditions) -> Tensor:
        """c = class + α embedding + Σ style, (B, D)."""
        c = self.class_embedding(conditions.labels) + self.alpha(alpha)
        if not self.config.style_tokens:
            return c
        words = conditions.style  # (B, S)
        if self.config.style_tables == "separate":
            words = words + torch.arange(self.config.style_tokens, device=words.device) * self.config.style_codebook
        return c + self.style(words).sum(dim=1)

    def register_tokens(self, c: Tensor) -> Tensor:
        """register = base + position + Linear(c), (B, R, D)."""
        learned: Tensor = self.register_base
        if self.config.register_tensors == "base_and_position":
            learned = learned + self.register_positions
        return learned + self.condition_to_registers(c)[:, None]


def token_norm(config: DriftDiTConfig) -> nn.Module:
    """A norm of tokens over their channels with a learned gain."""
    return (
        nn.RMSNorm(config.width, eps=_EPS) if config.norm == "rms" else nn.LayerNorm(config.width, eps=_EPS, bias=False)
    )


def attention_entropy(attention: RotaryAttention, x: Tensor, angles: Tensor | None) -> Tensor:
    """How spread out each query's attention is, as a share of the largest possible: −Σ p·log p / log N. x: (B, N,
    D). Returns (B, H, N).
    """
    q, k, _ = attention.queries_keys_values(x, angles)
    p = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)  # (B, H, N, N)
    return torch.special.entr(p).sum(dim=-1) / math.log(x.shape[1])
