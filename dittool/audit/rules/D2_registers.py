"""The first patches are patches, not the encoder's register tokens.

## What it checks
At each of the first eight places of the patch tokens: how near the nearest token of another place lies, and how near the nearest one at the same
place in another image. Patches have near neighbours anywhere. Registers have theirs only among registers of the same number: the first
distance is then a multiple of the second, from place 0 on and up to their number, and not behind it.

## Why it matters
Encoders with registers give [CLS, registers, patches]. Taking the tokens after CLS takes the registers in: every patch then lies four
cells off its place, the last four are lost, and all shapes still look right. Sets made so exist; no index is needed to see it.

## Example
`last_hidden_state[:, 1 : 1 + N]` of DINOv3 fails: "the first 4 of 4096 patch tokens look like registers".

## Fix
Embed again with `dit embed --pass dinov3`, which reads the number of registers from the encoder's config.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dittool.audit.data_view import UNOPENED
from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.subject import Subject
from dittool.data.records import IMAGE_PATCHES

CODE, NAME, SEVERITY, SCOPE, SINCE = "D2", "registers", "error", ("data",), "0.1"

_PLACES = 8  # from the first; no encoder in use has more registers
_FEWEST, _MOST = 24, 200  # images
_OTHERS = 8  # tokens of other places taken from each image
_STRANGE = 1.4  # ratio of the two distances; of patches it lies around 1, of registers from 1.5 with few images to 10
_DROP = 1.5  # from registers to the patches behind them
_FLOOR = 0.02  # of the tokens' spread: equal tokens, as of white margins, have no ratio


def check(subject: Subject) -> list[Finding]:
    data = subject.data
    if not data.refs:
        return skipped(UNOPENED)
    count = len(data.refs)
    if count < _FEWEST:
        return skipped(f"{count} images are too few to tell registers from patches, {_FEWEST} are needed")
    refs = [data.refs[i * count // min(count, _MOST)] for i in range(min(count, _MOST))]
    patches = [data.array(ref, IMAGE_PATCHES).astype(np.float32) for ref in refs]
    if min(map(len, patches)) < 2 * _PLACES:
        return skipped(f"grids of {min(map(len, patches))} patches are too small to compare the first {_PLACES} with the others")
    ratios = _ratios(patches)
    shown = ", ".join(f"{ratio:.2g}" for ratio in ratios)
    for registers in range(1, _PLACES):
        if min(ratios[:registers]) > max(_STRANGE, _DROP * max(ratios[registers:])):
            return failed(
                f"the first {registers} patch tokens of {len(refs)} images look like registers: distance to other places over distance to the "
                f"same place is {shown} at places 0 to {_PLACES - 1}",
                "embed again with dit embed --pass dinov3: patches start behind the registers; then dit shard",
            )
    compared = f"distance to other places over distance to the same place is {shown}"
    return passed(f"none among the first {_PLACES} patch tokens of {len(refs)} images: {compared}")


def _ratios(patches: list[np.ndarray]) -> list[float]:
    """For each of the first places: median over images of the distance to the nearest token elsewhere, over that at the same place."""
    chance = np.random.default_rng(0)
    others = np.concatenate([tokens[_PLACES:][chance.permutation(len(tokens) - _PLACES)[:_OTHERS]] for tokens in patches])
    elsewhere = torch.from_numpy(others)
    spread = float((elsewhere - elsewhere.mean(dim=0)).norm(dim=1).mean())
    return [_ratio(torch.from_numpy(np.stack([tokens[place] for tokens in patches])), elsewhere, spread) for place in range(_PLACES)]


def _ratio(here: Tensor, elsewhere: Tensor, spread: float) -> float:
    far = torch.cdist(here, elsewhere).min(dim=1).values.median()
    same = torch.cdist(here, here).fill_diagonal_(torch.inf).min(dim=1).values.median()
    return float(far / same.clamp_min(_FLOOR * spread))
