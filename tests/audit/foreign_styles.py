"""Small transformers in three styles with the same hooks for habits: a plain one called with (x, t, y); one with a
configuration class, a sequence of text and picture, and rotary angles; one that is fed by a dictionary.

B batch · N tokens of the picture · L tokens of text · D width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH, HEADS, PATCH = 32, 2, 2


def angles_of(t: Tensor, width: int) -> Tensor:
    """(B, width) of a time of any shape."""
    turns = t.float().reshape(-1)[:, None] * torch.exp(-torch.arange(width // 2) / 2)
    return torch.cat([turns.cos(), turns.sin()], -1)


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """(B, H, N, D) by (N, D / 2)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


class Hooks(nn.Module):
    """What a habit may do otherwise. Blocks are called by `step`."""

    one, use_checkpoint = 1.0, False

    @staticmethod
    def gate(gate: Tensor) -> Tensor:
        return gate

    @staticmethod
    def after(x: Tensor) -> Tensor:
        """What a block does to its tokens behind the residual."""
        return x

    def place(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Row and column of each token."""
        index = torch.arange(rows * columns)
        return index // columns, index % columns

    def time(self, t: Tensor) -> Tensor:
        return t

    def given(self, vector: Tensor) -> Tensor:
        """(B, D) of the condition beside time."""
        return vector

    def run(self, z: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            z = self.step(block, z, c)
        return z

    def step(self, block: nn.Module, z: Tensor, c: Tensor) -> Tensor:
        return block(z, c, self.angle)

    def answer(self, picture: Tensor) -> object:
        return picture

    def turns(self, rows: int, columns: int, width: int) -> Tensor:
        """(N, width): angles of rows, then of columns."""
        frequencies = 0.2 ** (torch.arange(width // 2) / (width // 2))
        return torch.cat([place[:, None].float() * frequencies for place in self.place(rows, columns)], 1)

    def cut(self, x: Tensor) -> Tensor:
        """(B, N, 4 C) of patches."""
        return F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)

    def joined(self, z: Tensor, like: Tensor) -> Tensor:
        return F.fold(z.transpose(1, 2), like.shape[-2:], PATCH, stride=PATCH)


class Block(nn.Module):
    """adaLN-Zero with six vectors."""

    vectors = 6

    def __init__(self, net: type[Hooks]):
        super().__init__()
        self.net = net
        self.modulation = nn.Linear(WIDTH, self.vectors * WIDTH)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.build()

    def build(self):
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 64, bias=False), nn.Linear(64, WIDTH, bias=False)

    def modulated(self, c):
        return self.modulation(F.silu(c))[:, None].chunk(self.vectors, -1)

    def attend(self, x, angle):
        q, k, v = (heads(part) for part in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x, c, angle=None):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulated(c)
        x = x + self.net.gate(gate_a) * self.attend(norm(x) * (self.net.one + scale_a) + shift_a, angle)
        mlp = self.down(F.gelu(self.up(norm(x) * (self.net.one + scale_m) + shift_m)))
        return self.net.after(x + self.net.gate(gate_m) * mlp)


class Plain(Hooks):
    """(x, t, y) → picture. Sin-cos positions, fused q, k, v, class labels."""

    style = "plain"
    block: type[nn.Module] = Block
    angle = None

    def __init__(self, depth: int = 3):
        super().__init__()
        self.patches, self.times, self.labels = nn.Linear(16, WIDTH), nn.Linear(32, WIDTH), nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList(self.block(type(self)) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 16)

    def forward(self, x, t, y):
        rows, columns = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        turns = self.turns(rows, columns, WIDTH // 2)
        z = self.patches(self.cut(x)) + torch.cat([turns.sin(), turns.cos()], 1)
        c = self.times(angles_of(self.time(t), 32)) + self.given(self.labels(y))
        return self.answer(self.joined(self.head(self.run(z, c)), x))


@dataclass
class Config:
    num_layers: int = 3
    caption_channels: int = 12
    in_channels: int = 4


@dataclass
class Output:
    sample: Tensor


class ConfiguredBlock(Block):
    """Separate q, k, v; rotary angles."""

    def build(self):
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH, bias=False), nn.Dropout(0.0)])
        self.up, self.ff_out = nn.Linear(WIDTH, 64, bias=False), nn.Linear(64, WIDTH, bias=False)

    def attend(self, x, angle):
        q, k, v = (heads(layer(x)) for layer in (self.to_q, self.to_k, self.to_v))
        seen = F.scaled_dot_product_attention(turned(q, angle), turned(k, angle), v)
        return self.to_out[1](self.to_out[0](seen.transpose(1, 2).flatten(2)))

    def down(self, x):
        return self.ff_out(x)


class Configured(Hooks):
    """(hidden_states, timestep, text, a pooled vector) → a dataclass. One sequence of text, then picture."""

    style = "configured"
    block: type[nn.Module] = ConfiguredBlock

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.proj_in, self.time_embed = nn.Linear(4 * config.in_channels, WIDTH), nn.Linear(32, WIDTH)
        self.caption, self.pooled = nn.Linear(config.caption_channels, WIDTH), nn.Linear(config.caption_channels, WIDTH)
        self.transformer_blocks = nn.ModuleList(self.block(type(self)) for _ in range(config.num_layers))
        self.proj_out = nn.Linear(WIDTH, 4 * config.in_channels)

    @property
    def blocks(self):
        return self.transformer_blocks

    def forward(self, hidden_states, timestep, encoder_hidden_states, pooled_projections, return_dict=True):
        rows, columns = hidden_states.shape[-2] // PATCH, hidden_states.shape[-1] // PATCH
        text = self.caption(encoder_hidden_states)
        turns = self.turns(rows, columns, WIDTH // HEADS // 2)
        self.angle = torch.cat([torch.zeros(text.shape[1], turns.shape[1]), turns])
        given = self.given(self.pooled(pooled_projections))
        c = self.time_embed(angles_of(self.time(timestep), 32)) + given
        z = self.run(torch.cat([text, self.proj_in(self.cut(hidden_states))], 1), c)[:, -rows * columns :]
        picture = self.answer(self.joined(self.proj_out(z), hidden_states))
        return Output(picture) if return_dict else (picture,)


class FedBlock(Block):
    """Attention written out, an MLP beside it, and one gate for both."""

    vectors = 3

    def build(self):
        self.norm = nn.RMSNorm(WIDTH, elementwise_affine=False)
        self.all, self.out = nn.Linear(WIDTH, 3 * WIDTH + 64, bias=False), nn.Linear(WIDTH + 64, WIDTH, bias=False)

    def forward(self, x, c, angle=None):
        shift, scale, gate = self.modulated(c)
        y = self.norm(x) * (self.net.one + scale) + shift
        q, k, v, hidden = self.all(y).split([WIDTH, WIDTH, WIDTH, 64], -1)
        q, k = turned(heads(q), angle), turned(heads(k), angle)
        seen = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ heads(v)
        both = torch.cat([seen.transpose(1, 2).flatten(2), F.silu(hidden)], -1)
        return self.net.after(x + self.net.gate(gate) * self.out(both))


class Fed(Hooks):
    """(latent, a dictionary) → a dictionary. Text with a mask is averaged into the condition."""

    style = "fed"
    block: type[nn.Module] = FedBlock

    def __init__(self, depth: int = 3):
        super().__init__()
        self.stem, self.clock, self.words = nn.Linear(16, WIDTH), nn.Linear(32, WIDTH), nn.Linear(12, WIDTH)
        self.layers = nn.ModuleList(self.block(type(self)) for _ in range(depth))
        self.end = nn.Linear(WIDTH, 16)

    @property
    def blocks(self):
        return self.layers

    def forward(self, latent, batch):
        x, kept = latent, batch["cond"]["mask"].float()[..., None]
        words = (self.words(batch["cond"]["text"]) * kept).sum(1) / kept.sum(1)
        rows, columns = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        self.angle = self.turns(rows, columns, WIDTH // HEADS // 2)
        c = self.clock(angles_of(self.time(batch["t"]), 32)) + self.given(words)
        return {"picture": self.answer(self.joined(self.end(self.run(self.stem(self.cut(x)), c)), x))}


STYLES: dict[str, type[Hooks]] = {"plain": Plain, "configured": Configured, "fed": Fed}


def recomputed(block: nn.Module, *inputs: object) -> Tensor:
    return checkpoint(block, *inputs, use_reentrant=False)


def example(model, height=None, width=None):
    """Inputs of each style."""
    x, t = torch.randn(2, 4, height or 16, width or 16), torch.tensor([200.0, 700.0])
    text, mask = torch.randn(2, 7, 12), torch.arange(7)[None] < torch.tensor([[7], [4]])
    if model.style == "plain":
        return {"x": x, "t": t, "y": torch.tensor([1, 3])}
    if model.style == "configured":
        pooled = torch.randn(2, 12)
        return {"hidden_states": x, "timestep": t, "encoder_hidden_states": text, "pooled_projections": pooled}
    return {"latent": x, "batch": {"t": t, "cond": {"text": text, "mask": mask}}}
