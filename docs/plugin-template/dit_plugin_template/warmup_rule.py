"""A run warms up for at most a fifth of its steps.

## What it checks
`train.warmup_steps` against `train.steps`.

## Why it matters
Until the warm-up ends, steps move the weights less than they could.

## Example
1,000 steps of which 500 warm up.

## Fix
Lower `train.warmup_steps`.
"""

from __future__ import annotations

from dittool.audit.rule import Finding, passed, skipped, warned
from dittool.audit.subject import Checkpoint, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "W1", "warmup-share", "warning", ("preset", "plan"), "1.0"


def check(subject: Preset | Checkpoint) -> list[Finding]:
    if subject.config is None:
        return skipped("these weights do not say how they were trained")
    train = subject.config.train
    share = train.warmup_steps / train.steps
    if share > 0.2:
        return warned(f"{share:.0%} of the steps warm up, at most 20%", "lower train.warmup_steps")
    return passed(f"{share:.0%} of the steps warm up")
