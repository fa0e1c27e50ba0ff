"""Variants of `foreign_kinds.Net` whose tokens lie otherwise: frames, windows, stems, stretched and turned positions.
`JUDGED` says of each which rules are asked, and what they must answer.

B batch · T frames · N tokens · D width
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.audit.foreign_kinds import HEADS, WIDTH, Block, Net, norm, sincos


class FramesBlock(Block):
    """Attention within a frame, then between frames."""

    def __init__(self):
        super().__init__()
        self.between = nn.Linear(WIDTH, 3 * WIDTH, bias=False)

    def forward(self, x, c):  # (B, T, N, D), (B, T, D)
        shift, scale, gate, _, _, gate_m = self.modulation(F.silu(c))[:, :, None].chunk(6, -1)
        z = norm(x) * (1 + scale) + shift
        x = x + gate * self.attend(z.flatten(0, 1)).view(x.shape)
        q, k, v = self.between(norm(x).transpose(1, 2)).chunk(3, -1)
        return x + gate_m * F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class Frames(Net):
    block, opened = FramesBlock, ()

    def __init__(self, depth=3):
        super().__init__(depth)
        for block in self.blocks:
            del block.up, block.down
        for index in self.opened:
            nn.init.ones_(self.blocks[index].modulation.bias)

    def forward(self, x, t, y):  # (B, C, T, H, W)
        batch, channels, frames, height, width = x.shape
        rows, columns = height // 2, width // 2
        z = self.patches(x.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2) + sincos(rows, columns)
        z = z.view(batch, frames, rows * columns, WIDTH)
        z = self.head(self.run(z, self.condition(t, y)[:, None].expand(-1, frames, -1))).flatten(0, 1)
        x = F.fold(z.transpose(1, 2), (height, width), 2, stride=2)
        return x.view(batch, frames, channels, height, width).transpose(1, 2)


class FramesOneOpen(Frames):
    opened = (1,)


class Stem(Net):
    """Convolutions reach neighbours, and an edge's padding is no position."""

    swapped = False

    def __init__(self, depth=3):
        super().__init__(depth)
        self.patches = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, WIDTH, 2, 2))

    def positions(self, rows, columns):
        return sincos(rows, columns, self.swapped)


class StemExchanged(Stem):
    swapped = True


class Preconditioned(Net):
    """The latent itself is a part of the answer."""

    columns_first = False

    def forward(self, x, t, y):
        answer = super().forward(x, t, y)
        if self.columns_first:
            rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
            answer = F.unfold(answer, 2, stride=2).unflatten(2, (columns, rows)).transpose(2, 3).flatten(2)
            answer = F.fold(answer, x.shape[-2:], 2, stride=2)
        return 0.9 * x + answer


class PreconditionedColumnByColumn(Preconditioned):
    columns_first = True


class Stretched(Net):
    """A learned table, stretched to other sizes."""

    exchanged = cut = False

    def __init__(self, depth=3):
        super().__init__(depth)
        self.table = nn.Parameter(0.02 * torch.randn(1, WIDTH, 8, 8))

    def positions(self, rows, columns):
        if self.cut:
            return self.table.flatten(2).transpose(1, 2).repeat(1, 4, 1)[:, : rows * columns]
        size = (columns, rows) if self.exchanged else (rows, columns)
        return F.interpolate(self.table, size, mode="bilinear").flatten(2).transpose(1, 2)


class StretchedExchanged(Stretched):
    exchanged = True


class StretchedCut(Stretched):
    cut = True


