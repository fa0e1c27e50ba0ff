"""Foreign models whose blocks take tokens in rows and columns: channels last or first, local or in windows, in stages
and U shapes, and videos. Each also with one open gate among closed ones.

B batch · D width · H W rows and columns of tokens · T frames
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

CHANNELS, WIDTH, CLASSES = 4, 32, 10


def modulation(width: int, vectors: int = 3) -> nn.Linear:
    layer = nn.Linear(WIDTH, vectors * width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def norm(x):
    return F.layer_norm(x, x.shape[-1:])


class Condition(nn.Module):
    def __init__(self):
        super().__init__()
        self.time, self.label = nn.Linear(2, WIDTH), nn.Embedding(CLASSES, WIDTH)

    def forward(self, t, y):
        return F.silu(self.time(torch.stack([torch.sin(t / 50), torch.cos(t / 50)], 1)) + self.label(y))


class ConvFirst(nn.Module):
    """(B, D, H, W): a depthwise convolution and 1 × 1 ones, as ConvNeXt."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.up, self.down = nn.Conv2d(width, 2 * width, 1, bias=False), nn.Conv2d(2 * width, width, 1, bias=False)
        self.modulation = modulation(width)

    def forward(self, x, c):
        shift, scale, gate = self.modulation(c)[:, :, None, None].chunk(3, 1)
        mixed = norm(self.mix(x).movedim(1, -1)).movedim(-1, 1) * (1 + scale) + shift
        return x + gate * self.down(F.gelu(self.up(mixed)))


class ConvLast(nn.Module):
    """(B, H, W, D): a depthwise convolution and an MLP of the channels."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.modulation = modulation(width)

    def forward(self, x, c):
        shift, scale, gate = self.modulation(c)[:, None, None].chunk(3, -1)
        mixed = norm(self.mix(x.movedim(-1, 1)).movedim(1, -1)) * (1 + scale) + shift
        return x + gate * self.down(F.gelu(self.up(mixed)))


class PlacesAlone(nn.Module):
    """(B, H, W, D): an MLP of rows, one of columns and one of channels, for one size alone."""

    def __init__(self, width=WIDTH, side=8):
        super().__init__()
        self.rows, self.columns = nn.Linear(side, side, bias=False), nn.Linear(side, side, bias=False)
        self.channels = nn.Linear(width, width, bias=False)
        self.modulation = modulation(width)

    def forward(self, x, c):
        shift, scale, gate = self.modulation(c)[:, None, None].chunk(3, -1)
        mixed = norm(x) * (1 + scale) + shift
        mixed = self.rows(mixed.movedim(1, -1)).movedim(-1, 1)
        return x + gate * self.channels(F.gelu(self.columns(mixed.movedim(2, -1)).movedim(-1, 2)))


class Windows(nn.Module):
    """(B, H, W, D): attention inside windows of 2 × 2, every second block's shifted by one."""

    def __init__(self, width=WIDTH, shift=0):
        super().__init__()
        self.shift = shift
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.bias = nn.Parameter(0.5 * torch.randn(4, 4))
        self.modulation = modulation(width, 6)

    def _attended(self, x):
        x = x.roll((-self.shift, -self.shift), (1, 2))
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        windows = x.unflatten(1, (rows, 2)).unflatten(3, (columns, 2)).movedim(3, 2)  # (B, h, w, 2, 2, D)
        q, k, v = self.qkv(windows.flatten(3, 4)).chunk(3, -1)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + self.bias).softmax(-1)
        mixed = self.out(weights @ v).unflatten(3, (2, 2)).movedim(3, 2).flatten(3, 4).flatten(1, 2)
        return mixed.roll((self.shift, self.shift), (1, 2))

    def forward(self, x, c):
        a, b, gate, d, e, other = self.modulation(c)[:, None, None].chunk(6, -1)
        x = x + gate * self._attended(norm(x) * (1 + b) + a)
        return x + other * self.down(F.gelu(self.up(norm(x) * (1 + e) + d)))


