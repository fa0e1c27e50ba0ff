"""Thumbnails of a derived folder's images: one file of rows of one length, behind each other as they were made.

    thumbnails.rows         32 bytes sha256 of the image file · 16 x 16 x 3 bytes YCbCr

A row depends on the image's bytes alone, so it is never stale; that it is missing is no harm, it is made again. Rows
are only ever added. Call what writes with the folder's shared files held.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from dittool.data.source.thumbnail import SIDE
from dittool.storage import append_rows, mapped_rows

ROW = np.dtype([("image", np.uint8, (32,)), ("pixels", np.uint8, (SIDE, SIDE, 3))])


def read_thumbnails(path: Path) -> np.ndarray:
    """The rows (N,) of type `ROW`, mapped and not read; none where there is no file. Half a row at its end, which a
    killed writer left, is left out.
    """
    return mapped_rows(path, ROW)


def append_thumbnails(path: Path, made: Mapping[str, np.ndarray]) -> None:
    """Adds rows, by the sha256 of the image, behind the last whole one. Raises `StorageError` when the disk is full."""
    rows = np.empty(len(made), ROW)
    for row, (image, pixels) in zip(rows, made.items(), strict=True):
        row["image"], row["pixels"] = np.frombuffer(bytes.fromhex(image), np.uint8), pixels
    append_rows(path, rows)


def images_without(path: Path, images: Iterable[str]) -> set[str]:
    """Those of the images (sha256) that have no row."""
    wanted = sorted(set(images))
    there = np.sort(_prefixes(read_thumbnails(path)["image"]))
    prefixes = np.array([int(image[:16], 16) for image in wanted], np.uint64)
    return {image for image, found in zip(wanted, np.isin(prefixes, there), strict=True) if not found}


def _prefixes(images: np.ndarray) -> np.ndarray:
    """(N, 32) bytes → (N,) their first eight as a number: enough to tell images apart."""
    return np.ascontiguousarray(images[:, :8]).view(">u8")[:, 0].astype(np.uint64)
