"""Attention of the one-step generator can choose: it is able to put its weight on few tokens.

## What it checks
In each block the projections of queries and keys are made equal and large, so that every token's own key is the best
answer to its query, as training could make them. The entropy of attention over tokens, as a share of the largest
possible, must then be below 0.9 in every block. For a checkpoint the entropy of its own weights on noise stands beside
it.

## Why it matters
Queries and keys of length 1 with a further 1/√(head width) have logits within ±1/√(head width), ±0.125 for 64 channels:
softmax over them is almost uniform for ever, whatever is learned, and every block only averages. Shapes, parameter
counts and the first losses look right.

## Example
`qk_norm = "l2"` fails: "sharpest possible attention of block 0 has 99.9% of the largest entropy".

## Fix
Use `qk_norm = "rms"`: L2-normed vectors times √(head width), so that logits reach ±√(head width).
"""

from __future__ import annotations

from dittool.audit.rule import Finding, failed, passed
from dittool.audit.subject import Checkpoint, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "G1", "attention-entropy", "error", ("generator",), "0.1"

_MOST = 0.9
_FIX = 'set model.qk_norm = "rms", or rms_gain for a learned gain'


def check(subject: Preset | Checkpoint) -> list[Finding]:
    found, note = subject.specimen.attention(), subject.specimen.note
    shares = found.sharpest
    worst = max(range(len(shares)), key=shares.__getitem__)
    learned = ""
    if found.own:
        learned = f"; the checkpoint's own attention has {min(found.own):.1%} to {max(found.own):.1%} on noise"
    if shares[worst] > _MOST:
        sharpest = f"sharpest possible attention of block {worst} has {shares[worst]:.2%} of the largest entropy"
        return failed(f"{sharpest}, not {_MOST:.0%} or less{learned}{note}", _FIX)
    span = f"{min(shares):.1%} to {shares[worst]:.1%} of the largest entropy"
    return passed(f"attention can be as sharp as {span}{learned}{note}")
