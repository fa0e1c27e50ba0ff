"""Alignment with the reference's own patches (REPA, arXiv 2410.06940): the tokens of one block, projected, are brought
near to the features that a pretrained image encoder has of the same picture at the same places.

    L = L_flow + λ · mean over the batch of 1 − cos(h(x_n), y_n), averaged over the tokens n        (their eq. 8)

y are the patches that the data hold, so no encoder runs. A sample that sees its reference has y in its context; it is
left out and counts as zero, so that a batch has the same mean however it is split.

R samples that are aligned · N = h·w tokens · P patches · F width of the features
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dittool.models.routing import taken


@dataclass(frozen=True)
class Alignment:
    """What is asked of a training pass."""

    weight: float  # λ
    patch_size: int  # latent cells along one side of a token
    active: bool  # else its share of the run is over, and the head gets gradients of zero

    def rows(self, sees_reference: Tensor) -> Tensor:
        """(R,) numbers of the samples that are aligned, of (B,)."""
        return (~sees_reference & self.active).nonzero().flatten()

    def losses(
        self,
        projected: Tensor,
        patches: Tensor,
        patch_grid: tuple[int, int],
        latent: Tensor,
        route: Tensor | None = None,
    ) -> Tensor:
        """(R,) 1 − cosine, of tokens (R, N, F) and the same samples' patches (R, P, F) on their grid; of a routed block
        those of `route`, (R, K).
        """
        tokens = latent.shape[-2] // self.patch_size, latent.shape[-1] // self.patch_size
        targets = patches_at_tokens(patches, patch_grid, tokens)  # (R, N, F)
        if route is not None and projected.shape[1] == route.shape[1]:
            targets = taken(targets, route)  # (R, K, F)
        return (1 - F.cosine_similarity(projected.float(), targets.float(), dim=-1)).mean(dim=1)


def patches_at_tokens(patches: Tensor, patch_grid: tuple[int, int], token_grid: tuple[int, int]) -> Tensor:
    """Patches (R, P, F) of a picture as they would stand on the grid of its tokens, (R, h·w, F): bilinear between
    centres, averaged where tokens are larger. Both grids cover the whole picture.
    """
    if patch_grid == token_grid:
        return patches
    planes = patches.unflatten(1, patch_grid).permute(0, 3, 1, 2)  # (R, F, rows, columns)
    if not len(planes):
        return patches.new_empty(0, token_grid[0] * token_grid[1], patches.shape[2])
    resized = F.interpolate(planes, size=token_grid, mode="bilinear", align_corners=False, antialias=True)
    return resized.flatten(2).transpose(1, 2)


def spread(values: Tensor, rows: Tensor, batch: int) -> Tensor:
    """(R,) → (B,), zero for the samples that are not in `rows`."""
    return torch.zeros(batch, device=values.device, dtype=values.dtype).index_add(0, rows, values)
