"""How the patch features of one image are kept on disk: whole, or smaller at a known loss (measured in
docs/storage.md).

    fp16    (N, C) float16: the default
    fp32    (N, C) float32: exact
    int8    (N, C + 2) int8: a row is one token, its values divided by a scale; the row's last two bytes are that
            scale, a float16
    pooled  (N', C) float16: the mean of 2×2 neighbours, so a quarter of the tokens; at an odd edge the mean of what is
            there
    none    no patches: where nothing reads them

N patches, row-major over the grid · N' patches of the pooled grid · C width of the image encoder
"""

from __future__ import annotations

import numpy as np

from dittool.errors import BadDataError

FP16, FP32, INT8, POOLED, NONE = "fp16", "fp32", "int8", "pooled", "none"
STORAGES = (FP16, FP32, INT8, POOLED)  # of patches that are there
STORED_DTYPE: dict[str, np.dtype] = {
    FP16: np.dtype("<f2"),
    FP32: np.dtype("<f4"),
    INT8: np.dtype("i1"),
    POOLED: np.dtype("<f2"),
}

_LEVELS = 127  # steps on each side of zero; −128 is left unused so that the range is symmetric
_SCALE_BYTES = 2
_SCALE_DTYPE = np.dtype("<f2")  # little-endian, whatever the machine


def encode_patches(patches: np.ndarray, grid: tuple[int, int], storage: str) -> np.ndarray:
    """The one array to store for an image's patches.

    A token that is not finite, or too large for the storage, decodes to a token that is not finite, so that it can be
    found afterwards.

    Args:
        patches: (N, C) float, row-major over the grid.
        grid: (rows, columns), rows · columns = N.
        storage: one of `STORAGES`.

    Raises ValueError when the patches do not fill the grid or the storage is unknown.
    """
    rows, columns = grid
    if patches.ndim != 2 or patches.shape[0] != rows * columns:
        raise ValueError(f"patches {patches.shape} do not fill a grid of {rows}×{columns} = {rows * columns}")
    if storage == INT8:
        return _to_int8(patches)
    if storage == POOLED:
        patches = _mean_of_four(patches, rows, columns)
    elif storage not in STORAGES:
        raise ValueError(f"'{storage}' is no patch storage; there are {', '.join(STORAGES)}")
    with np.errstate(over="ignore"):  # what overflows becomes infinite
        return patches.astype(STORED_DTYPE[storage])


def decode_patches(stored: np.ndarray, storage: str) -> np.ndarray:
    """What a model is given: (N, C) float32, or (N', C) when they were pooled. Raises `BadDataError` when the array
    is not of that storage.
    """
    if storage not in STORAGES:
        raise BadDataError(
            f"patches stored as '{storage}', which this version does not know",
            f"it knows {', '.join(STORAGES)}; update dit",
        )
    fits = stored.ndim == 2 and (
        (stored.dtype.kind == "f") if storage != INT8 else (stored.dtype == np.int8 and stored.shape[1] > _SCALE_BYTES)
    )
    if not fits:
        raise BadDataError(
            f"patches of shape {stored.shape} and type {stored.dtype} are not what the storage '{storage}' holds",
            "the identity card names another storage than the features have: make them again with dit embed --pass"
            " dinov3 --rebuild",
        )
    if storage != INT8:
        return stored.astype(np.float32)
    scale = np.ascontiguousarray(stored[:, -_SCALE_BYTES:]).view(_SCALE_DTYPE)  # (N, 1)
    return stored[:, :-_SCALE_BYTES].astype(np.float32) * scale.astype(np.float32)


def stored_grid(grid: tuple[int, int], storage: str) -> tuple[int, int]:
    """(rows, columns) of the tokens that come back for an encoder's grid."""
    rows, columns = grid
    return ((rows + 1) // 2, (columns + 1) // 2) if storage == POOLED else grid


def stored_shape(grid: tuple[int, int], width: int, storage: str) -> tuple[int, int]:
    """Shape of the stored array for an encoder of `width` channels."""
    rows, columns = stored_grid(grid, storage)
    return rows * columns, width + _SCALE_BYTES if storage == INT8 else width


def _to_int8(patches: np.ndarray) -> np.ndarray:
    patches = patches.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.abs(patches).max(axis=1, keepdims=True, initial=0) / _LEVELS  # (N, 1)
        scale = exact.astype(_SCALE_DTYPE)
        # Rounded up, never down: the largest value then stays within the levels, and no error exceeds half a level.
        scale = np.where(scale < exact, np.nextafter(scale, _SCALE_DTYPE.type(np.inf)), scale).astype(_SCALE_DTYPE)
        divisor = np.where(scale > 0, scale, 1).astype(np.float32)
        # 1: beside a scale that is not finite, any level but 0 will do
        levels = np.where(np.isfinite(scale), np.rint(patches / divisor), 1)
    return np.concatenate([levels.astype(np.int8), scale.view(np.int8)], axis=1)


def _mean_of_four(patches: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(rows · columns, C) → (⌈rows/2⌉ · ⌈columns/2⌉, C) float64 means of the two, or at an odd edge one, neighbours
    along each side.
    """
    grid = patches.reshape(rows, columns, -1).astype(np.float64)
    for axis, length in ((0, rows), (1, columns)):
        starts = np.arange(0, length, 2)
        counts = np.minimum(2, length - starts)
        grid = np.add.reduceat(grid, starts, axis=axis) / np.expand_dims(
            counts, axis=tuple(kept for kept in range(3) if kept != axis)
        )
    return grid.reshape(-1, patches.shape[1])