class Widening(nn.Module):
    """(B, D, H, W): residual as in Stable Diffusion's U-net, through a 1 × 1 convolution where the width changes; the
    last convolution is zero at step 0.
    """

    def __init__(self, width=WIDTH, wider=WIDTH):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, wider, 3, padding=1), nn.Conv2d(wider, wider, 3, padding=1)
        self.fed, self.skip = nn.Linear(WIDTH, wider), nn.Conv2d(width, wider, 1) if wider != width else nn.Identity()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x, c):
        h = self.first(F.silu(F.group_norm(x, 4))) + self.fed(c)[:, :, None, None]
        return self.skip(x) + self.second(F.silu(F.group_norm(h, 4)))


class Net(nn.Module):
    """Blocks of one kind between a convolution and its inverse; no positions but those that padding makes."""

    block: type[nn.Module] = ConvFirst
    last = False  # whether channels come last

    def __init__(self, depth=3, opened=False):
        super().__init__()
        self.embed = nn.Conv2d(CHANNELS, WIDTH, 3, 2, 1)
        self.condition = Condition()
        self.blocks = self._blocks(depth)
        self.head = nn.ConvTranspose2d(WIDTH, CHANNELS, 2, 2)
        if opened:
            open_gate(self)

    def _blocks(self, depth):
        return nn.ModuleList(self.block() for _ in range(depth))

    def run(self, x, c):
        for block in self.blocks:
            x = block(x, c)
        return x

    def forward(self, x, t, y):
        x, c = self.embed(x), self.condition(t, y)
        x = self.run(x.movedim(1, -1), c).movedim(-1, 1) if self.last else self.run(x, c)
        return self.head(x)


def open_gate(model: nn.Module) -> None:
    """Of the model's last block of its last list."""
    layers = [module for name, module in model.named_modules() if name.endswith((".modulation", ".second"))]
    nn.init.normal_(layers[-1].weight, std=0.05)


class ConvolutionsFirst(Net):
    """Channels first, depthwise convolutions"""


class ConvolutionsLast(Net):
    """Channels last, depthwise convolutions"""

    block, last = ConvLast, True


class MixerOfPlaces(Net):
    """Channels last, MLPs over rows and columns"""

    block, last = PlacesAlone, True


class ShiftedWindows(Net):
    """Channels last, attention inside shifted windows"""

    last = True

    def _blocks(self, depth):
        return nn.ModuleList(Windows(shift=i % 2) for i in range(depth))


class InSequential(Net):
    """Channels first, stages that are modules with their blocks in a list"""

    def _blocks(self, depth):
        return nn.ModuleList(Stage(depth) for _ in range(2))


