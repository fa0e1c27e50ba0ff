"""Each sample of a batch answers to its own timestep and conditions, and to nothing of its neighbours.

## What it checks
In a batch of two samples or more, one sample's latent, timestep and each condition are exchanged in turn. The answers
of the other samples must stay, in evaluation mode and in training mode, and where an input moves one sample's answer
it must move each sample's by its own, be it only where what may switch the input off, another one of zeros and ones, is
turned. Inputs without an axis of the batch's length are shared by design and not asked.

## Why it matters
One sample's t used for all, a condition averaged over the batch or statistics of the batch train without any error at
any batch size, and sampling, with one t for all, looks right. What was learned is a mixture.

## Example
`self.time_embed(t[0])` fails: "t: sample 1 does not answer to its own; sample 0's moves the others by 0.4".

## Fix
Follow the input through the model's forward: index, mean, max and norm over axis 0 are where samples meet.
"""

from __future__ import annotations

from dittool.audit.rule import Finding, judged, skipped
from dittool.audit.subject import Checkpoint, Foreign, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "C8", "independent-samples", "error", ("model",), "0.2"

_FIX = "follow the input through forward: an index, mean, maximum or norm over the batch's axis lets samples meet"
_ROUNDING = 1e-5  # relative change that is none


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    found, note = subject.specimen.independence(), subject.specimen.structure_note
    limit = max(_ROUNDING, 3 * found.tolerance)
    faults = []
    for name, change in found.others.items():
        if change > limit:
            faults.append(f"{name}: another sample's moves a sample's answer by {change:.2g}")
        elif found.in_training.get(name, 0.0) > limit:
            trained = f"another sample's moves a sample's answer by {found.in_training[name]:.2g} in training mode"
            faults.append(f"{name}: {trained}")
    deaf = [name for name, most in found.most.items() if most > limit >= found.own[name]]
    faults += [
        f"{name}: one sample does not answer to its own ({found.own[name]:.1g}), another does ({found.most[name]:.2g})"
        for name in deaf
    ]
    if not found.others:
        return skipped("no input has an axis of the batch's length")
    answered = ", ".join(found.others)
    held = f"of {found.samples} samples each answers to its own {answered}; another's moves it by at most"
    return judged([fault + note for fault in faults], _FIX, f"{held} {max(found.others.values()):.1g}{note}")
