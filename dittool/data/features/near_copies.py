"""Pictures that are the same one saved again: in another format or quality, at another size, cropped by a little.

A perceptual hash of 64 bits proposes pairs without comparing all with all; the thumbnails' pixels confirm them, for
different pictures share a hash: 400 of the demo's drawings would become 194 groups at four bits' distance. Thumbnails
are (16, 16, 3) uint8 YCbCr of the whole picture.

The hash marks the low frequencies of the luma that stand out upwards, where the usual pHash asks on which side of their
median they lie: in a flat drawing most are zero, and noise of compression tosses a coin for each of them.

N: thumbnails · M: pairs
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dittool.data.source.thumbnail import SIDE

_CHUNK = 4096  # thumbnails or pairs at a time
_FREQUENCIES = 8  # along each side
_LEAST_WAVE, _WAVE_SHARE = 4.0, 0.1  # a coefficient stands out above this, and above this share of their RMS
MOST_BITS = 12  # that the hashes of a proposed pair differ in
_BLOCKS, _BLOCK_BITS = 8, 8  # of a hash
_MOST_COMPARED = 200_000_000  # pairs of hashes, by which the number of blocks that must be equal is chosen
# Where very many hashes begin alike, each is compared with this many that follow it, or until so many were near
_MOST_FOLLOWING, _MOST_NEAR = 500, 64

# What saving again may change, in levels of 255: this much everywhere, more where the picture has contrast or an edge
_LEAST_NOISE, _CONTRAST, _EDGE = 1.0, 600.0, 0.08
_CHROMA = 0.5  # weight of a chroma difference: JPEG halves the chroma's resolution
_BRIGHTER, _BRIGHTER_COST = 8.0, 0.25  # levels that the whole may be brighter by, and what each of them counts
_WORST = 0.1  # share of the thumbnail in which the pictures differ most
_BUSY_EDGE = 4.0  # levels a sixteenth of a side, from where on a place is busy
# the limit, in noises: of a picture without busy places, and what grows with their share and with its square
_PLAIN_LIMIT, _BUSY_LIMIT = 1.5, 4.0


@dataclass(frozen=True)
class Proposed:
    """Pairs whose hashes are near each other."""

    pairs: np.ndarray  # (M, 2) int64, the lower number first, each once
    equal_blocks: int  # of eight: hashes that share fewer were not compared
    unfinished: int  # hashes that begin like so many others that not all were compared


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """(N, 16, 16, 3) uint8 → (N,) uint64. Works through a memory-mapped array piece by piece."""
    place = np.arange(SIDE)
    wave = np.cos(np.pi / SIDE * (place + 0.5) * np.arange(_FREQUENCIES)[:, None]).astype(np.float32)  # (8, 16)
    wave *= np.sqrt(2 / SIDE)
    wave[0] *= np.sqrt(0.5)
    hashes = np.empty(len(thumbnails), np.uint64)
    for start in range(0, len(thumbnails), _CHUNK):
        luma = thumbnails[start : start + _CHUNK, :, :, 0].astype(np.float32)
        waves = (wave @ luma @ wave.T).reshape(len(luma), -1)  # DCT-II, (n, 64)
        waves[:, 0] = 0  # the mean says how bright it is, not what it shows
        rms = np.sqrt((waves[:, 1:] ** 2).mean(1, keepdims=True))
        stands_out = waves > np.maximum(_LEAST_WAVE, _WAVE_SHARE * rms)
        hashes[start : start + _CHUNK] = np.ascontiguousarray(np.packbits(stands_out[:, _SPREAD], axis=1)).view(
            np.uint64
        )[:, 0]
    return hashes


# Each block of eight bits gets low and high frequencies alike: by u + v, then by u, dealt out in turn.
_SPREAD = np.array(sorted(range(64), key=lambda bit: (sum(divmod(bit, 8)), bit))).reshape(8, 8).T.ravel()


def proposed_pairs(hashes: np.ndarray, is_new: np.ndarray) -> Proposed:
    """Pairs of which one at least is new, and whose hashes differ in few bits.

    Hashes are sorted by some of their eight blocks and compared with those that share them; every choice of blocks has
    its turn. So few sets need one block in common and no pair of up to 7 different bits is missed; from 113,000 images
    on two (6 bits), from 970,000 on three (5 bits). Memory is a few numbers a hash, never a pair of all with all.
    """
    equal = next(
        count
        for count in (1, 2, 3)
        if count == 3 or len(hashes) ** 2 * _choices(count) / 2 ** (_BLOCK_BITS * count + 1) <= _MOST_COMPARED
    )
    found, unfinished = [], 0
    for blocks in combinations(range(_BLOCKS), equal):
        pairs, left = _pairs_sharing(hashes, is_new, blocks)
        found.append(pairs)
        unfinished = max(unfinished, left)
    keys = np.unique(np.concatenate(found))
    return Proposed(np.stack(np.divmod(keys, max(len(hashes), 1)), axis=1), equal, unfinished)


def _choices(count: int) -> int:
    return len(list(combinations(range(_BLOCKS), count)))


def _pairs_sharing(hashes: np.ndarray, is_new: np.ndarray, blocks: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """(pairs as low · N + high of hashes that are equal in these blocks, hashes with more neighbours than are
    compared).
    """
    turned = np.zeros_like(hashes)  # these blocks first, so that sorting brings equal ones together and near ones near
    for block in (*blocks, *(other for other in range(_BLOCKS) if other not in blocks)):
        turned = turned << np.uint64(_BLOCK_BITS) | hashes >> np.uint64(_BLOCK_BITS * block) & np.uint64(0xFF)
    order = np.argsort(turned, kind="stable")  # equal hashes keep their order, so each choice finds the same pairs
    turned = turned[order]
    begins = turned >> np.uint64(64 - _BLOCK_BITS * len(blocks))
    found, here = [np.empty(0, np.int64)], np.arange(len(hashes) - 1)  # places in order that have a neighbour left
    near_ones = np.zeros(len(hashes), np.int32)  # by place, those that were found so far
    crowded = 0
    for distance in range(1, _MOST_FOLLOWING + 1):
        here = here[: np.searchsorted(here, len(hashes) - distance)]
        here = here[begins[here] == begins[here + distance]]
        if not len(here):
            break
        near = here[np.bitwise_count(turned[here] ^ turned[here + distance]) <= MOST_BITS]
        near_ones[near] += 1
        full = near_ones[here] == _MOST_NEAR
        crowded += int(full.sum())
        here = here[~full]
        one, other = order[near], order[near + distance]
        fresh = is_new[one] | is_new[other]
        one, other = one[fresh], other[fresh]
        found.append(np.minimum(one, other) * len(hashes) + np.maximum(one, other))
    return np.unique(np.concatenate(found)), crowded + len(here)


def differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How much two thumbnails differ, beside what saving again explains: (M, 16, 16, 3) twice → (M,), at most 1 for
    copies.

    Each place's difference is held against a noise that grows with the picture's contrast and with the slope there (a
    resize moves edges by parts of a pixel); the worst tenth of places is averaged, so that one object that moved
    counts. A busy picture has more by which it could differ from others, and may differ more from its copy. Figures of
    copies and of different pictures: docs/sources.md.
    """
    values = np.empty(len(one))
    for start in range(0, len(one), _CHUNK):
        part = slice(start, start + _CHUNK)
        values[part] = _differences(_weighted(one[part]), _weighted(other[part]))
    return values


