"""The model a second time, plain and slow: one sample at a time, nulls written out, explicit softmax, no shared code
with dittool.

It reads a state dict and follows the design's text. Positions, patch order and the timestep embedding are derived anew.
"""

from __future__ import annotations

import cmath
import math

import torch
from torch import Tensor

from dittool.models.dit import DiTConfig


class PlainDiT:
    """`velocity` of one sample from the weights of a `DiT`."""

    def __init__(self, weights: dict[str, Tensor], config: DiTConfig, route: list[int] | None = None) -> None:
        """`route`: the tokens that pass the routed blocks; the others skip them."""
        self.route, self.routed = route, config.routed_blocks
        self.w, self.depth, self.heads, self.patch = weights, config.depth, config.heads, config.patch_size
        self.normed = normed if config.norm == "layer" else lambda x: rms(x[None])[0]
        self.turns, self.balance = config.positions == "rope", config.context_balance
        self.adds = config.patch_fusion == "added"
        self.width = weights["patch_embedding.weight"].shape[0]

    def velocity(self, z, t, text, cls, patches, patch_grid):
        """z (C, H, W); text (L, D) or None; cls (C,) or None; patches (N, C) or None, where None is the null
        condition.
        """
        p, (channels, rows, columns) = self.patch, z.shape
        h, w = rows // p, columns // p
        tokens = []
        for i in range(h):
            for j in range(w):
                cell = z[:, i * p : (i + 1) * p, j * p : (j + 1) * p].reshape(-1)
                tokens.append(self.linear("patch_embedding", cell) + self.position(i, j, (h, w), (h, w)))
        x = torch.stack(tokens)
        if self.adds:
            x = x + torch.stack([self.patch_row(patches, index) for index in range(h * w)])
        context, cls_vector = self.context(text, cls, patches, patch_grid, (h, w))
        c = self.timestep(t) + cls_vector
        self.grid = (h, w)
        for index in range(self.depth):
            routed = self.route is not None and self.routed[0] <= index + 1 <= self.routed[1]
            self.places = self.route if routed else range(h * w)
            passed = self.block(f"blocks.{index}.", torch.stack([x[place] for place in self.places]), c, context)
            x = x.clone()
            for place, token in zip(self.places, passed, strict=True):
                x[place] = token
        shift, scale = self.linear("output_modulation", silu(c)).reshape(2, -1)
        out = torch.stack([self.linear("output", self.normed(token) * (1 + scale) + shift) for token in x])
        result = torch.empty_like(z)
        for index, cell in enumerate(out):
            i, j = divmod(index, w)
            result[:, i * p : (i + 1) * p, j * p : (j + 1) * p] = cell.reshape(channels, p, p)
        return result

    def context(self, text, cls, patches, patch_grid, token_grid):
        text = self.w["conditioning.null_text"][None] if text is None else text
        cls = self.w["conditioning.null_dino"] if cls is None else cls
        cls_vector = self.linear("conditioning.dino_proj", cls)
        cls_vector = self.part_norm("dino_norm", cls_vector)
        rows = [self.part_norm("text_norm", self.linear("conditioning.text_proj", token)) for token in text]
        rows += [cls_vector]
        self.shares = [len(text)] * len(text) + [1]
        if "conditioning.dino_patch_proj.weight" in self.w and not self.adds:
            for index in range(patch_grid[0] * patch_grid[1]):
                row = self.patch_row(patches, index)
                place = divmod(index, patch_grid[1])
                rows.append(row if patches is None else row + self.position(*place, patch_grid, token_grid))
            self.shares += [patch_grid[0] * patch_grid[1]] * (patch_grid[0] * patch_grid[1])
        return torch.stack(rows), cls_vector

    def patch_row(self, patches, index):
        patch = self.w["conditioning.null_dino_patch_token"] if patches is None else patches[index]
        return self.part_norm("dino_patch_norm", self.linear("conditioning.dino_patch_proj", patch))

    def part_norm(self, name, x):
        gain = self.w.get(f"conditioning.{name}.gain")
        return x if gain is None else rms(x[None])[0] * gain

    def block(self, name, x, c, context):
        if name + "modulation.offset" in self.w:
            vectors = self.linear("modulation", silu(c)) + self.w[name + "modulation.offset"]
        else:
            vectors = self.linear(name + "modulation", silu(c))
        for branch, (shift, scale, gate) in zip(
            ("attention", "cross_attention", "mlp"), vectors.reshape(3, 3, self.width), strict=True
        ):
            inner = torch.stack([self.normed(token) * (1 + scale) + shift for token in x])
            x = x + gate * getattr(self, branch)(name + branch + ".", inner, context)
        return x

    def attention(self, name, x, _context):
        q, k, v = (x @ part.T for part in self.w[name + "qkv.weight"].chunk(3))
        return self.attend(name, q, k, v, self.turns)

    def cross_attention(self, name, x, context):
        k, v = (context @ part.T for part in self.w[name + "kv.weight"].chunk(2))
        return self.attend(name, x @ self.w[name + "q.weight"].T, k, v, weighs=self.balance)

    def attend(self, name, q, k, v, turns=False, weighs=False):
        size, heads = self.width // self.heads, []
        for head in range(self.heads):
            part = slice(head * size, (head + 1) * size)
            qh, kh, vh = q[:, part], k[:, part], v[:, part]
            if name + "norm.query.gain" in self.w:
                qh, kh = rms(qh) * self.w[name + "norm.query.gain"], rms(kh) * self.w[name + "norm.key.gain"]
            if turns:
                qh, kh = self.turned(qh), self.turned(kh)
            logits = (qh @ kh.T / math.sqrt(size)).exp()
            if weighs:
                logits = logits / torch.tensor(self.shares)
            heads.append(logits / logits.sum(dim=1, keepdim=True) @ vh)
        return torch.cat(heads, dim=1) @ self.w[name + "out.weight"].T

    def turned(self, x):
        """Channel j and channel j + half are the real and imaginary part of a number, turned by its token's place: the
        first quarter of the channels by rows, the second by columns.
        """
        half, quarter = x.shape[1] // 2, x.shape[1] // 4
        result = torch.empty_like(x)
        for token in range(len(x)):
            row, column = divmod(self.places[token], self.grid[1])
            for j in range(half):
                angle = (row if j < quarter else column) * 100 ** (-(j % quarter) / quarter)
                number = complex(x[token, j], x[token, j + half]) * cmath.exp(1j * angle)
                result[token, j], result[token, j + half] = number.real, number.imag
        return result

    def mlp(self, name, x, _context):
        hidden = x @ self.w[name + "up.weight"].T
        if hidden.shape[1] == 2 * self.w[name + "down.weight"].shape[1]:
            value, gate = hidden.split(hidden.shape[1] // 2, dim=1)
            return (value * silu(gate)) @ self.w[name + "down.weight"].T
        gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        return gelu @ self.w[name + "down.weight"].T

    def timestep(self, t):
        angles = [1000 * float(t) / 10000 ** (k / 128) for k in range(128)]
        sinusoid = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
        return self.linear("timestep.out", silu(self.linear("timestep.up", sinusoid)))

    def position(self, i, j, grid, span):
        y, x = (((index + 0.5) / cells - 0.5) * extent for index, cells, extent in zip((i, j), grid, span, strict=True))
        quarter = self.width // 4
        scales = [100 ** (-k / quarter) for k in range(quarter)]
        return torch.tensor([f(place * s) for place in (y, x) for f in (math.sin, math.cos) for s in scales])

    def linear(self, name, x):
        return self.w[name + ".weight"] @ x + self.w[name + ".bias"]


def silu(x):
    return x / (1 + torch.exp(-x))


def normed(x):
    return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-6)


def rms(x):
    return x / torch.sqrt(x.square().mean(dim=1, keepdim=True) + 1e-6)
