"""Was each image cropped in its own way before its patches were made? Content alone says it, without an encoder.

Pipelines that train encoders take a random part of an image each time. Patches made so lie over another window of the
latent in every image, and no one arrangement fits all of them. So each image is tried under many windows: a ridge
regression predicts the latent's statistics from the patches, learned on the other half of the images; each image gets
the window under which it fits best, and the regression is learned again from those. It starts from the latents as
stored, which random windows overlap enough to learn from.

Among so many windows some fit by chance. So an image's window is chosen by half of the latent's channels and judged by
the other half:

    gain_i = error_i(the one window that fits all images best) − error_i(own window, chosen by the other channels)

    found = own_windows([sketch(patches, latent, grid), …])         # found.cropped, found.explained

n cells of a grid of at most 8×8 · F width of a patch · C latent channels · S = 2·C statistics · K windows
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from dittool.data.alignment import Span, overlaps, standard_errors, statistics
from dittool.data.pairing import clopper_pearson, ridge
from dittool.data.patch_storage import FP16, POOLED, stored_grid

_GRID = 8  # rows and columns at most; the latent is looked at twice as finely
_SIDES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of a window, as shares of the image's
_MOST_STRETCHED = 0.2 + 1e-6  # difference of a window's two sides
_PLACES = (0.0, 0.5, 1.0)  # of a window within what it leaves free
_ROUNDS = 3
_SURE = 3.0  # standard errors that own windows must gain
_WEAKEST = 0.1  # share of the variance that they must explain
_STILL_WHOLE = 0.35  # share of images that fit best as stored, at most: of clean ones it is half or more
_CONFIDENCE = 0.999


def _windows() -> list[tuple[Span, Span]]:
    """Rows and columns of each window, in shares of the image's sides; the first is all of it."""

    def spans(side: float) -> list[Span]:
        return [(place * (1 - side), place * (1 - side) + side) for place in (_PLACES if side < 1 else (0.0,))]

    pairs = [(down, across) for down in _SIDES for across in _SIDES if abs(down - across) <= _MOST_STRETCHED]
    return [(rows, columns) for down, across in pairs for rows in spans(down) for columns in spans(across)]


_WINDOWS = _windows()
_SPANS = sorted({span for window in _WINDOWS for span in window})
_ROWS, _COLUMNS = ([_SPANS.index(window[axis]) for window in _WINDOWS] for axis in (0, 1))


@dataclass(frozen=True)
class Sketch:
    """What is kept of one image: patches and latent on coarse grids."""

    features: Tensor  # (n, F), centred
    maps: Tensor  # (S, h, w), at most twice as fine
    grid: tuple[int, int]  # rows × columns = n


@dataclass(frozen=True)
class OwnWindows:
    """How well each image fits a window of its own."""

    explained: float  # share of the statistics' variance, under own windows that other channels chose
    fixed: float  # the same under the one window that fits all images best
    advantage: float  # of own windows over that one, in standard errors over the images
    as_stored: int  # images that fit best as stored
    images: int

    @property
    def cropped(self) -> bool:
        """Each image has a window of its own, beyond what chance explains."""
        _, most_as_stored = clopper_pearson(self.as_stored, self.images, _CONFIDENCE)
        return self.explained >= _WEAKEST and self.advantage >= _SURE and most_as_stored < _STILL_WHOLE

    @property
    def deciding(self) -> int | None:
        """About how many images would decide; None where nothing points to windows."""
        if self.cropped or self.advantage < 1 or self.as_stored > self.images / 2:
            return None
        needed = self.images * (_SURE / self.advantage) ** 2
        return math.ceil(max(needed, 2 * self.images if self.explained < _WEAKEST else 1.5 * self.images))


def sketch(patches: np.ndarray, latent: np.ndarray, grid: tuple[int, int], storage: str = FP16) -> Sketch:
    """Takes from one image what `own_windows` needs.

    Args:
        patches: (N, F), decoded; of the storage "pooled" (N', F).
        latent: (C, h, w).
        grid: (rows, columns) of the encoder, before any pooling.
    """
    rows, columns = grid
    given = torch.from_numpy(patches.astype(np.float32)).T.unflatten(
        1, stored_grid(grid, storage)
    )  # (F, rows, columns)
    if storage == POOLED:
        given = given.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)[:, :rows, :columns]
    coarse = min(rows, _GRID), min(columns, _GRID)
    features = _means(given, coarse).flatten(1).T
    maps = statistics(latent)
    finer = min(maps.shape[1], 2 * coarse[0]), min(maps.shape[2], 2 * coarse[1])
    return Sketch(features - features.mean(dim=0), _means(maps, finer), coarse)


