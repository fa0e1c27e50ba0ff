"""The dual-conditioned diffusion transformer: latents and a timestep in, a velocity out.

After "Scalable Diffusion Models with Transformers" (arXiv 2212.09748), with cross-attention to a caption and a
reference image.

B batch · C latent channels · H W latent rows and columns · p patch size · h w = H/p, W/p · N = h·w tokens · M context
tokens · D width
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dittool.models.alignment import AlignmentHead
from dittool.models.conditioning import Conditioning, Conditions, Context, Kept
from dittool.models.layers import (
    MLP,
    TOKEN_NORMS,
    CrossAttention,
    Modulation,
    ModulationOffset,
    SelfAttention,
    SwiGLU,
    TimestepEmbedding,
    gated,
    modulate,
    swiglu_width,
)
from dittool.models.positions import LARGEST_SCALE, cached_positions
from dittool.models.recompute import Recompute, keeping_attention
from dittool.models.rotary import cached_angles
from dittool.models.routing import angles_of, returned, taken

_VECTORS = 9  # of a block's modulation: shift, scale and gate for each of its three branches
KeysValues = list[tuple[Tensor, Tensor]]  # for each block, 2 × (B, heads, M, D/heads)


@dataclass(frozen=True)
class DiTConfig:
    """The architecture. The three feature widths come from the data's identity card."""

    depth: int
    width: int
    heads: int
    mlp: str
    mlp_ratio: float
    patch_size: int
    norm: str
    qk_norm: bool
    positions: str
    shared_modulation: bool
    patches: bool
    patch_fusion: str
    patch_positions: bool
    context_norm: bool
    context_balance: bool
    time_init: str
    gradient_checkpointing: Recompute
    routed_blocks: tuple[int, int]  # first and last that a routed token skips, counted from 1
    aligned_block: int | None  # whose tokens are projected in training, counted from 1
    latent_channels: int
    text_width: int
    image_width: int


class TrainingAnswer(NamedTuple):
    """What training minimises something of."""

    velocity: Tensor  # (B, C, H, W)
    projected: Tensor  # (R, N or K, image width) tokens of the aligned block, of the samples that were asked for


