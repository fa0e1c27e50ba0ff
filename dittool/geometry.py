"""Sizes and grids: the aspect buckets that images are trained at, which of them fits an image best, and the grids of
latent cells and patches behind a bucket.

Sizes are width before height, grids rows before columns. Everything here is exact integer or rational arithmetic; no
image is opened.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from dittool.errors import UsageError

SIDE_MULTIPLE = 16  # pixels: VAE stride 8 times 2 latent cells a token
COARSE_MULTIPLE = 64  # for areas from COARSE_FROM pixels up
COARSE_FROM = 512 * 512
# a bucket's area may differ so much from the one asked for; the canonical ones differ by up to 9.8%
AREA_TOLERANCE = Fraction(1, 10)
LARGEST_AREA = 8192 * 8192  # pixels


def parse_size(text: str) -> tuple[int, int]:
    """`"1216x832"` → (1216, 832), width first. Raises ValueError on anything else."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if not match:
        raise ValueError(f"'{text}' is not WIDTHxHEIGHT, for example 1216x832")
    return int(match[1]), int(match[2])


@dataclass(frozen=True, order=True)
class Bucket:
    """A training size in pixels, width first."""

    width: int
    height: int

    @property
    def name(self) -> str:
        """`"1216x832"`, as folders, records and presets write it."""
        return f"{self.width}x{self.height}"

    @property
    def area(self) -> int:
        """Pixels."""
        return self.width * self.height

    def latent_grid(self, stride: int = 8) -> tuple[int, int]:
        """(h, w) of the latent behind a VAE of this stride, rows first. Raises ValueError when the stride does not
        divide both sides.
        """
        if self.width % stride or self.height % stride:
            raise ValueError(f"bucket {self.name} is not divisible by the stride {stride}")
        return self.height // stride, self.width // stride

    @classmethod
    def from_name(cls, name: str) -> Bucket:
        """The bucket behind `"1216x832"`. Raises ValueError on anything else."""
        return cls(*parse_size(name))


CANONICAL = tuple(
    Bucket(width, height)
    for width, height in ((1024, 1024), (1216, 832), (832, 1216), (1280, 768), (768, 1280), (1344, 704), (704, 1344))
)