def own_windows(seen: Sequence[Sketch]) -> OwnWindows | None:
    """Tries every window on every image. None for latents of one channel, which has no other half."""
    channels = seen[0].maps.shape[0] // 2
    if channels < 2:
        return None
    spread = _spread([_under_windows(one, only=1) for one in seen])  # each statistic counts alike
    targets = [_under_windows(one) / spread[:, None, None] for one in seen]
    first_half = (torch.arange(2 * channels) % channels) % 2 == 0
    power = torch.stack([_by_halves(some.square().mean(dim=2), first_half) for some in targets])  # (images, 2, K)
    own = [0] * len(seen)
    for _ in range(_ROUNDS):
        gained = torch.stack(_explained(seen, targets, own, first_half))
        errors = 1 - gained / power.clamp_min(1e-6)  # shares of the window's variance
        own = errors.mean(dim=1).argmin(dim=1).tolist()
    together = errors.mean(dim=1)  # (images, K)
    fixed = together[:, together.mean(dim=0).argmin()]
    chosen = errors.argmin(dim=2).flip(1)  # (images, 2): by the other half
    judged = errors.gather(2, chosen[:, :, None]).mean(dim=(1, 2))
    return OwnWindows(
        float(1 - judged.mean()), float(1 - fixed.mean()), standard_errors(fixed - judged), own.count(0), len(seen)
    )


def _explained(
    seen: Sequence[Sketch], targets: Sequence[Tensor], own: Sequence[int], first_half: Tensor
) -> list[Tensor]:
    """Of each image (2, K): how much less than the variance ‖t‖² the squared error ‖t − p‖² is, for each half of the
    channels; p is a regression learned from other images under their own windows. It is 2·t·p − ‖p‖².
    """
    gained = [torch.empty(0)] * len(seen)
    for fold in (0, 1):
        learned = range(1 - fold, len(seen), 2)
        x, y = (
            torch.cat([seen[i].features for i in learned]).numpy(),
            torch.cat([targets[i][:, own[i]].T for i in learned]).numpy(),
        )
        weights = torch.from_numpy(ridge(x, y))  # (F, S)
        for i in range(fold, len(seen), 2):
            predicted = (seen[i].features @ weights).T  # (S, n)
            along = (targets[i] @ predicted[:, :, None])[:, :, 0]  # (S, K)
            each = (2 * along - predicted.square().sum(dim=1, keepdim=True)) / predicted.shape[1]
            gained[i] = _by_halves(each, first_half)
    return gained


def _by_halves(values: Tensor, first_half: Tensor) -> Tensor:
    """(S, K) → (2, K): means over each half of the channels."""
    return torch.stack([values[first_half].mean(dim=0), values[~first_half].mean(dim=0)])


def _spread(plain: Sequence[Tensor]) -> Tensor:
    """(S,) standard deviation of each statistic within the images as stored."""
    return torch.cat(list(plain), dim=2).square().mean(dim=(1, 2)).sqrt().clamp_min(1e-9)


def _under_windows(one: Sketch, only: int | None = None) -> Tensor:
    """(S, K, n): what lies under each patch, did the grid show this window, or the first few; centred."""
    down, across = (_onto(parts, length) for parts, length in zip(one.grid, one.maps.shape[1:], strict=True))
    rows = torch.einsum("urh,shw->surw", down, one.maps)
    cells = (rows[:, _ROWS[:only]] @ across[_COLUMNS[:only]].transpose(1, 2)).flatten(2)
    return cells - cells.mean(dim=2, keepdim=True)


@lru_cache(maxsize=64)
def _onto(parts: int, length: int) -> Tensor:
    """(spans, parts, length): the overlaps of all spans."""
    return torch.stack([overlaps(parts, length, span) for span in _SPANS])


def _means(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """(…, rows, columns): means of the maps over a coarser grid."""
    down, across = (overlaps(parts, length, (0.0, 1.0)) for parts, length in zip(grid, maps.shape[1:], strict=True))
    return down @ maps @ across.T
