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

from tests.audit.foreign_kinds import WIDTH, Block, Net, norm

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
    "NotFiniteElsewhere": {"E2": "fail"},
    "GradientsNotFinite": {"R1": "fail"},
    "OneLayerScaleOfOne": {"E1": "fail"},
    "Stacked": {"E5": "pass"},
    "StackedSwitchUnread": {"E5": "fail"},
}
