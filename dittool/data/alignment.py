"""Does a grid of patches lie where the latent says? Content alone says it, without an encoder.

What a patch looks like says something of the latent under it: how bright, how busy. A ridge regression learns that from
half of the images, and is tested on the other half; it succeeds best when each patch is laid over its own cell. So the
latent's statistics are laid out in every way in which patches are known to have been misplaced (shifted, flipped,
transposed, cropped, of another grid), and the arrangement that the patches predict best is the true one. Each image is
centred, so that neither its overall brightness nor what photographs have in common helps.

    seen = [observe(patches, latent, grid, size, cells=256, seed=number) for …]      # small: some cells of each image
    found = align(seen)                                                              # found.best, found.scores

N patches in raster order on a grid of rows × columns · n of them that are looked at · F width of a patch · C latent
channels · h w latent · A arrangements · S = 2·C statistics
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce

import numpy as np
import torch
from torch import Tensor

from dittool.data.patch_storage import FP16, POOLED, encode_patches

IDENTITY = "as stored"
_SHIFTS = tuple(n for n in range(-8, 9) if n)  # in raster order; registers stored as patches shift by their number
_CROPS = (0.875, 0.75)  # of each side: 224 of 256 is the usual centre crop of an image processor
_OTHER_PATCH_SIZES = (14, 16)
_RIDGE = 1e-2  # relative to the mean variance of a patch's values

Span = tuple[float, float]  # from, to


@dataclass(frozen=True)
class Observed:
    """What is kept of one image."""

    features: Tensor  # (n, F), centred
    # (n, A, S): what lies under each of these patches, were they stored in each of the arrangements; centred
    targets: Tensor


@dataclass(frozen=True)
class Aligned:
    """How well the patches predict the latent under each arrangement."""

    # share of the statistics' variance within images that is explained on unseen images; 1 is all
    scores: dict[str, float]
    advantage: dict[str, float]  # of each arrangement over the identity: mean over images in standard errors
    images: int

    @property
    def best(self) -> str:
        return max(self.scores, key=self.scores.__getitem__)


def observe(
    patches: np.ndarray,
    latent: np.ndarray,
    grid: tuple[int, int],
    size: tuple[int, int],
    cells: int,
    seed: int,
    storage: str = FP16,
) -> Observed:
    """Takes from one image what `align` needs.

    Args:
        patches: (N, F), decoded; of the storage "pooled" (N', F).
        latent: (C, h, w).
        grid: (rows, columns) of the encoder, before any pooling.
        size: (width, height) of the image in pixels, for the grids of other patch sizes.
        cells: so many at most are looked at, drawn by `seed`.
    """
    chosen = np.arange(len(patches))
    if len(chosen) > cells:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, cells, replace=False))
    ground = _Ground(statistics(latent), grid, size)
    rows = [_stored(arrangement(ground), grid, storage)[chosen] for arrangement in _ARRANGEMENTS.values()]
    return Observed(_centred(torch.from_numpy(patches[chosen].astype(np.float32))), _centred(torch.stack(rows, dim=1)))


def align(seen: Sequence[Observed]) -> Aligned:
    """Scores every arrangement. Needs four images at least; dozens say something (docs/audit-power.md)."""
    names = list(_ARRANGEMENTS)
    errors = dict(zip(names, _unexplained(seen).T, strict=True))
    for number, name in enumerate(names):
        if name != IDENTITY and all(torch.allclose(image.targets[:, number], image.targets[:, 0]) for image in seen):
            # the same arrangement under another name: the images' own patch size, squares cropped to a square
            del errors[name]
    scores = {name: float(1 - error.mean()) for name, error in errors.items()}
    advantage = {name: standard_errors(errors[IDENTITY] - error) for name, error in errors.items() if name != IDENTITY}
    return Aligned(scores, advantage, len(seen))


def underneath(latent: np.ndarray, grid: tuple[int, int], storage: str = FP16) -> np.ndarray:
    """(N, S), or (N', S) pooled: mean and mean magnitude of each latent channel under each stored patch."""
    return _stored(_Ground(statistics(latent), grid, (0, 0)).plain, grid, storage).numpy()


def statistics(latent: np.ndarray) -> Tensor:
    """(S, h, w): each channel, and its magnitude."""
    z = torch.from_numpy(latent.astype(np.float32))
    return torch.cat([z, z.abs()])


class _Ground:
    """What the patches of one image lie over."""

    def __init__(self, maps: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> None:
        self.maps = maps  # (S, h, w): each channel, and its magnitude
        self.grid, self.size = grid, size
        self.plain = self.cells(grid)  # (N, S)

    def cells(self, grid: tuple[int, int], rows: Span = (0.0, 1.0), columns: Span = (0.0, 1.0)) -> Tensor:
        """(cells, S): the mean of each map in each cell of a grid over this part of the image, spans in shares of
        its sides.
        """
        down, across = overlaps(grid[0], self.maps.shape[1], rows), overlaps(grid[1], self.maps.shape[2], columns)
        return (down @ self.maps @ across.T).flatten(1).T

    def on_grid(self) -> Tensor:
        """(rows, columns, S)"""
        return self.plain.unflatten(0, self.grid)


@lru_cache(maxsize=256)  # few shapes occur
def overlaps(parts: int, length: int, span: Span) -> Tensor:
    """(parts, length): which share of each of so many equal parts of the span lies in each of `length` equal cells
    of [0, 1].
    """
    edges = torch.linspace(span[0] * length, span[1] * length, parts + 1, dtype=torch.float64)[:, None]
    cells = torch.arange(length, dtype=torch.float64)
    overlaps = (torch.minimum(edges[1:], cells + 1) - torch.maximum(edges[:-1], cells)).clamp_min(0)
    return (overlaps / overlaps.sum(dim=1, keepdim=True)).float()


def _shifted(ground: _Ground, by: int) -> Tensor:
    """Stored place j holds the patch of cell j − by: four registers before the patches shift by +4."""
    return ground.plain.roll(by, 0)


def _row_shifted(ground: _Ground, by: int) -> Tensor:
    return ground.plain.roll(by * ground.grid[1], 0)


def _transposed(ground: _Ground) -> Tensor:
    """The image's rows and columns exchanged, on a grid of the image's own shape."""
    return _Ground(ground.maps.transpose(1, 2), ground.grid, ground.size).plain


def _cropped(ground: _Ground, share: float) -> Tensor:
    return ground.cells(ground.grid, _centre(share), _centre(share))


def _square(ground: _Ground, share: float) -> Tensor:
    """A square around the centre, its side a share of the image's shorter one."""
    width, height = ground.size
    side = share * min(width, height)
    return ground.cells(ground.grid, _centre(side / height), _centre(side / width))


def _centre(share: float) -> Span:
    return (1 - share) / 2, (1 + share) / 2


def _other_grid(ground: _Ground, patch_size: int, cut: bool) -> Tensor:
    """The first N patches of the grid that another patch size gives; a smaller grid begins again at its end.

    Sides that are no multiples of the patch size: with `cut` what is over at the right and below was left out, else the
    image was resized.
    """
    count = ground.grid[0] * ground.grid[1]
    columns, rows = (max(side // patch_size if cut else round(side / patch_size), 1) for side in ground.size)
    width, height = ground.size
    right, bottom = (
        (min(columns * patch_size / width, 1.0), min(rows * patch_size / height, 1.0)) if cut else (1.0, 1.0)
    )
    cells = ground.cells((rows, columns), (0.0, bottom), (0.0, right))
    return cells.repeat(math.ceil(count / len(cells)), 1)[:count]


def _centre_crop(share: float) -> str:
    return f"centre crop of {share:g}"


SHARED_WINDOWS = frozenset({IDENTITY, *map(_centre_crop, _CROPS)})  # one and the same part of every image

# Name → what lies under each stored patch, were they stored so: (N, S)
_ARRANGEMENTS: dict[str, Callable[[_Ground], Tensor]] = {
    IDENTITY: lambda ground: ground.plain,
    **{f"shifted by {n:+d}": partial(_shifted, by=n) for n in _SHIFTS},
    **{f"shifted by {n:+d} row": partial(_row_shifted, by=n) for n in (-1, 1)},
    "flipped left to right": lambda ground: ground.on_grid().flip(1).flatten(0, 1),
    "flipped top to bottom": lambda ground: ground.on_grid().flip(0).flatten(0, 1),
    "transposed": _transposed,
    "column by column": lambda ground: ground.on_grid().transpose(0, 1).flatten(0, 1),
    **{_centre_crop(share): partial(_cropped, share=share) for share in _CROPS},
    **{f"centre crop to a square of {share:g}": partial(_square, share=share) for share in (1.0, *_CROPS)},
    **{f"a grid of patch {p}, cut to fit": partial(_other_grid, patch_size=p, cut=False) for p in _OTHER_PATCH_SIZES},
    **{
        f"a grid of patch {p} of a cut image, cut to fit": partial(_other_grid, patch_size=p, cut=True)
        for p in _OTHER_PATCH_SIZES
    },
}


def _stored(rows: Tensor, grid: tuple[int, int], storage: str) -> Tensor:
    """(N, S), or (N', S) pooled as the patches were: whatever misplaced them did so before they were stored."""
    return torch.from_numpy(encode_patches(rows.numpy(), grid, POOLED)).float() if storage == POOLED else rows


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=0)


def _unexplained(seen: Sequence[Observed]) -> Tensor:
    """(images, A) share of each image's variance that a regression learned from other images leaves; two folds."""
    arrangements = seen[0].targets.shape[1]
    count = sum(len(image.targets) for image in seen)
    # (A, S): each statistic counts alike
    spread = (reduce(torch.add, [image.targets.square().sum(dim=0) for image in seen]) / count).sqrt().clamp_min(1e-12)
    total = torch.stack([(image.targets / spread).square().mean(dim=(0, 2)) for image in seen]).mean(dim=0)  # (A,)
    errors = torch.empty(len(seen), arrangements)
    for fold in (0, 1):
        learn, test = seen[1 - fold :: 2], seen[fold::2]
        # (F, F), the same for all arrangements, and (F, A·S)
        gram = reduce(torch.add, [image.features.T @ image.features for image in learn]).double()
        cross = reduce(torch.add, [image.features.T @ image.targets.flatten(1) for image in learn]).double()
        ridge = (_RIDGE * gram.diagonal().mean()).clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)
        weights = torch.linalg.solve(gram + ridge, cross).float()
        for place, image in zip(range(fold, len(seen), 2), test, strict=True):
            left = image.targets - (image.features @ weights).unflatten(1, (arrangements, -1))  # (n, A, S)
            errors[place] = (left / spread).square().mean(dim=(0, 2))
    return errors / total


def standard_errors(gains: Tensor) -> float:
    """(images,) → their mean in standard errors."""
    return float(gains.mean() / (gains.std() / math.sqrt(len(gains))).clamp_min(1e-12))
