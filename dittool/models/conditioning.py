"""The two conditions on their way into the model: what is kept, what a dropped condition becomes, the context.

context = [ text_proj(T5 tokens) | dino_proj(CLS) | dino_patch_proj(patches) + positions ]

With `context_norm` each part is normed before positions are added. With `context_balance` the three parts weigh the
same before anything is learned, however many tokens they have: each token's attention logit is lowered by the logarithm
of the number of tokens in its part.

A dropped caption leaves one valid token, so its length cannot leak. Dropped patches become N equal tokens without
position; N equal tokens weigh in attention exactly as one token whose logit is raised by log N, and a batch in which no
sample has patches is computed that way.

With `fusion` "added" the patches are no part of the context: each projected patch is added to the latent's token at its
place, x_n + dino_patch_proj(patch_n), as ControlNet adds what is aligned with the picture (arXiv 2302.05543); dropped
ones are the null at every token. It needs a patch for each token.

B batch · L text tokens (padded) · N patches · M = L + 1 + N context tokens · D width
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dittool.models.layers import RMSNorm
from dittool.models.positions import cached_positions


@dataclass(frozen=True)
class Conditions:
    """Features of one batch, all of one bucket. None: no sample of the batch has this condition."""

    text: Tensor | None  # (B, L, text width)
    text_mask: Tensor | None  # (B, L) bool, True on tokens; None: no padding
    cls: Tensor | None  # (B, image width)
    patches: Tensor | None  # (B, N, image width), row-major
    patch_grid: tuple[int, int]  # (rows, columns) of the reference's patches, also when there are none

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditions:
        """The same conditions with every tensor changed: moved, repeated, cut."""
        text, text_mask, cls, patches = (
            None if tensor is None else change(tensor) for tensor in (self.text, self.text_mask, self.cls, self.patches)
        )
        return Conditions(text, text_mask, cls, patches, self.patch_grid)

    def joined(self, others: Sequence[Conditions]) -> Conditions:
        """These samples and then the others', which have the same conditions of the same sizes."""
        alike = [self, *others]

        def joined(name: str) -> Tensor | None:
            return None if getattr(self, name) is None else torch.cat([getattr(each, name) for each in alike])

        return Conditions(joined("text"), joined("text_mask"), joined("cls"), joined("patches"), self.patch_grid)


@dataclass(frozen=True)
class Kept:
    """Which conditions each sample keeps; the others are replaced by their nulls.

    Best on the CPU, whatever the device of the features: whether all captions are kept can then be asked without
    waiting for the device.
    """

    text: Tensor  # (B,) bool
    reference: Tensor  # (B,) bool


@dataclass(frozen=True)
class Context:
    """What the blocks attend to. It does not depend on the timestep."""

    tokens: Tensor  # (B, M, D)
    bias: Tensor | None  # (B, 1, 1, M) added to attention logits: 0, −inf on padding, log N on a collapsed null
    cls: Tensor  # (B, D), joins the timestep in the modulation
    added: Tensor | None = None  # (B, h·w or 1, D), joins the latent's tokens
    unmasked: int = 0  # so many of the last tokens have one bias, in all samples: a mask is not needed for them


