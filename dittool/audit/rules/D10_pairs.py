"""The features of a sample come from one image: its latent, its patches, its CLS token and its caption.

## What it checks
A regression learned on half of the samples predicts the latent under each patch from the patches, the patches' mean
from the CLS token, the CLS token from the caption's features, and those from the caption's words. On the other half
each prediction is compared with what the sample holds and with what others of its bucket hold; samples that look the
same are not compared. A sample's own features fit better than nearly all others'. Of wrong ones half fit worse than
most others', which right ones hardly ever do: these are counted and named, and twice their share is wrong. It fails
when the 99.9% interval of that share leaves what chance explains. At most 400 images chosen by hash are looked at,
captions of 2,000. No index and no encoder is needed; docs/audit-power.md tells how many samples show which share.

Captions say less of an image than its own features do. They are judged where their words distinguish images: most
hold two words that several captions share, and there are five captions for each such word. A part of them that was
exchanged is found from about a quarter of the set on.

## Why it matters
A pass that numbered its files in another order, a shuffled loader, one file left out: latents of other images load and
train, every shape is right, and the model learns that references mean nothing.

## Example
Latents written one sample late fail: "latents and patches: of 256 samples 131 fit most others better than their own:
100% (80% to 100%) are of different images".

## Fix
Look at the samples that are named, and for what wrote one feature in another order than the others (sorted names, a
shuffled loader, a file left out). Embed again with `dit embed` into a new folder: it keeps all features under one id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dittool.audit.content import TellingWords, captioned_images, paired_images
from dittool.audit.data_view import NO_PATCHES, DataView
from dittool.audit.rule import FAIL, Finding, failed, passed, skipped
from dittool.audit.rules.D3_alignment import alignment_finding
from dittool.audit.subject import Data
from dittool.data.pairing import FeaturePair, Paired, pair_up
from dittool.errors import listed

CODE, NAME, SEVERITY, SCOPE, SINCE = "D10", "pairs", "error", ("data",), "0.2"

FEWEST, _FEWEST_CLS = 24, 64  # samples with others to be compared with
_STRAY = 0.005  # share of right samples that may fit another image's features better
_MANY = 0.2  # share of wrong ones, at least, beyond which no tail of right samples reaches
_NO_FIT = 0.75  # share of comparisons won: what image features that belong together always pass
_STRAY_CAPTIONS, _NO_FIT_CAPTIONS = 0.05, 0.6
_CAPTIONS_A_WORD, _FEWEST_CAPTIONS, _MOST_CAPTIONS = 5, 64, 500  # that decide
_TELLING = 0.8  # share of captions with two words that distinguish images
_NAMED = 20  # samples
_FIX = (
    "look at the samples named, and for what wrote one feature in another order than the others (sorted names, a"
    " shuffled loader, a file left out); then dit embed into a new folder, and dit shard"
)


def check(subject: Data) -> list[Finding]:
    data = subject.opened
    captioned = captioned_images(data)
    patches_latents, cls_patches = paired_images(data) if data.has_patches else ([], [])
    images = [*_latents_and_patches(data, pair_up(patches_latents)), *cls_and_patches(pair_up(cls_patches))]
    return [
        *(images if data.has_patches else skipped(f"latents, patches and CLS of images: {NO_PATCHES}")),
        *captions_and_cls(captioned),
        *captions_and_features(captioned),
    ]


def _latents_and_patches(data: DataView, found: Paired) -> list[Finding]:
    what = "latents and patches"
    if len(found.ids) < FEWEST:
        return too_few(what, found)
    if not wrong(found):
        return passed(f"{what}: {_fits(found)}")
    if alignment_finding(data)[0].status == FAIL:
        return skipped(
            f"{what}: patches lie over other parts of their image (rule D3); to be judged when that is mended"
        )
    return failed(f"{what}: {_misfits(found)}", _FIX)


def cls_and_patches(found: Paired) -> list[Finding]:
    """Of a small set, one right CLS token may fit others better: it is one example to learn from, patches are many."""
    what = "CLS tokens and patches"
    if len(found.ids) < _FEWEST_CLS:
        return too_few(what, found, _FEWEST_CLS)
    if wrong(found, max(_STRAY, 1 / len(found.ids))):
        return failed(f"{what}: {_misfits(found)}", _FIX)
    return passed(f"{what}: {_fits(found)}")


def captions_and_cls(pairs: list[FeaturePair]) -> list[Finding]:
    """The caption's features beside the CLS token."""
    return _by_words(
        "captions' features and CLS tokens",
        pairs,
        lambda sample, words: sample,
        f"{_FIX}. Captions that do not describe their images look the same",
    )


def captions_and_features(pairs: list[FeaturePair]) -> list[Finding]:
    """The caption as it stands in the record beside its features."""
    return _by_words(
        "captions and their features",
        pairs,
        lambda sample, words: replace(sample, inputs=words.in_caption(sample.text), targets=sample.inputs),
        "the captions were exchanged or edited after their features were made: dit embed --pass t5, then dit shard",
    )


def _by_words(
    what: str, pairs: list[FeaturePair], paired: Callable[[FeaturePair, TellingWords], FeaturePair], fix: str
) -> list[Finding]:
    words = TellingWords.of([sample.text for sample in pairs])
    needed = min(max(_CAPTIONS_A_WORD * len(words.words), _FEWEST_CAPTIONS), _MOST_CAPTIONS)
    if words.share < _TELLING:
        needed = max(needed, round(len(pairs) * _TELLING / max(words.share, 0.01)))
        return skipped(
            f"{what}: {words.share:.0%} of {len(pairs)} captions hold two words that several share, {_TELLING:.0%}"
            f" are needed; about {needed:,} images captioned so may decide"
        )
    if len(pairs) < needed:
        return skipped(f"{what}: {len(pairs)} samples do not decide, about {needed} would")
    found = pair_up([paired(sample, words) for sample in pairs])
    if len(found.ids) < needed / 2:
        return too_few(what, found, needed // 2)
    if found.interval[1] < _NO_FIT_CAPTIONS or found.some_are_wrong(_STRAY_CAPTIONS):
        return failed(f"{what}: {_misfits(found)}", fix)
    won = f"own ones win {found.mean:.0%} of comparisons"
    return passed(f"{what}: {won} on {len(found.ids)} samples; less than a quarter of them exchanged may go unseen")


def wrong(found: Paired, stray: float = _STRAY) -> bool:
    """Of image features."""
    return found.some_are_wrong(stray) or found.wrong_interval[0] > _MANY or found.interval[1] < _NO_FIT


def _misfits(found: Paired) -> str:
    low, high = found.wrong_interval
    return (
        f"of {len(found.ids)} samples {len(found.misfits)} fit most others better than their own:"
        f" {found.wrong_share:.0%} ({low:.0%} to {high:.0%}) are of different images; own ones win"
        f" {found.mean:.0%} of comparisons; {listed(found.misfits, _NAMED)}"
    )


def _fits(found: Paired) -> str:
    low, high = found.interval
    unsure = f"; look at {', '.join(found.misfits[:3])}" if found.misfits else ""
    return (
        f"own ones win {found.mean:.1%} ({low:.1%} to {high:.1%}) of comparisons on {len(found.ids)} samples, with"
        f" {found.others:.0f} others each; at most {found.wrong_interval[1]:.0%} are of different images{unsure}"
    )


def too_few(what: str, found: Paired, needed: int = FEWEST) -> list[Finding]:
    return skipped(
        f"{what}: {len(found.ids)} samples have five others of their bucket that look different to be compared with,"
        f" {needed} are needed"
    )
