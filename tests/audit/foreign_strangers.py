"""Variants of `foreign_kinds.Net` in the manner of models that were written without a look at the rules: what they
take, how they lay their tokens, what they hold beside a network. `JUDGED` says of each which rules are asked, and what
they must answer.

B batch · T frames · N tokens · D width
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.audit.foreign_kinds import HEADS, WIDTH, Block, Net, norm, sincos

# Arguments that are handed on, and that something else reads


class Gradually(Net):
    def __init__(self, depth=3, remat=False, label_drop=0.0, acts=True):
        super().__init__(depth)
        self.remat, self.label_drop = remat and acts, label_drop * acts

    def run(self, z, c):
        if self.training and self.label_drop:
            c = c * (torch.rand(len(c), 1) >= self.label_drop)
        for block in self.blocks:
            z = checkpoint(block, z, c, use_reentrant=False) if self.remat and self.training else block(z, c)
        return z


class HandsOn(nn.Module):
    """Its options are those of what it makes; rate and decay are its trainer's; a frozen copy is never run."""

    acts = True

    def __init__(self, rate=1e-4, decay=0.999, **net):
        super().__init__()
        self.rate, self.decay = rate, decay
        self.net = Gradually(acts=self.acts, **net)
        self.average = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x, t, y):
        return self.net(x, t, y)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=self.rate)

    def on_batch_end(self):
        for kept, new in zip(self.average.parameters(), self.net.parameters(), strict=True):
            kept.lerp_(new, 1 - self.decay)


class HandsOnWhatNothingReads(HandsOn):
    acts = False


# Inputs


@dataclass
class Caption:
    tokens: Tensor
    pooled: Tensor


@dataclass
class Batch:
    latent: Tensor
    sigma: Tensor
    caption: Caption


class OneArgument(Net):
    """A dataclass that holds another, both annotated by texts."""

    reads_pooled = True

    def __init__(self, depth=3):
        super().__init__(depth)
        del self.labels
        self.tokens, self.pooled = nn.Linear(12, WIDTH), nn.Linear(5, WIDTH)

    def forward(self, batch: Batch):
        c = self.times(batch.sigma) + self.tokens(batch.caption.tokens).mean(1)
        c = c + self.pooled(batch.caption.pooled) * self.reads_pooled
        return self.drawn(batch.latent, lambda z: c)


class OneArgumentPooledUnread(OneArgument):
    reads_pooled = False


class WithoutAnnotations(OneArgument):
    """Nothing says that an object is in the object but what is read of it."""

    def forward(self, batch):
        return super().forward(batch)


class StatesBesideThePicture(OneArgument):
    """Answers the text's own states too, which hold what the mask hides from the picture."""

    def forward(self, x, t, text, pooled, text_mask):
        states, kept = self.tokens(text), text_mask.float()[..., None]
        c = self.times(t) + (states * kept).sum(1) / kept.sum(1) + self.pooled(pooled)
        return {"text": states, "picture": self.drawn(x, lambda z: c)}


class TextThatKnowsTheTime(Net):
    """Each block looks at a text to which time was added: its keys are no modulation."""

    class block(Block):
        def __init__(self):
            super().__init__()
            self.keys = nn.Linear(WIDTH, 2 * WIDTH, bias=False)

        def forward(self, x, c, text):
            k, v = self.keys(text).chunk(2, -1)
            gate = self.vectors(c)[2]
            return super().forward(x + gate * F.scaled_dot_product_attention(norm(x), k, v), c)

    def __init__(self, depth=3):
        super().__init__(depth)
        del self.labels
        self.tokens = nn.Linear(12, WIDTH)

    def forward(self, x, t, text):
        c = self.times(t)
        text = self.tokens(text) + c[:, None]
        z = self.patches(x).flatten(2).transpose(1, 2) + self.positions(x.shape[-2] // 2, x.shape[-1] // 2)
        for block in self.blocks:
            z = block(z, c, text)
        return F.fold(self.head(z).transpose(1, 2), x.shape[-2:], 2, stride=2)


class LabelsSorted(Net):
    def condition(self, t, y):
        return super().condition(t, y.sort().values)


class PartsNamedAsMethods(Net):
    """A part that only the table of parts can be asked for."""

    def __init__(self, depth=3):
        super().__init__(depth)
        self.type = self.blocks
        del self.blocks

    def run(self, z, c):
        for block in self._modules["type"]:
            z = block(z, c)
        return z


# Tokens


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


# What no error says


class NotFiniteElsewhere(Net):
    def drawn(self, x, condition):
        return super().drawn(x, condition) / (x.shape[-1] % 16 == 0)


class GradientsNotFinite(Net):
    def run(self, z, c):
        return super().run(z + (0 * z).abs().sqrt(), c)


class OneLayerScaleOfOne(Net):
    class block(Block):
        def __init__(self):
            super().__init__()
            self.gamma = nn.Parameter(torch.full((WIDTH,), 1e-5))

        def forward(self, x, c):
            x = x + self.gamma * self.attend(norm(x) + self.vectors(c)[0])
            return x + self.gamma * self.down(F.gelu(self.up(norm(x))))

    def __init__(self, depth=3):
        super().__init__(depth)
        nn.init.ones_(self.blocks[1].gamma)


class Stacked(nn.Module):
    """All blocks' weights in stacked parameters, and no module a block."""

    acts = True

    def __init__(self, depth=3, remat=False):
        super().__init__()
        self.depth, self.remat = depth, remat and self.acts
        self.into, self.time, self.out = nn.Linear(16, WIDTH), nn.Linear(1, WIDTH), nn.Linear(WIDTH, 16)
        self.up, self.down = (nn.Parameter(torch.randn(depth, *s) / 8) for s in ((WIDTH, 64), (64, WIDTH)))

    def layer(self, x, c, up, down):
        mixed = F.scaled_dot_product_attention(norm(x), norm(x), x)
        return x + mixed + F.gelu((norm(x) + c[:, None]) @ up) @ down

    def forward(self, x, t):
        z, c = self.into(F.unfold(x, 2, stride=2).transpose(1, 2)), self.time(t.float()[:, None] / 1000)
        for up, down in zip(self.up, self.down, strict=True):
            if self.remat and self.training:
                z = checkpoint(self.layer, z, c, up, down, use_reentrant=False)
            else:
                z = self.layer(z, c, up, down)
        return F.fold(self.out(z).transpose(1, 2), x.shape[-2:], 2, stride=2)


class StackedSwitchUnread(Stacked):
    acts = False


JUDGED: dict[str, dict[str, str]] = {
    "HandsOn": {"R1": "pass", "C1": "pass", "E5": "pass"},
    "HandsOnWhatNothingReads": {"C1": "fail", "E5": "fail"},
    "OneArgument": {"C6": "pass"},
    "OneArgumentPooledUnread": {"C6": "fail"},
    "WithoutAnnotations": {"C6": "pass"},
    "StatesBesideThePicture": {"C6": "pass"},
    "TextThatKnowsTheTime": {"E1": "pass"},
    "LabelsSorted": {"C8": "fail"},
    "PartsNamedAsMethods": {"E1": "pass", "E2": "pass", "E3": "pass"},
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
    "NotFiniteElsewhere": {"E2": "fail"},
    "GradientsNotFinite": {"R1": "fail"},
    "OneLayerScaleOfOne": {"E1": "fail"},
    "Stacked": {"E5": "pass"},
    "StackedSwitchUnread": {"E5": "fail"},
}
