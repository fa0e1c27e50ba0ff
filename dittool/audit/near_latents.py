"""Near copies by their latents, where pixels are not there: rules D5 and D9.

A latent is averaged over an 8 x 8 grid and each of its channels scaled by the set; two are near copies when their
distance is small beside their lengths. On 100 drawings with six kinds of copies each (JPEG, WebP, resized, brighter)
copies were at most 0.13 apart and different pictures at least 0.32, also among drawings of one caption. Only latents of
one bucket are compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

_GRID = 8
NEAR = 0.15  # distance over the root of the sum of both squared lengths: 0 for equal ones, about 1 for any two


@dataclass(frozen=True)
class Coarse:
    """A latent as it is compared."""

    id: str
    bucket: str
    means: np.ndarray  # (channels, at most 8, at most 8) float32


def coarse(sample_id: str, bucket: str, latent: np.ndarray) -> Coarse:
    """Of a latent (channels, h, w)."""
    means = latent.astype(np.float32)
    for axis in (1, 2):
        length = means.shape[axis]
        edges = np.arange(min(_GRID, length)) * length // min(_GRID, length)
        counts = np.diff(edges, append=length)
        means = np.add.reduceat(means, edges, axis=axis) / counts.reshape([-1 if i == axis else 1 for i in range(3)])
    return Coarse(sample_id, bucket, means)


def near_pairs(some: Iterable[Coarse], others: Iterable[Coarse]) -> list[tuple[str, str]]:
    """(id of one of `some`, id of one of `others`) that are near copies; no sample with itself."""
    found: list[tuple[str, str]] = []
    for one, other in _groups(
        some, others, lambda sample: str(len(sample.means))
    ):  # latents of another VAE are strangers
        values = np.concatenate([each.means.reshape(len(each.means), -1) for each in (*one, *other)], axis=1)
        mean, scale = values.mean(1)[:, None, None], np.maximum(values.std(1), 1e-6)[:, None, None]  # a channel each
        for first, second in _groups(one, other, lambda sample: f"{sample.bucket} {sample.means.shape}"):
            found += _near_pairs(first, second, mean, scale)
    return found


def _groups(
    some: Iterable[Coarse], others: Iterable[Coarse], kind: Callable[[Coarse], str]
) -> Iterator[tuple[list[Coarse], list[Coarse]]]:
    """Those of one kind, where there are some on both sides. What is damaged is left out."""
    groups: dict[str, tuple[list[Coarse], list[Coarse]]] = defaultdict(lambda: ([], []))
    for side, samples in enumerate((some, others)):
        for sample in samples:
            if sample.means.size and np.isfinite(sample.means).all():
                groups[kind(sample)][side].append(sample)
    return iter([(one, other) for one, other in groups.values() if one and other])


def _near_pairs(
    some: list[Coarse], others: list[Coarse], mean: np.ndarray, scale: np.ndarray
) -> Iterator[tuple[str, str]]:
    second = np.stack([((other.means - mean) / scale).ravel() for other in others])  # (m, C)
    lengths = np.square(second).sum(1)
    for one in some:
        first = ((one.means - mean) / scale).ravel()
        both = np.maximum(np.square(first).sum() + lengths, 1e-6)
        apart = np.sqrt(np.maximum(both - 2 * second @ first, 0) / both)
        for place in np.flatnonzero(apart <= NEAR):
            if one.id != others[place].id:
                yield one.id, others[place].id
