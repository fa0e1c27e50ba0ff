"""Each patch lies over the part of the latent that it shows.

## What it checks
What a patch looks like says something of the latent under it. A ridge regression predicts local statistics of the
latent (mean and mean magnitude of each channel) from the patches, learned on half of the images and tested on the other
half. The statistics are laid out as stored, and in the ways in which patches are known to have been misplaced: shifted
by ±1 to ±8 or a row in raster order, flipped either way, transposed, written column by column, centre-cropped, of a
grid of another patch size cut to fit. The arrangement as stored must win. It fails when another one wins by three
standard errors over the images, and passes when it is two ahead of every other. What lies between, and too few images
or too weak a signal, is said, not guessed at: docs/audit-power.md tells how many images show which fault. At most 256
images are read, and 32,768 patches of them. No index and no encoder is needed.

## Why it matters
DINO on a centre crop with the latent of the whole image, registers among the patches, one modality flipped: every shape
is right and the reference teaches the wrong place.

## Example
A set whose images were mirrored for DINO only fails: "of 30 arrangements on 96 images, flipped left to right explains
40% of the latent's variation, as stored -4% (12.2 standard errors apart)". Below zero is worse than guessing the mean.

## Fix
Embed again with `dit embed`: one bucketed image feeds all encoders, uncropped, and nothing cached is flipped. Said to
be too weak or not told apart: audit more images at once, or look at a few by eye.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from dittool.audit.data_view import DataView
from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.subject import Data
from dittool.data.alignment import IDENTITY, Aligned, Observed, align, observe
from dittool.data.records import IMAGE_PATCHES, LATENT
from dittool.data.shards.read import SampleRef
from dittool.encoders.cards import ImageCard
from dittool.geometry import Bucket, patch_grid

CODE, NAME, SEVERITY, SCOPE, SINCE = "D3", "alignment", "error", ("data",), "0.1"

_FEWEST, _MOST = 24, 256  # images
_CELLS = 32_768  # of all images together: with patches 1024 wide 260 MB
_WEAKEST = 0.05  # share of the variance that the best arrangement must explain to be believed
_SURE, _CLEAR = 3.0, 2.0  # standard errors by which another arrangement must win to fail, and as stored to pass
_STRIDE = 8  # of the latent where no card says it


def check(subject: Data) -> list[Finding]:
    data = subject.opened
    refs = data.spread(IMAGE_PATCHES, LATENT)
    refs = [refs[i * len(refs) // min(len(refs), _MOST)] for i in range(min(len(refs), _MOST))]
    seen = [image for number, ref in enumerate(refs) if (image := _observe(data, ref, _CELLS // len(refs), number))]
    if seen:
        usual = Counter(map(_widths, seen)).most_common(1)[0][0]
        seen = [image for image in seen if _widths(image) == usual]
    if len(seen) < _FEWEST:
        return skipped(f"{len(seen)} images whose patches are finite and fill a grid are too few, {_FEWEST} are needed")
    return verdict(align(seen))


def _observe(data: DataView, ref: SampleRef, cells: int, number: int) -> Observed | None:
    """None for an image whose patches fill no grid that is known, or are not finite: rules D1 and D6 speak of those."""
    patches, latent = data.array(ref, IMAGE_PATCHES), data.array(ref, LATENT)
    if (patches.ndim, latent.ndim) != (2, 3) or not (np.isfinite(patches).all() and np.isfinite(latent).all()):
        return None
    bucket = data.bucket(ref) or Bucket(latent.shape[2] * _STRIDE, latent.shape[1] * _STRIDE)
    encoder = data.encoder(ImageCard)
    sizes = [
        size
        for size in (encoder.patch_size if encoder else 0, 16, 14)
        if size and data.patch_count(bucket, size) == len(patches)
    ]
    if not sizes:
        return None
    grid = patch_grid(bucket.width, bucket.height, sizes[0])
    return observe(patches, latent, grid, (bucket.width, bucket.height), cells, number, data.patch_storage)


def _widths(image: Observed) -> tuple[int, int]:
    return image.features.shape[1], image.targets.shape[2]


def verdict(found: Aligned) -> list[Finding]:
    """What the scores say: found, clean, or not told apart."""
    if not found.advantage:
        return skipped("every arrangement gives the same: the images are flat, or their grids too small")
    best, stored = found.best, found.scores[IDENTITY]
    score, sure = found.scores[best], found.advantage.get(best, 0.0)
    among = f"of {len(found.scores)} arrangements on {found.images} images"
    if score < _WEAKEST:
        return skipped(
            f"too weak a signal: the best {among}, {best}, explains {score:.1%} of the latent's variation; more images"
            " may tell"
        )
    if best != IDENTITY and sure >= _SURE:
        return failed(
            f"{among}, {best} explains {score:.0%} of the latent's variation, as stored {stored:.0%} ({sure:.1f}"
            " standard errors apart)",
            "embed again with dit embed, then dit shard: one bucketed image must feed all encoders",
        )
    if best != IDENTITY:
        return skipped(
            f"{among}, {best} explains {score:.1%}, as stored {stored:.1%}: not told apart ({sure:.1f} standard errors)"
        )
    rival = max(found.advantage, key=found.advantage.__getitem__)
    rival_score = f"{rival} {found.scores[rival]:.0%}, {-found.advantage[rival]:.1f} standard errors behind"
    if found.advantage[rival] > -_CLEAR:
        return skipped(
            f"{among}, as stored explains most, {stored:.0%}, but is not told apart from {rival_score}: more images"
            " would"
        )
    return passed(f"{among}, as stored explains most of the latent's variation, {stored:.0%}; next {rival_score}")