class Block(nn.Module):
    """Self-attention, cross-attention, MLP; each with shift, scale and gate from the condition vector (adaLN-Zero)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config.width, config.heads, config.qk_norm)
        self.cross_attention = CrossAttention(config.width, config.heads, config.qk_norm)
        hidden = int(config.width * config.mlp_ratio)
        swiglu = config.mlp == "swiglu"
        self.mlp = SwiGLU(config.width, swiglu_width(hidden)) if swiglu else MLP(config.width, hidden)
        modulation = ModulationOffset if config.shared_modulation else Modulation
        self.modulation = modulation(config.width, _VECTORS)
        self.norm = TOKEN_NORMS[config.norm]
        self.keeps_attention = config.gradient_checkpointing == "selective"

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        context: Tensor,
        bias: Tensor | None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        angles: Tensor | None = None,
        unmasked: int = 0,
    ) -> Tensor:
        """x: (B, N, D) tokens; c: (B, D) condition vector, or with a shared modulation (B, 9·D) what it makes of that;
        context: (B, M, D); bias: (B, 1, 1, M); angles: (N, D/2H) by which rotary positions turn; unmasked: so many of
        the last tokens of the context have one bias (`Context`).

        `keys_values` are this block's keys and values of the context when they were computed before.
        """
        inputs = x, c, context, bias, keys_values, angles, unmasked
        if self.keeps_attention and self.training:
            return keeping_attention(self._branches, *inputs)
        return self._branches(*inputs)

    def _branches(
        self,
        x: Tensor,
        c: Tensor,
        context: Tensor,
        bias: Tensor | None,
        keys_values: tuple[Tensor, Tensor] | None,
        angles: Tensor | None,
        unmasked: int,
    ) -> Tensor:
        vectors = self.modulation(c).chunk(_VECTORS, dim=1)  # 9 × (B, D)
        shift_a, scale_a, gate_a, shift_x, scale_x, gate_x, shift_m, scale_m, gate_m = vectors
        if keys_values is None:
            keys_values = self.cross_attention.keys_values(context)
        x = gated(x, gate_a, self.attention(modulate(self.norm(x), shift_a, scale_a), angles))
        x = gated(
            x, gate_x, self.cross_attention(modulate(self.norm(x), shift_x, scale_x), keys_values, bias, unmasked)
        )
        return gated(x, gate_m, self.mlp(modulate(self.norm(x), shift_m, scale_m)))


class DiT(nn.Module):
    """Velocity of the rectified flow at (z_t, t), given a caption and a reference image."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        patch_values = config.latent_channels * config.patch_size**2
        self.patch_embedding = nn.Linear(patch_values, config.width)
        self.timestep = TimestepEmbedding(config.width)
        self.conditioning = Conditioning(
            config.width,
            config.text_width,
            config.image_width,
            config.patches,
            config.patch_fusion,
            config.patch_positions,
            config.context_norm,
            config.context_balance,
        )
        if config.shared_modulation:
            self.modulation = Modulation(config.width, _VECTORS)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = TOKEN_NORMS[config.norm]
        self.output_modulation = Modulation(config.width, 2)
        self.output = nn.Linear(config.width, patch_values)
        self.initialize_weights()
        if config.aligned_block is not None:  # last, so that all else is drawn as without it
            self.alignment_head = AlignmentHead(config.width, config.image_width)

    def initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)  # keeps the variance of activations from layer to layer
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.config.time_init == "small":
            # as in DiT, whose labels are small too; beside the CLS projection the timestep's part is 25 times smaller
            nn.init.normal_(self.timestep.up.weight, std=0.02)
            nn.init.normal_(self.timestep.out.weight, std=0.02)
        # adaLN-Zero: every gate is zero, so every block is the identity at step 0.
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.weight)
        # The first prediction is zero: the loss starts at the variance of the target.
        nn.init.zeros_(self.output.weight)
        for name, parameter in self.conditioning.named_parameters():
            if name.startswith("null_"):
                nn.init.normal_(parameter, std=0.02)

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        conditions: Conditions,
        kept: Kept | None = None,
        aligned: Tensor | None = None,
        route: Tensor | None = None,
    ) -> Tensor | TrainingAnswer:
        """z: (B, C, H, W) noisy latent; t: (B,) in [0, 1]. Returns the velocity, (B, C, H, W).

        `aligned`, (R,) numbers of samples, asks for the projected tokens of those too; `route`, (B, K) numbers of
        tokens, lets all others skip the routed blocks.
        """
        context = self.context(conditions, kept, len(z), self.token_grid(z))
        velocity, projected = self._answer(z, t, context, None, aligned, route)
        return velocity if projected is None else TrainingAnswer(velocity, projected)

    def each_block(self) -> Iterator[Block]:
        """The blocks in order, as what they are: `nn.ModuleList` knows modules alone."""
        return cast("Iterator[Block]", iter(self.blocks))

    def token_grid(self, z: Tensor) -> tuple[int, int]:
        """(rows, columns) of a latent in tokens. Raises ValueError when the latent is not whole tokens."""
        p, (rows, columns) = self.config.patch_size, z.shape[-2:]
        if rows % p or columns % p:
            raise ValueError(f"a latent of {rows}×{columns} cells does not divide into tokens of {p}×{p}")
        return rows // p, columns // p

    def context(self, conditions: Conditions, kept: Kept | None, batch: int, token_grid: tuple[int, int]) -> Context:
        """What the blocks attend to; the same for all timesteps of a sample."""
        return self.conditioning(conditions, kept, batch, token_grid)

    def tokens(self, z: Tensor) -> Tensor:
        """What the first block takes of a latent: its patches' embeddings with their places added, (B, N, D)."""
        positions = cached_positions(self.token_grid(z), self.config.width, None, z.device)
        return self.patch_embedding(patchify(z, self.config.patch_size)) + positions

    def angles(self, z: Tensor) -> Tensor | None:
        """Rotary angles of a latent's tokens by their rows and columns (axial, arXiv 2403.13298, section 3.1), (N,
        D/2H); None without.

        Only self-attention turns by them. In cross-attention tokens and the reference's patches find each other by the
        sin-cos positions that both carry, also where the two grids differ.
        """
        if self.config.positions == "sincos":
            return None
        channels = self.config.width // self.config.heads
        return cached_angles("2d", 0, self.token_grid(z), channels, z.device, LARGEST_SCALE)

    def keys_values(self, context: Context) -> KeysValues:
        """Keys and values of the context for every block, to be computed once a sample instead of once a step."""
        return [block.cross_attention.keys_values(context.tokens) for block in self.each_block()]

    def velocity(
        self,
        z: Tensor,
        t: Tensor,
        context: Context,
        keys_values: KeysValues | None = None,
        route: Tensor | None = None,
    ) -> Tensor:
        """The model proper, with the context ready. Same shapes as `forward`."""
        return self._answer(z, t, context, keys_values, None, route)[0]

    def _answer(
        self,
        z: Tensor,
        t: Tensor,
        context: Context,
        keys_values: KeysValues | None,
        aligned: Tensor | None,
        route: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The velocity, and the projected tokens of the samples `aligned`."""
        projected, (first, last) = None, self.config.routed_blocks
        x, angles = self.tokens(z), self.angles(z)
        if context.added is not None:
            x = x + context.added
        c = self.timestep(t) + context.cls  # (B, D)
        modulating = self.modulation(c) if self.config.shared_modulation else c
        skipping, every_angle = x, angles
        for number, block in enumerate(self.blocks, start=1):
            if route is not None and number == first:
                skipping, x = x, taken(x, route)  # (B, N, D), (B, K, D)
                angles = None if angles is None else angles_of(angles, route)
            ready = None if keys_values is None else keys_values[number - 1]
            inputs = x, modulating, context.tokens, context.bias
            if self.config.gradient_checkpointing is True and self.training:
                x = checkpoint(block, *inputs, ready, angles, context.unmasked, use_reentrant=False)
            else:
                x = block(*inputs, ready, angles, context.unmasked)
            if aligned is not None and number == self.config.aligned_block:
                projected = self.alignment_head(x[aligned])  # (R, N or K, F)
            if route is not None and number == last:
                x, angles = returned(skipping, x, route), every_angle
        shift, scale = self.output_modulation(c).chunk(2, dim=1)
        patches = self.output(modulate(self.norm(x), shift, scale))  # (B, N, C·p·p)
        return unpatchify(patches, self.token_grid(z), self.config.patch_size), projected


def patchify(z: Tensor, p: int) -> Tensor:
    """(B, C, h·p, w·p) → (B, h·w, C·p·p), tokens in row-major order."""
    return z.unflatten(2, (-1, p)).unflatten(4, (-1, p)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(x: Tensor, grid: tuple[int, int], p: int) -> Tensor:
    """(B, h·w, C·p·p) → (B, C, h·p, w·p): the inverse of `patchify`."""
    x = x.unflatten(1, grid).unflatten(3, (-1, p, p))  # (B, h, w, C, p, p)
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
