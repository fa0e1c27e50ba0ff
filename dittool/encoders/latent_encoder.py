"""Small encoders of latents, whose feature maps the drifting objective compares samples in. Both are frozen when it
does.

`SeededEncoder` is fixed and untrained. `LatentEncoder` is trained before the generator, on the same latents: it fills
in patches that were hidden from it and, where labels are wanted, names the class (`families/feature_encoder.py`).

B batch · C latent channels · h w cells · D width, channels of the first map
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dittool.seeding import derive_seed

_SEEDED_WIDTH = 32


class SeededEncoder(nn.Module):
    """Seeded convolutions without biases: it tells textures and places apart better than raw values do, and knows
    nothing of what is drawn.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = (channels, _SEEDED_WIDTH, 2 * _SEEDED_WIDTH)
        self.convolutions = nn.ModuleList(  # without first weights, which would be drawn from the global generator
            nn.utils.skip_init(nn.Conv2d, sizes[i], sizes[i + 1], 3, stride=1 + (i > 0), padding=1, bias=False)
            for i in range(len(sizes) - 1)
        )
        for index, convolution in enumerate(self.convolutions):
            generator = torch.Generator().manual_seed(derive_seed("drift features", index, channels))
            fan_in = convolution.weight[0].numel()
            convolution.weight.data.normal_(std=math.sqrt(2 / fan_in), generator=generator)

    def maps(self, latents: Tensor) -> list[Tensor]:  # (B, C, h, w) → (B, D, h, w), (B, 2D, h/2, w/2)
        first = F.silu(self.convolutions[0](latents))
        return [first, F.silu(self.convolutions[1](first))]


class LatentEncoder(nn.Module):
    """Two levels of convolutions with a residual one each, and the heads that training needs."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.refine = nn.Conv2d(width, width, 3, padding=1)
        self.halve = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.refine_half = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.hidden = nn.Parameter(torch.zeros(channels, 1, 1))  # stands where a patch is hidden
        self.fill = nn.Conv2d(2 * width, 4 * channels, 1)
        self.classify = nn.Linear(2 * width, classes)

    def maps(self, latents: Tensor) -> list[Tensor]:  # (B, C, h, w) → (B, D, h, w), (B, 2D, h/2, w/2)
        x = F.silu(self.stem(latents))
        first = x + F.silu(self.refine(x))
        x = F.silu(self.halve(first))
        return [first, x + F.silu(self.refine_half(x))]

    def filled_in(self, latents: Tensor, hidden: Tensor) -> Tensor:
        """What it takes for the whole latent, (B, C, h, w), when it does not see the cells where `hidden` (B, 1, h,
        w) is true.
        """
        rows, columns = latents.shape[2:]
        seen = torch.where(hidden, self.hidden, latents)
        return F.pixel_shuffle(self.fill(self.maps(seen)[-1]), 2)[:, :, :rows, :columns]

    def class_logits(self, latents: Tensor) -> Tensor:
        """(B, classes), from the mean of the last map."""
        return self.classify(self.maps(latents)[-1].mean(dim=(2, 3)))