class Stage(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.layers = nn.ModuleList(ConvFirst() for _ in range(depth))

    def forward(self, x, c):
        for layer in self.layers:
            x = layer(x, c)
        return x


class UShaped(Net):
    """Channels first, a U shape with skips that are joined"""

    def _blocks(self, depth):
        self.down, self.up = nn.Conv2d(WIDTH, 2 * WIDTH, 2, 2), nn.ConvTranspose2d(2 * WIDTH, WIDTH, 2, 2)
        self.join = nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.middle = nn.ModuleList(ConvFirst(2 * WIDTH) for _ in range(2))
        self.after = nn.ModuleList(ConvFirst() for _ in range(depth))
        return nn.ModuleList(ConvFirst() for _ in range(depth))

    def run(self, x, c):
        x = skip = super().run(x, c)
        x = self.down(x)
        for block in self.middle:
            x = block(x, c)
        x = self.join(torch.cat([self.up(x), skip], 1))
        for block in self.after:
            x = block(x, c)
        return x


class WideningStages(Net):
    """Channels first, residual stages that grow wider and narrow again"""

    def _blocks(self, depth):
        widths = [WIDTH] * depth + [2 * WIDTH] * depth + [WIDTH, WIDTH]
        return nn.ModuleList(Widening(a, b) for a, b in pairwise(widths))


class OnlyWidening(Net):
    """Channels first, residual blocks of which each changes the width"""

    def _blocks(self, depth):
        widths = [WIDTH, *range(WIDTH + 16, WIDTH + 16 * depth, 16), WIDTH + 8, WIDTH]
        return nn.ModuleList(Widening(a, b) for a, b in pairwise(widths))


class WithoutEdges(Net):
    """Channels first, a padded convolution without a bias in front: zero without content"""

    def __init__(self, depth=3, opened=False):
        super().__init__(depth, opened)
        self.embed = nn.Conv2d(CHANNELS, WIDTH, 3, 2, 1, bias=False)


class ModulatedByConvolution(ConvFirst):
    def __init__(self, width=WIDTH):
        super().__init__(width)
        self.modulation = nn.Conv2d(WIDTH, 3 * width, 1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x, c):
        shift, scale, gate = self.modulation(c).chunk(3, 1)
        mixed = norm(self.mix(x).movedim(1, -1)).movedim(-1, 1) * (1 + scale) + shift
        return x + gate * self.down(F.gelu(self.up(mixed))), None


class Convoluted(Net):
    """Channels first, a condition (B, D, 1, 1) through 1 × 1 convolutions, answers in tuples"""

    block = ModulatedByConvolution

    def run(self, x, c):
        for block in self.blocks:
            x, _ = block(x, c[:, :, None, None])
        return x


class Merging(nn.Module):
    def __init__(self, width, wider):
        super().__init__()
        self.norm, self.merge = nn.LayerNorm(width), nn.Conv2d(width, wider, 2, 2)

    def forward(self, x, _c):
        return self.merge(self.norm(x.movedim(1, -1)).movedim(-1, 1))


class Splitting(nn.Module):
    def __init__(self, width, narrower):
        super().__init__()
        self.norm, self.split = nn.LayerNorm(width), nn.ConvTranspose2d(width, narrower, 2, 2)

    def forward(self, x, _c):
        return self.split(self.norm(x.movedim(1, -1)).movedim(-1, 1))


class MergedBetween(Net):
    """Channels first, in one list with blocks the layers that merge places and split them again"""

    def _blocks(self, depth):
        wide = [ConvFirst(2 * WIDTH) for _ in range(depth)]
        return nn.ModuleList([ConvFirst(), Merging(WIDTH, 2 * WIDTH), *wide, Splitting(2 * WIDTH, WIDTH), ConvFirst()])


class VideoBlock(nn.Module):
    """(B, D, T, H, W)."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.mix = nn.Conv3d(width, width, 3, padding=1, groups=width, bias=False)
        self.up, self.down = nn.Conv3d(width, 2 * width, 1, bias=False), nn.Conv3d(2 * width, width, 1, bias=False)
        self.modulation = modulation(width)

    def forward(self, x, c):
        shift, scale, gate = self.modulation(c)[:, :, None, None, None].chunk(3, 1)
        return x + gate * self.down(
            F.gelu(self.up(norm(self.mix(x).movedim(1, -1)).movedim(-1, 1) * (1 + scale) + shift))
        )


class Video(Net):
    """(B, D, T, H, W), depthwise convolutions in three axes"""

    block = VideoBlock

    def __init__(self, depth=3, opened=False):
        super().__init__(depth, opened)
        self.embed, self.head = nn.Conv3d(CHANNELS, WIDTH, 1), nn.Conv3d(WIDTH, CHANNELS, 1)


class LastLayer(nn.Module):
    """Modulated, and a projection to what a token answers with: no block, in whichever list it stands."""

    def __init__(self):
        super().__init__()
        self.adjust, self.project = nn.Linear(WIDTH, WIDTH), nn.Conv2d(WIDTH, 4 * CHANNELS, 1)

    def forward(self, x, c):
        normed = F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)
        return F.pixel_shuffle(self.project(normed * (1 + self.adjust(c)[:, :, None, None])), 2)


class LastLayers(Net):
    """Channels first, a last layer for each patch size in a dictionary"""

    def __init__(self, depth=3, opened=False):
        super().__init__(depth, opened)
        self.head, self.heads = nn.Identity(), nn.ModuleDict({"2": LastLayer()})

    def run(self, x, c):
        return self.heads["2"](super().run(x, c), c)


LAYOUTS = (
    ConvolutionsFirst,
    ConvolutionsLast,
    MixerOfPlaces,
    ShiftedWindows,
    InSequential,
    UShaped,
    WideningStages,
    OnlyWidening,
    WithoutEdges,
    Convoluted,
    MergedBetween,
    Video,
    LastLayers,
)
