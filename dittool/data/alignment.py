"""Does a grid of patches lie where the latent says? Told from content alone, without an encoder.

What a patch looks like says something of the latent under it: how bright, how busy. A ridge regression learns that from half of the images,
and is tested on the other half; it succeeds best when each patch is laid over its own cell. So the latent's statistics are laid out in every way in
which patches are known to have been misplaced (shifted, flipped, transposed, cropped, of another grid), and the arrangement that the patches
predict best is the true one. Each image is centred, so that neither its overall brightness nor what photographs have in common helps.

N patches in raster order on a grid of rows × columns · F width of a patch · C latent channels · h w latent
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IDENTITY = "as stored"
_SHIFTS = tuple(n for n in range(-8, 9) if n)  # in raster order; registers stored as patches shift by their number
_CROPS = (0.875, 0.75)  # of each side: 224 of 256 is the usual centre crop of an image processor
_OTHER_PATCH_SIZES = (14, 16)
_MOST_CELLS = 256  # of one image
_RIDGE = 1e-2  # relative to the mean variance of a patch's values

# latent (C, h, w), grid (rows, columns), image size (width, height) → statistics (N, 2·C), one row for each stored patch
Layout = Callable[[Tensor, tuple[int, int], tuple[int, int]], Tensor]


@dataclass(frozen=True)
class Aligned:
    """How well the patches predict the latent under each arrangement."""

    scores: dict[str, float]  # share of the statistics' variance within images that is explained on unseen images; 1 is all
    advantage: dict[str, float]  # of each arrangement over the identity: mean over images in standard errors
    images: int

    @property
    def best(self) -> str:
        return max(self.scores, key=self.scores.__getitem__)


def align(
    patches: Sequence[np.ndarray], latents: Sequence[np.ndarray], grids: Sequence[tuple[int, int]], sizes: Sequence[tuple[int, int]]
) -> Aligned:
    """Scores every arrangement.

    Args:
        patches: (N, F) each; latents: (C, h, w) each, one pair an image.
        grids: (rows, columns) that each image's patches are said to fill.
        sizes: (width, height) of each image in pixels, for the grids of other patch sizes.
    """
    cells = [_chosen_cells(len(array), index) for index, array in enumerate(patches)]
    features = [_centred(torch.from_numpy(array[chosen].astype(np.float32))) for array, chosen in zip(patches, cells, strict=True)]
    maps = [torch.from_numpy(latent.astype(np.float32)) for latent in latents]
    places = list(zip(maps, grids, sizes, strict=True))
    errors: dict[str, Tensor] = {}
    true_targets: list[Tensor] = []
    for name, layout in _layouts().items():
        targets = [_centred(layout(*place)[chosen]) for place, chosen in zip(places, cells, strict=True)]
        if name == IDENTITY:
            true_targets = targets
        elif all(torch.allclose(target, true) for target, true in zip(targets, true_targets, strict=True)):
            continue  # the same arrangement under another name: the images' own patch size, squares cropped to a square
        errors[name] = _unexplained(features, targets)
    scores = {name: float(1 - error.mean()) for name, error in errors.items()}
    advantage = {name: _standard_errors(errors[IDENTITY] - error) for name, error in errors.items() if name != IDENTITY}
    return Aligned(scores, advantage, len(features))


def _chosen_cells(count: int, image: int) -> np.ndarray:
    """Which cells of an image are looked at: all, or so many that a large set fits in memory."""
    return np.arange(count) if count <= _MOST_CELLS else np.sort(np.random.default_rng(image).choice(count, _MOST_CELLS, replace=False))


def _layouts() -> dict[str, Layout]:
    """Name → what lies under each stored patch, were they stored so."""
    layouts = {IDENTITY: _plain}
    layouts |= {f"shifted by {n:+d}": partial(_shifted, by=n) for n in _SHIFTS}
    layouts |= {f"shifted by {n:+d} row": partial(_row_shifted, by=n) for n in (-1, 1)}
    layouts["flipped left to right"] = lambda z, grid, size: _statistics(z.flip(2), grid)
    layouts["flipped top to bottom"] = lambda z, grid, size: _statistics(z.flip(1), grid)
    layouts["transposed"] = lambda z, grid, size: _statistics(z.transpose(1, 2), grid)
    layouts["column by column"] = lambda z, grid, size: _plain(z, grid, size).unflatten(0, grid).transpose(0, 1).flatten(0, 1)
    layouts |= {f"centre crop of {share:g}": partial(_cropped, share=share) for share in _CROPS}
    layouts["centre crop to a square"] = _square
    layouts |= {f"a grid of patch {p}, cut to fit": partial(_other_grid, patch_size=p) for p in _OTHER_PATCH_SIZES}
    return layouts


def _statistics(z: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, 2·C): mean and mean magnitude of each channel in each cell of the grid."""
    maps = torch.cat([z, z.abs()])
    return F.adaptive_avg_pool2d(maps, grid).flatten(1).T


def _plain(z: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    return _statistics(z, grid)


def _shifted(z: Tensor, grid: tuple[int, int], size: tuple[int, int], by: int) -> Tensor:
    """Stored place j holds the patch of cell j − by: four registers before the patches shift by +4."""
    return _statistics(z, grid).roll(by, 0)


def _row_shifted(z: Tensor, grid: tuple[int, int], size: tuple[int, int], by: int) -> Tensor:
    return _statistics(z, grid).roll(by * grid[1], 0)


def _cropped(z: Tensor, grid: tuple[int, int], size: tuple[int, int], share: float) -> Tensor:
    h, w = z.shape[1:]
    rows, columns = max(round(h * share), 1), max(round(w * share), 1)
    top, left = (h - rows) // 2, (w - columns) // 2
    return _statistics(z[:, top : top + rows, left : left + columns], grid)


def _square(z: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    h, w = z.shape[1:]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    return _statistics(z[:, top : top + side, left : left + side], grid)


def _other_grid(z: Tensor, grid: tuple[int, int], size: tuple[int, int], patch_size: int) -> Tensor:
    """The first N patches of the grid that another patch size gives; a smaller grid begins again at its end."""
    count = grid[0] * grid[1]
    width, height = size
    rows = _statistics(z, (max(round(height / patch_size), 1), max(round(width / patch_size), 1)))
    return rows.repeat(math.ceil(count / len(rows)), 1)[:count]


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=0)


def _unexplained(features: list[Tensor], targets: list[Tensor]) -> Tensor:
    """(images,) share of each image's variance that a regression learned from other images leaves; two folds."""
    spread = torch.cat(targets).square().mean(dim=0).sqrt().clamp_min(1e-12)  # each statistic counts alike
    targets = [target / spread for target in targets]
    total = torch.stack([target.square().mean() for target in targets]).mean()
    errors = torch.empty(len(features))
    for fold in (0, 1):
        learn = [i for i in range(len(features)) if i % 2 != fold]
        x, y = torch.cat([features[i] for i in learn]).double(), torch.cat([targets[i] for i in learn]).double()
        gram = x.T @ x
        ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        weights = torch.linalg.solve(gram + ridge, x.T @ y).float()
        for i in range(fold, len(features), 2):
            errors[i] = (targets[i] - features[i] @ weights).square().mean() / total
    return errors


def _standard_errors(gains: Tensor) -> float:
    return float(gains.mean() / (gains.std() / math.sqrt(len(gains))).clamp_min(1e-12))
