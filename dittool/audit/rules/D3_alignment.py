"""Each patch lies over the part of the latent that it shows.

## What it checks
A ridge regression predicts local statistics of the latent (mean and mean magnitude of each channel) from the patches, learned on half of the
images and tested on the other half. The statistics are laid out as stored, and in the ways in which patches are known to have been misplaced:
shifted by ±1 to ±8 or a row in raster order, flipped either way, transposed, centre-cropped, of another grid. The arrangement as stored must
win. Too few images or too weak a signal is said, not guessed at.

## Why it matters
DINO on a centre crop with the latent of the whole image, registers among the patches, one modality flipped: every shape is right and the reference
teaches the wrong place.

## Example
"flipped left to right explains 36%, as stored 2%".

## Fix
Embed again with `dit embed`: one bucketed image feeds all encoders, uncropped, and nothing cached is flipped.
"""

from __future__ import annotations

from dittool.audit.data_view import UNOPENED
from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.subject import Subject
from dittool.data.alignment import IDENTITY, Aligned, align
from dittool.data.buckets import Bucket
from dittool.data.records import IMAGE_PATCHES, LATENT
from dittool.encoders.image import patch_grid

CODE, NAME, SEVERITY, SCOPE, SINCE = "D3", "alignment", "error", ("data",), "0.1"

_FEWEST, _MOST = 24, 256  # images
_WEAKEST = 0.05  # share of the variance that the best arrangement must explain to be believed
_SURE = 3.0  # standard errors
_STRIDE = 8  # of the latent where no card says it


def check(subject: Subject) -> list[Finding]:
    data = subject.data
    if not data.refs:
        return skipped(UNOPENED)
    refs = data.spread(IMAGE_PATCHES, LATENT)
    refs = [refs[i * len(refs) // min(len(refs), _MOST)] for i in range(min(len(refs), _MOST))]
    patches, latents, grids, sizes = [], [], [], []
    for ref in refs:
        tokens, latent = data.array(ref, IMAGE_PATCHES), data.array(ref, LATENT)
        bucket = data.bucket(ref) or Bucket(latent.shape[2] * _STRIDE, latent.shape[1] * _STRIDE)
        fitting = [grid for size in (data.encoder("image").get("patch_size"), 16, 14) if size and _cells(grid := _grid(bucket, size)) == len(tokens)]
        if fitting:
            patches, latents = [*patches, tokens], [*latents, latent]
            grids, sizes = [*grids, fitting[0]], [*sizes, (bucket.width, bucket.height)]
    if len(patches) < _FEWEST:
        return skipped(f"{len(patches)} images whose patches fill a grid are too few, {_FEWEST} are needed")
    return _verdict(align(patches, latents, grids, sizes))


def _verdict(found: Aligned) -> list[Finding]:
    if not found.advantage:
        return skipped("every arrangement gives the same: the images are flat, or their grids too small")
    best, stored = found.best, found.scores[IDENTITY]
    score, sure = found.scores[best], found.advantage.get(best, 0.0)
    among = f"of {len(found.scores)} arrangements on {found.images} images"
    if score < _WEAKEST:
        return skipped(f"too weak a signal: the best {among}, {best}, explains {score:.1%} of the latent's variation")
    if best != IDENTITY and sure >= _SURE:
        return failed(
            f"{among}, {best} explains {score:.0%} of the latent's variation, as stored {stored:.0%} ({sure:.1f} standard errors apart)",
            "embed again with dit embed, then dit shard: one bucketed image must feed all encoders",
        )
    if best != IDENTITY:
        return skipped(f"{among}, {best} explains {score:.1%}, as stored {stored:.1%}: not told apart ({sure:.1f} standard errors)")
    rival = max(found.advantage, key=found.advantage.__getitem__)
    close = "" if found.advantage[rival] < -_SURE else "; not surely told apart from it"
    rival_score = f"{rival} {found.scores[rival]:.0%}, {-found.advantage[rival]:.1f} standard errors behind"
    return passed(f"{among}, as stored explains most of the latent's variation, {stored:.0%}; next {rival_score}{close}")


def _grid(bucket: Bucket, patch_size: int) -> tuple[int, int]:
    return patch_grid(bucket.width, bucket.height, patch_size)


def _cells(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]
