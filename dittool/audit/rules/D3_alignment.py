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

Random crops have no one arrangement. So 96 of the images are also laid under 184 windows each, from all of the latent
to a quarter of it; half of the latent's channels choose an image's window and the other half judges it. Where nearly
every image fits a window of its own better than any that they share, the patches were made of random crops.

## Why it matters
DINO on a centre crop with the latent of the whole image, registers among the patches, one modality flipped: every shape
is right and the reference teaches the wrong place.

## Example
A set whose images were mirrored for DINO only fails: "of 30 arrangements on 96 images, flipped left to right explains
40% of the latent's variation, as stored -4% (12.2 standard errors apart)". Below zero is worse than guessing the mean.

## Fix
Embed again with `dit embed`: one bucketed image feeds all encoders, uncropped, and nothing cached is flipped. Where the
rule could not decide: audit more images at once, or look at a few by eye.
"""

from __future__ import annotations

from dittool.audit.content import MOST_SKETCHED, observed, sketched
from dittool.audit.data_view import NO_PATCHES, DataView
from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.subject import Data
from dittool.data.alignment import IDENTITY, SHARED_WINDOWS, Aligned, align
from dittool.data.crops import OwnWindows, own_windows

CODE, NAME, SEVERITY, SCOPE, SINCE = "D3", "alignment", "error", ("data",), "0.1"

_FEWEST = 24  # images
WEAKEST = 0.05  # share of the variance that the best arrangement must explain to be believed
_SURE, CLEAR = 3.0, 2.0  # standard errors by which another arrangement must win to fail, and as stored to pass
_FIX = "embed again with dit embed, then dit shard: one bucketed image must feed all encoders"


def check(subject: Data) -> list[Finding]:
    return alignment_finding(subject.opened)


def alignment_finding(data: DataView) -> list[Finding]:
    """One finding."""
    if not data.has_patches:
        return skipped(NO_PATCHES)
    seen, sketches = observed(data), sketched(data)
    if len(seen) < _FEWEST:
        return skipped(
            f"{len(seen)} images whose patches are finite and fill a grid of at least 16 are too few, {_FEWEST} are"
            " needed"
        )
    return verdict(align(seen), own_windows(sketches) if len(sketches) >= _FEWEST else None)


def verdict(found: Aligned, windows: OwnWindows | None) -> list[Finding]:
    """What the scores say: misplaced, as stored, or undecided."""
    if not found.advantage:
        return skipped("every arrangement gives the same: the images are flat, or their grids too small")
    best, stored = found.best, found.scores[IDENTITY]
    score, sure = found.scores[best], found.advantage.get(best, 0.0)
    among = f"of {len(found.scores)} arrangements on {found.images} images"
    if windows is not None and windows.cropped and (best in SHARED_WINDOWS or windows.explained > score):
        return failed(_random_crops(windows), _FIX)
    if score < WEAKEST:
        return skipped(
            f"too weak a signal: the best {among}, {best}, explains {score:.1%} of the latent's variation. Rule D10"
            f" says whether they are of the same images; if so, more of them may decide{_maybe_cropped(windows)}"
        )
    if best != IDENTITY and sure >= _SURE:
        return failed(
            f"{among}, {best} explains {score:.0%} of the latent's variation, as stored {stored:.0%} ({sure:.1f}"
            " standard errors apart)",
            _FIX,
        )
    if best != IDENTITY:
        return skipped(
            f"{among}, {best} explains {score:.1%}, as stored {stored:.1%}: undecided, {sure:.1f} standard errors"
            f" apart, {_SURE:g} would decide{_maybe_cropped(windows)}"
        )
    rival = max(found.advantage, key=found.advantage.__getitem__)
    rival_score = f"{rival} {found.scores[rival]:.0%}, {-found.advantage[rival]:.1f} standard errors behind"
    if found.advantage[rival] > -CLEAR:
        return skipped(
            f"{among}, as stored explains most, {stored:.0%}; next {rival_score}: undecided, more images would decide"
            f"{_maybe_cropped(windows)}"
        )
    return passed(f"{among}, as stored explains most of the latent's variation, {stored:.0%}; next {rival_score}")


def _random_crops(windows: OwnWindows) -> str:
    return (
        f"the patches were made of random crops: of {windows.images} images {windows.images - windows.as_stored} fit a"
        f" part of their latent better than all of it, another part in each image; these explain"
        f" {windows.explained:.0%} of the latent's variation, one part for all images {max(windows.fixed, 0):.0%}"
        f" ({windows.advantage:.1f} standard errors apart)"
    )


def _maybe_cropped(windows: OwnWindows | None) -> str:
    if windows is None or (deciding := windows.deciding) is None:
        return ""
    cropped = windows.images - windows.as_stored
    if deciding > MOST_SKETCHED:
        decides = f"more than the {MOST_SKETCHED} that are looked at would be needed: look at a few by eye"
    else:
        decides = f"about {deciding} would decide"
    return (
        f". Random crops, another one for each image, look like this too: {cropped} of {windows.images} images fit a"
        f" part of their latent better than all of it; {decides}"
    )
