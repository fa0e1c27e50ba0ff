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

from dittool.audit.content import observed
from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.subject import Data
from dittool.data.alignment import IDENTITY, Aligned, Observed, align

CODE, NAME, SEVERITY, SCOPE, SINCE = "D3", "alignment", "error", ("data",), "0.1"

_FEWEST = 24  # images
WEAKEST = 0.05  # share of the variance that the best arrangement must explain to be believed
_SURE, CLEAR = 3.0, 2.0  # standard errors by which another arrangement must win to fail, and as stored to pass

_RANDOM_CROPS = "A crop of its own for each image, as training pipelines take it, looks so too"


def check(subject: Data) -> list[Finding]:
    return alignment_finding(observed(subject.opened))


def alignment_finding(seen: list[Observed]) -> list[Finding]:
    """One finding."""
    if len(seen) < _FEWEST:
        return skipped(
            f"{len(seen)} images whose patches are finite and fill a grid of at least 16 are too few, {_FEWEST} are"
            " needed"
        )
    return verdict(align(seen))


def verdict(found: Aligned) -> list[Finding]:
    """What the scores say: found, clean, or not told apart."""
    if not found.advantage:
        return skipped("every arrangement gives the same: the images are flat, or their grids too small")
    best, stored = found.best, found.scores[IDENTITY]
    score, sure = found.scores[best], found.advantage.get(best, 0.0)
    among = f"of {len(found.scores)} arrangements on {found.images} images"
    if score < WEAKEST:
        return skipped(
            f"too weak a signal: the best {among}, {best}, explains {score:.1%} of the latent's variation. Rule D10"
            f" says whether they are of the same images; if so, more of them may tell. {_RANDOM_CROPS}"
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
            f". {_RANDOM_CROPS}"
        )
    rival = max(found.advantage, key=found.advantage.__getitem__)
    rival_score = f"{rival} {found.scores[rival]:.0%}, {-found.advantage[rival]:.1f} standard errors behind"
    if found.advantage[rival] > -CLEAR:
        return skipped(
            f"{among}, as stored explains most, {stored:.0%}, but is not told apart from {rival_score}: more images"
            " would"
        )
    return passed(f"{among}, as stored explains most of the latent's variation, {stored:.0%}; next {rival_score}")