class WindowsBlock(Block):
    """Attention in windows of 4 by 4 with a learned bias of distances."""

    exchanged = False

    def __init__(self):
        super().__init__()
        self.rel_bias = nn.Parameter(0.02 * torch.randn(49, HEADS))
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        apart = places[:, None] - places[None] + 3
        self.register_buffer("index", apart[..., 0] * 7 + apart[..., 1], persistent=False)

    def attend(self, x):  # (B, h, w, D)
        batch, rows, columns, width = x.shape
        x = F.pad(x, (0, 0, 0, -columns % 4, 0, -rows % 4))
        down, across = x.shape[1] // 4, x.shape[2] // 4
        windows = x.view(batch, down, 4, across, 4, width).transpose(2, 3).reshape(-1, 16, width)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(windows).chunk(3, -1))
        logits = q @ k.transpose(-1, -2) + self.rel_bias[self.index].permute(2, 0, 1)
        given = self.out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        if self.exchanged:
            given = given.view(batch, across, down, 16, width).transpose(1, 2).reshape(-1, 16, width)
        given = given.view(batch, down, across, 4, 4, width).transpose(2, 3).reshape(batch, down * 4, across * 4, width)
        return given[:, :rows, :columns]

    def vectors(self, c):
        return self.modulation(F.silu(c))[:, None, None].chunk(6, -1)


class Windows(Net):
    block = WindowsBlock

    def drawn(self, x, condition):
        z = self.patches(x).permute(0, 2, 3, 1)
        z = self.head(self.run(z, condition(z))).permute(0, 3, 1, 2)
        return F.pixel_shuffle(z, 2)


class WindowsExchanged(Windows):
    class block(WindowsBlock):
        exchanged = True


class ThroughAFew(Net):
    """Tokens hand to each other through a few vectors alone: each moves all, by next to nothing."""

    class block(Block):
        def __init__(self):
            super().__init__()
            self.few = nn.Parameter(torch.randn(4, WIDTH))

        def attend(self, x):
            read = F.scaled_dot_product_attention(self.few.expand(len(x), -1, -1), x, x)
            return self.out(F.scaled_dot_product_attention(x, read, read))


class Turned(Net):
    """Places are handed to each block, (h, w, 2), whose attention turns by them; without biases before it."""

    wrong_in = ()

    class block(Block):
        def forward(self, x, c, places):
            self.angles = (places.flatten(0, 1)[..., None] * torch.tensor([1.0, 0.3, 0.1, 0.03])).flatten(1)
            return super().forward(x, c)

        def attend(self, x):
            q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            q, k = (self.turned(F.normalize(part, dim=-1)) * 4 for part in (q, k))
            return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

        def turned(self, x):
            a, b = x.chunk(2, -1)
            cos, sin = self.angles.cos(), self.angles.sin()
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def __init__(self, depth=5):
        super().__init__(depth)
        self.patches = nn.Conv2d(4, WIDTH, 2, 2, bias=False)

    def forward(self, x, t, y):
        rows, columns = x.shape[-2] // 2, x.shape[-1] // 2
        places = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
        z, c = self.patches(x).flatten(2).transpose(1, 2), self.condition(t, y)
        for index, block in enumerate(self.blocks):
            wrong = places.transpose(0, 1).reshape(rows, columns, 2)
            z = block(z, c, wrong if index in self.wrong_in else places)
        return F.fold(self.head(z).transpose(1, 2), x.shape[-2:], 2, stride=2)


class TurnedWrongInTheMiddle(Turned):
    wrong_in = (2,)


JUDGED: dict[str, dict[str, str]] = {
    "Frames": {"R1": "pass", "E1": "pass", "C6": "pass"},
    "FramesOneOpen": {"E1": "fail"},
    "Stem": {"E2": "pass"},
    "StemExchanged": {"E2": "fail"},
    "Preconditioned": {"E2": "pass"},
    "PreconditionedColumnByColumn": {"E2": "fail"},
    "Stretched": {"E2": "warn"},
    "StretchedExchanged": {"E2": "fail"},
    "StretchedCut": {"E2": "fail"},
    "Windows": {"E2": "pass", "E3": "pass"},
    "WindowsExchanged": {"E2": "fail"},
    "ThroughAFew": {"E2": "pass"},
    "Turned": {"E2": "pass"},
    "TurnedWrongInTheMiddle": {"E2": "fail"},
}