class Conditioning(nn.Module):
    """Projects both conditions to the model's width and holds their learned nulls."""

    def __init__(
        self,
        width: int,
        text_width: int,
        image_width: int,
        patches: bool,
        fusion: str,
        patch_positions: bool,
        norm: bool,
        balance: bool,
    ) -> None:
        super().__init__()
        self.width, self.patches, self.balance = width, patches, balance
        self.patches_added = fusion == "added"
        self.patch_positions = patch_positions and not self.patches_added
        self.text_proj = nn.Linear(text_width, width)
        self.dino_proj = nn.Linear(image_width, width)
        self.text_norm = RMSNorm(width) if norm else nn.Identity()
        self.dino_norm = RMSNorm(width) if norm else nn.Identity()
        self.null_text = nn.Parameter(torch.empty(text_width))
        self.null_dino = nn.Parameter(torch.empty(image_width))
        if patches:
            self.dino_patch_proj = nn.Linear(image_width, width)
            self.dino_patch_norm = RMSNorm(width) if norm else nn.Identity()
            self.null_dino_patch_token = nn.Parameter(torch.empty(image_width))

    def forward(self, conditions: Conditions, kept: Kept | None, batch: int, token_grid: tuple[int, int]) -> Context:
        """The context of a batch. `kept` None keeps whatever is there; `token_grid` is the latent's (rows, columns)
        in tokens.
        """
        text, text_bias = self._text(conditions, kept, batch)  # (B, L, D), (B, L) or None
        cls = self._cls(conditions, kept, batch)  # (B, D)
        tokens, biases, added = [text, cls[:, None]], [text_bias, None], None
        if self.patches:
            patches, patch_bias = self._patches(conditions, kept, batch, token_grid)  # (B, N or 1, D)
            if self.patches_added:
                added = patches
            else:
                tokens.append(patches)
                biases.append(patch_bias)
        if self.balance:
            biases = [_as_one_token(part, bias) for part, bias in zip(tokens, biases, strict=True)]
        # patches are the last ones, and no bias tells them from each other
        unmasked = tokens[-1].shape[1] if len(tokens) == 3 and conditions.patches is not None else 0
        return Context(torch.cat(tokens, dim=1), _joined(tokens, biases), cls, added, unmasked)

    def _text(self, conditions: Conditions, kept: Kept | None, batch: int) -> tuple[Tensor, Tensor | None]:
        if conditions.text is None:
            return self.text_norm(self.text_proj(self.null_text)).expand(batch, 1, -1), None
        text, mask = conditions.text, conditions.text_mask
        if kept is not None:
            has = kept.text.to(text.device, non_blocking=True)[:, None]  # (B, 1)
            # also when all are kept: processes need the same graph
            text = torch.where(has[..., None], text, self.null_text.to(text.dtype))
            if not bool(kept.text.all()):
                only_first = torch.arange(text.shape[1], device=text.device)[None] == 0  # (1, L)
                mask = torch.where(has, torch.ones_like(only_first) if mask is None else mask, only_first)
        bias = None if mask is None else torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -math.inf)
        return self.text_norm(self.text_proj(text)), bias

    def _cls(self, conditions: Conditions, kept: Kept | None, batch: int) -> Tensor:
        if conditions.cls is None:
            return self.dino_norm(self.dino_proj(self.null_dino)).expand(batch, -1)
        cls = conditions.cls
        if kept is not None:
            has = kept.reference.to(cls.device, non_blocking=True)[:, None]  # (B, 1)
            cls = torch.where(has, cls, self.null_dino.to(cls.dtype))
        return self.dino_norm(self.dino_proj(cls))

    def _patches(
        self, conditions: Conditions, kept: Kept | None, batch: int, token_grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        rows, columns = conditions.patch_grid
        if conditions.patches is None:
            token = self.dino_patch_norm(self.dino_patch_proj(self.null_dino_patch_token)).expand(batch, 1, -1)
            return token, token.new_full((batch, 1), math.log(rows * columns), dtype=torch.float32)
        patches = conditions.patches
        if patches.shape[1] != rows * columns:
            raise ValueError(f"{patches.shape[1]} patches do not fill the {rows}×{columns} grid")
        if self.patches_added and (rows, columns) != token_grid:
            which = f"{rows}×{columns} patches cannot be added to {token_grid[0]}×{token_grid[1]} tokens"
            raise ValueError(f"{which}: there must be one for each, at its place")
        has = None if kept is None else kept.reference.to(patches.device, non_blocking=True)[:, None, None]  # (B, 1, 1)
        if has is not None:
            patches = torch.where(has, patches, self.null_dino_patch_token.to(patches.dtype))
        tokens = self.dino_patch_norm(self.dino_patch_proj(patches))
        if self.patch_positions:
            positions = cached_positions((rows, columns), self.width, token_grid, tokens.device).to(tokens.dtype)
            tokens = tokens + (positions if has is None else positions * has)
        return tokens, None


def _joined(tokens: list[Tensor], biases: list[Tensor | None]) -> Tensor | None:
    """The parts' attention biases side by side, (B, 1, 1, M); None when no part has one."""
    if all(bias is None for bias in biases):
        return None
    parts = [_bias_of(part, bias) for part, bias in zip(tokens, biases, strict=True)]
    return torch.cat(parts, dim=1)[:, None, None]


def _bias_of(part: Tensor, bias: Tensor | None) -> Tensor:
    """(B, n) attention bias of a part (B, n, D)."""
    return torch.zeros(part.shape[:2], device=part.device) if bias is None else bias


def _as_one_token(part: Tensor, bias: Tensor | None) -> Tensor:
    """b − log Σ exp(b), so that the n tokens of a part weigh together as one whose logit is raised by nothing."""
    bias = _bias_of(part, bias)
    return bias - bias.logsumexp(dim=1, keepdim=True)
