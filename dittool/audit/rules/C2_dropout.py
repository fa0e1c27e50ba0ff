"""Condition dropout is one draw a sample: the four modes exclude each other and come as often as the preset says.

## What it checks
10,000 samples are drawn the way training draws them. What each keeps (nothing, text, reference, both) is counted and
compared with `[dropout]`: the chi-square statistic over the modes must be below its 99.9% quantile, and a mode of share
0 must never come. The modes must not depend on the timesteps that are drawn beside them.

## Why it matters
Two independent masks overlap: "10% text dropped, 10% reference dropped" then leaves other shares of each combination
than planned, and one that is needed for guidance may hardly occur. A real run threw away every checkpoint because of
it.

## Example
Shares 10/10/10/70 drawn as two masks of 20% give 4/16/16/64: the statistic is in the hundreds.

## Fix
Draw one number a sample and let it choose among the four modes (`objective.flow.dropout_modes`).
"""

from __future__ import annotations

import torch

from dittool.audit.rule import Finding, failed, passed
from dittool.audit.subject import Checkpoint, Preset
from dittool.objective import flow

CODE, NAME, SEVERITY, SCOPE, SINCE = "C2", "dropout", "error", ("preset",), "0.1"

_DRAWS = 10_000
_CHI_SQUARE_999 = {1: 10.83, 2: 13.82, 3: 16.27}  # 99.9% quantiles by degrees of freedom
_FIX = "choose the mode of a sample with one draw over the four shares (objective.flow.dropout_modes)"


def check(subject: Preset | Checkpoint) -> list[Finding]:
    shares = subject.specimen.flow().dropout.shares
    uniform = torch.rand(_DRAWS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = flow.kept_conditions(flow.dropout_modes(uniform, shares))
    observed = (kept.text.long() + 2 * kept.reference.long()).bincount(minlength=len(flow.MODES)).tolist()
    modes = list(zip(flow.MODES, observed, shares, strict=True))
    seen = ", ".join(f"{name} {count / _DRAWS:.1%} (planned {share:.0%})" for name, count, share in modes)
    if stray := [name for name, count, share in modes if share == 0 and count]:
        return failed(f"mode {stray[0]} comes although its share is 0: {seen}", _FIX)
    planned = [(count, share * _DRAWS) for _, count, share in modes if share > 0]
    statistic = sum((count - expected) ** 2 / expected for count, expected in planned)
    limit = _CHI_SQUARE_999.get(len(planned) - 1, 0.0)
    if statistic > limit:
        return failed(f"of {_DRAWS:,} samples {seen}; chi-square {statistic:.1f}, at most {limit:g}", _FIX)
    return passed(f"of {_DRAWS:,} samples {seen}; chi-square {statistic:.1f}, below {limit:g}")