def _weighted(thumbnails: np.ndarray) -> np.ndarray:
    return thumbnails.astype(np.float32) * np.array([1, _CHROMA, _CHROMA], np.float32)


def _differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    slopes = [np.gradient(picture, axis=axis) for picture in (one, other) for axis in (1, 2)]  # (M, 16, 16, 3) each
    slope = sum(np.square(each).sum(-1) for each in slopes) / 2  # (M, 16, 16)
    contrast = (one[..., 0].var((1, 2)) + other[..., 0].var((1, 2))) / 2  # (M,)
    noise = np.maximum(_LEAST_NOISE, contrast / _CONTRAST)[:, None, None] ** 2 + _EDGE**2 * slope
    changed = other - one
    brighter = (changed[..., 0] / noise).sum((1, 2)) / (1 / noise).sum((1, 2))
    brighter = np.clip(brighter, -_BRIGHTER, _BRIGHTER)
    changed[..., 0] -= brighter[:, None, None]
    ratio = (np.square(changed).sum(-1) / noise).reshape(len(one), -1)  # (M, 256)
    worst = np.sort(ratio, axis=1)[:, -int(_WORST * ratio.shape[1]) :].mean(1)
    busy = np.mean([np.hypot(*slopes[i : i + 2])[..., 0] > _BUSY_EDGE for i in (0, 2)], axis=(0, 2, 3))  # (M,)
    return np.sqrt(worst + (_BRIGHTER_COST * brighter) ** 2) / (_PLAIN_LIMIT + _BUSY_LIMIT * busy * (1 + busy))
