"""The first patches are patches, not the encoder's CLS or register tokens.

## What it checks
Whether the first patch token is the CLS token that is stored beside it. At each of the first eight places: how near the
nearest token of another place lies, and how near the nearest one at the same place in another image. Patches have near
neighbours anywhere. Registers have theirs only among registers of the same number: the first distance is then a
multiple of the second, from place 0 on and up to their number, and not behind it. A logo that all pictures share at the
upper left looks the same from there; so where the tokens look like registers, the content decides, as in rule D3: do
patches fit the latent as stored, or shifted by that number? Images that are alike everywhere show nothing. No index is
needed; 24 images are, and docs/audit-power.md says what they show. Pooled patches are judged by rule D3 alone.

## Why it matters
Encoders with registers give [CLS, registers, patches]. Taking the tokens after CLS takes the registers in: every patch
then lies four cells off its place, the last four are lost, and all shapes still look right. Sets made so exist.

## Example
`last_hidden_state[:, 1 : 1 + N]` of DINOv3 fails: "the first 4 patch tokens of 200 images look like registers".

## Fix
Embed again with `dit embed --pass dinov3 --rebuild`, which reads the number of registers from the encoder's config;
then `dit shard`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dittool.audit.content import observed
from dittool.audit.data_view import NO_PATCHES, DataView
from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.rules.D3_alignment import CLEAR, WEAKEST
from dittool.audit.subject import Data
from dittool.data.alignment import IDENTITY, Aligned, align
from dittool.data.patch_storage import POOLED
from dittool.data.records import IMAGE_CLS, IMAGE_PATCHES
from dittool.data.shards.columns import SampleRef

CODE, NAME, SEVERITY, SCOPE, SINCE = "D2", "registers", "error", ("data",), "0.1"

_PLACES = 8  # from the first; no encoder in use has more registers
_FEWEST, _MOST = 24, 200  # images
_OTHERS = 8  # tokens of other places taken from each image
_FLOOR = 0.02  # of the tokens' spread: equal tokens, as of white margins, have no ratio
_SAME = 0.01  # relative distance below which a token is the CLS token
# The ratio of the two distances from which tokens are strange, and its least drop behind them. Of patches it lies
# around 1 and below, of registers from 1.2 to 30. One place alone may be strange by chance, as a corner is; several in
# a row are not.
_ONE_STRANGE, _SEVERAL_STRANGE = (1.4, 1.5), (1.2, 1.25)
_FIX = "embed again with dit embed --pass dinov3 --rebuild: patches start behind the registers; then dit shard"


def check(subject: Data) -> list[Finding]:
    data = subject.opened
    if not data.has_patches:
        return skipped(NO_PATCHES)
    count = len(data.refs)
    looked = (_look(data, data.refs[i * count // min(count, _MOST)], i) for i in range(min(count, _MOST)))
    seen = [image for image in looked if image is not None]
    widths = [len(image.cls) for image in seen]
    seen = [image for image in seen if len(image.cls) == max(widths, key=widths.count)]
    with_cls = sum(image.starts_with_cls for image in seen)
    ratios = _ratios(seen) if len(seen) >= _FEWEST else []
    strange = _strange(ratios)
    listed = ", ".join(f"{ratio:.2g}" for ratio in ratios)
    shown = f"distance to other places over distance to the same place is {listed} at places 0 to {_PLACES - 1}"
    if with_cls > len(seen) / 2:
        registers = f", and with it the first {strange} look like no patches: {shown}" if strange > 1 else ""
        return failed(f"in {with_cls} of {len(seen)} images the first patch token is the CLS token{registers}", _FIX)
    if strange:
        return by_content(align(observed(data)), strange, f"patch tokens of {len(seen)} images", shown)
    if data.patch_storage == POOLED:
        return skipped("pooled patches hold registers and patches in one token, if at all; rule D3 finds the shift")
    if not ratios:
        return skipped(
            f"{len(seen)} images of at least {2 * _PLACES} patches are too few to distinguish registers from patches,"
            f" {_FEWEST} are needed"
        )
    return passed(f"none among the first {_PLACES} patch tokens of {len(seen)} images: {shown}")


def by_content(found: Aligned, strange: int, tokens: str, shown: str) -> list[Finding]:
    """Registers shift the patches behind them by their number, a logo does not; there may be both."""
    # of the patches as stored, in standard errors
    ahead = -max(found.advantage.get(f"shifted by {n:+d}", 0.0) for n in range(1, strange + 1))
    if found.scores[IDENTITY] >= WEAKEST and ahead >= CLEAR:
        return passed(
            f"the first {strange} {tokens} look alike in all of them, but patches fit the latent as stored by"
            f" {ahead:.1f} standard errors better than shifted by 1 to {strange}: something that the pictures share;"
            f" {shown}"
        )
    if found.scores[IDENTITY] >= WEAKEST and ahead > 0:
        return skipped(
            f"the first {strange} {tokens} look like registers or like something that all pictures share; patches fit"
            f" the latent as stored by {ahead:.1f} standard errors better than shifted by 1 to {strange}, {CLEAR:g}"
            f" would decide: {shown}"
        )
    return failed(f"the first {strange} {tokens} look like registers: {shown}", _FIX)


@dataclass(frozen=True)
class _Seen:
    """What is kept of one image."""

    cls: np.ndarray  # (C,)
    first: np.ndarray  # (_PLACES, C)
    others: np.ndarray  # (_OTHERS, C), from places behind the first

    @property
    def starts_with_cls(self) -> bool:
        return bool(np.linalg.norm(self.first[0] - self.cls) < _SAME * np.linalg.norm(self.cls))


def _look(data: DataView, ref: SampleRef, number: int) -> _Seen | None:
    """None for an image whose tokens are too few to compare, or no tokens: rules D1 and D6 speak of those."""
    cls, patches = data.array(ref, IMAGE_CLS).astype(np.float32), data.array(ref, IMAGE_PATCHES)
    if patches.ndim != 2 or len(patches) < 2 * _PLACES or cls.shape != patches.shape[1:]:
        return None
    elsewhere = _PLACES + np.random.default_rng(number).permutation(len(patches) - _PLACES)[:_OTHERS]
    first, others = patches[:_PLACES].astype(np.float32), patches[elsewhere].astype(np.float32)
    return _Seen(cls, first, others) if all(np.isfinite(part).all() for part in (cls, first, others)) else None


def _ratios(seen: list[_Seen]) -> list[float]:
    """For each of the first places: median over images of the distance to the nearest token elsewhere, over that at
    the same place.
    """
    first, elsewhere = (
        torch.from_numpy(np.stack([image.first for image in seen])),
        torch.from_numpy(np.concatenate([image.others for image in seen])),
    )
    spread = float((elsewhere - elsewhere.mean(dim=0)).norm(dim=1).mean())
    return [_ratio(first[:, place], elsewhere, spread) for place in range(_PLACES)]


def _ratio(here: Tensor, elsewhere: Tensor, spread: float) -> float:
    far = torch.cdist(here, elsewhere).min(dim=1).values.median()
    same = torch.cdist(here, here).fill_diagonal_(torch.inf).min(dim=1).values.median()
    return float(far / same.clamp_min(_FLOOR * spread).clamp_min(1e-12))


def _strange(ratios: list[float]) -> int:
    """How many places from the first are strange and the one behind them is not; 0: none."""
    for places in range(1, len(ratios)):
        least, drop = _ONE_STRANGE if places == 1 else _SEVERAL_STRANGE
        if min(ratios[:places]) > max(least, drop * max(ratios[places:])):
            return places
    return 0
