"""In evaluation mode the same input gives the same answer.

## What it checks
The network with open gates gets one input twice, with other draws of chance and then with the same ones. All other
rules compare under the same draws, so that chance hides nothing from them; what differs even then, as of a state that
is kept between calls, is the measure below which they see no change.

## Why it matters
Dropout or noise that `eval()` does not stop spoils every sample and every measurement of the model, and hides inputs
that act on nothing.

## Example
`F.dropout(x, 0.1)` warns: "the same input twice: the answer changes by 0.3"; its `training` is True by default.

## Fix
`F.dropout(x, p, training=self.training)`, or take noise as an argument.
"""

from __future__ import annotations

from dittool.audit.rule import Finding, passed, warned
from dittool.audit.subject import Checkpoint, Foreign, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "R2", "same-twice", "warning", ("model", "generator"), "0.2"

_LEAST = 1e-5  # relative change that is more than rounding


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    found, note = subject.specimen.forward_run(), subject.specimen.note
    if found.unsteady > _LEAST:
        kept = f"changes by {found.unsteady:.2g} although every draw of chance is the same"
        return warned(
            f"the same input twice: the answer {kept}: something is kept from call to call; changes below that are not"
            f" seen{note}",
            "keep nothing between calls that the answer depends on, and draw from torch's own generator",
        )
    if found.chance > _LEAST:
        seeded = "chance acts in evaluation mode; all rules compare under the same draws"
        return warned(
            f"the same input twice: the answer changes by {found.chance:.2g}: {seeded}{note}",
            "F.dropout(x, p, training=self.training); draw noise outside of the model",
        )
    return passed(f"the same input twice: the answer changes by {found.chance:.1g}{note}")
