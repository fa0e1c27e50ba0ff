"""Noise, class, guidance scale and style each move the one-step generator's answer, and gradient reaches every
parameter.

## What it checks
On the network with open gates, or with a checkpoint's weights: exchanging one of the four inputs for another changes
the answer; gradient of the answer reaches every parameter, of tables the rows that were looked up; exchanging two
patches of the noise does not merely exchange the answers, so places count.

## Why it matters
A class that is embedded and never read gives one mixture for all classes; a guidance scale that does nothing makes
`--alpha` a lie; without style and noise all samples of a class are one picture. None of this is an error while
training.

## Example
A condition vector without the guidance scale fails: "guidance scale: the answer does not change".

## Fix
The evidence names the input; follow it through `DriftDiT.condition` and `forward` in `models/drift_dit.py`.
"""

from __future__ import annotations

from dittool.audit.rule import Finding
from dittool.audit.rules.C6_live_conditions import judge
from dittool.audit.subject import Checkpoint, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "G2", "live-generator", "error", ("generator",), "0.1"


def check(subject: Preset | Checkpoint) -> list[Finding]:
    return judge(subject.specimen.liveness(), "answer")