def buckets_for_area(area: tuple[int, int], multiple: int | None = None) -> list[Bucket]:
    """The seven canonical buckets scaled to about `area` = (width, height) pixels; 1024x1024 gives exactly the seven.

    Sides are multiples of `multiple`; without it of 64 from 512x512 upward and of 16 below. Of the landscape sizes
    whose area is within 10% of the one asked for, each canonical aspect takes the one nearest in log aspect; portrait
    sizes mirror them. Aspects that meet in one size give one bucket, so small areas have fewer. Order: square first,
    then landscape and portrait in turn, ever longer. Raises `UsageError` when no square fits the area, naming those
    that do.
    """
    pixels = area[0] * area[1]
    asked = f"data.area = {area[0]}x{area[1]}"
    if pixels > LARGEST_AREA:
        raise UsageError(
            f"{asked}: {pixels:,} pixels, the largest area is {LARGEST_AREA:,}",
            "choose a smaller area, for example 1024x1024",
        )
    step = multiple or (COARSE_MULTIPLE if pixels >= COARSE_FROM else SIDE_MULTIPLE)
    sizes = _landscape_sizes(pixels, step)
    if not any(size.width == size.height for size in sizes):
        below = max(math.isqrt(pixels) // step, 1) * step
        raise UsageError(
            f"{asked}: no square with sides of a multiple of {step} lies within {float(AREA_TOLERANCE):.0%} of"
            f" {pixels:,} pixels",
            f"use {below}x{below} or {below + step}x{below + step}, or list the sizes in data.buckets",
        )
    landscapes = (_scaled(canonical, pixels, sizes) for canonical in CANONICAL if canonical.width >= canonical.height)
    both_ways = (
        Bucket(*sides) for size in landscapes for sides in ((size.width, size.height), (size.height, size.width))
    )
    return list(dict.fromkeys(both_ways))


def buckets_from_names(names: Sequence[str]) -> list[Bucket]:
    """The buckets that `data.buckets` lists, as `["1024x1024", "1216x832"]`, in its order. Raises `UsageError` naming
    every size that cannot serve.
    """
    problems = [] if names else ["the list is empty"]
    buckets: list[Bucket] = []
    for name in names:
        bucket = Bucket.from_name(name)
        odd = [side for side in (bucket.width, bucket.height) if side % SIDE_MULTIPLE]
        problems += [
            f"{name}: side {side} is not a multiple of {SIDE_MULTIPLE} (nearest {_neighbouring_multiples(side)})"
            for side in odd
        ]
        if bucket.area > LARGEST_AREA:
            problems.append(f"{name}: {bucket.area:,} pixels, the largest area is {LARGEST_AREA:,}")
        if bucket in buckets:
            problems.append(f"{name}: listed twice")
        buckets.append(bucket)
    if problems:
        raise UsageError(
            "data.buckets: " + "; ".join(problems), 'correct the list, or set data.area, for example "512x512"'
        )
    return buckets


def require_whole_tokens(buckets: Iterable[Bucket], stride: int, patch_size: int, source: str) -> None:
    """Raises `UsageError` naming every bucket whose latent is not whole tokens of `patch_size`² cells.

    Args:
        stride: pixels along one side of a latent cell.
        source: where the buckets come from, for the message.
    """
    multiple = stride * patch_size
    if odd := [bucket.name for bucket in buckets if bucket.width % multiple or bucket.height % multiple]:
        raise UsageError(
            f"model.patch_size = {patch_size}: {source} has the bucket {' and '.join(odd)}; sides must be multiples of"
            f" {multiple} = {patch_size} cells × {stride} pixels",
            f"choose another patch size, or embed with data.buckets of multiples of {multiple} (with data.area: -s"
            f" data.multiple={multiple})",
        )


def nearest_bucket(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket nearest to width:height in |log aspect|; of equally near ones the wider, then the taller.

    The distance is compared as an exact ratio, so ties are ties on every machine. Raises ValueError without buckets or
    with an empty size.
    """
    if width <= 0 or height <= 0 or not buckets:
        raise ValueError(f"no nearest bucket for {width}x{height} among {len(buckets)} buckets")

    image = Bucket(width, height)
    return min(buckets, key=lambda bucket: (_aspect_distance(image, bucket), -bucket.width, -bucket.height))


def crop_box(width: int, height: int, bucket: Bucket) -> tuple[float, float, float, float]:
    """The centred part of a width x height image that has the bucket's aspect and is as large as can be: (left,
    top, right, bottom) in pixels.
    """
    if width * bucket.height > height * bucket.width:  # wider than the bucket: lose left and right
        left = (width - height * bucket.width / bucket.height) / 2
        return left, 0.0, width - left, float(height)
    top = (height - width * bucket.height / bucket.width) / 2
    return 0.0, top, float(width), height - top


def encoder_input_size(width: int, height: int, patch_size: int) -> tuple[int, int]:
    """(width, height) at which an image encoder sees a bucket: each side at the nearest multiple of the patch size, at
    least one patch.

    With patch 16 that is the bucket itself; with patch 14 for example 1216x832 → 1218x826.
    """
    return _nearest_multiple(width, patch_size), _nearest_multiple(height, patch_size)


def patch_grid(width: int, height: int, patch_size: int) -> tuple[int, int]:
    """(rows, columns) of an image encoder's patches for a bucket."""
    input_width, input_height = encoder_input_size(width, height, patch_size)
    return input_height // patch_size, input_width // patch_size


def _scaled(canonical: Bucket, pixels: int, sizes: Sequence[Bucket]) -> Bucket:
    """The size nearest in aspect to the canonical one; of several, nearest to its share of the area (1344x704 has
    0.90 of 1024x1024).
    """
    wanted = Fraction(pixels * canonical.area, CANONICAL[0].area)
    return min(sizes, key=lambda size: (_aspect_distance(canonical, size), abs(size.area - wanted), size))


def _aspect_distance(a: Bucket, b: Bucket) -> Fraction:
    """exp |log aspect of a − log aspect of b|: in the same order as the distance itself, and exact."""
    ratio = Fraction(a.width * b.height, a.height * b.width)
    return max(ratio, 1 / ratio)


def _landscape_sizes(pixels: int, step: int) -> list[Bucket]:
    longest = math.isqrt(4 * pixels) + step  # up to 4:1, more than twice the longest canonical aspect
    sizes = (Bucket(width, height) for width in range(step, longest, step) for height in range(step, width + 1, step))
    return [size for size in sizes if abs(Fraction(size.area, pixels) - 1) <= AREA_TOLERANCE]


def _nearest_multiple(side: int, step: int) -> int:
    return max((2 * side + step) // (2 * step), 1) * step  # in integers: a half goes up, on every machine


def _neighbouring_multiples(side: int) -> str:
    below = side // SIDE_MULTIPLE * SIDE_MULTIPLE
    return f"{below} or {below + SIDE_MULTIPLE}" if below else str(SIDE_MULTIPLE)
