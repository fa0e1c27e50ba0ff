"""No tensor of the file holds NaN or infinity.

## What it checks
Every floating-point tensor: raw and averaged weights, and the optimizer's moments.

## Why it matters
One NaN in a moment spoils the weights at the next update; one in the averaged weights draws black pictures from a run
whose loss looks well.

## Example
A checkpoint saved after an update with an infinite gradient fails, with the names of the tensors.

## Fix
Go back to an earlier checkpoint: `dit train --resume` takes the newest one that is valid.
"""

from __future__ import annotations

from dittool.audit.rule import Finding, failed, passed
from dittool.audit.subject import Checkpoint
from dittool.ckpt.load import named_tensors, non_finite_tensors
from dittool.errors import listed

CODE, NAME, SEVERITY, SCOPE, SINCE = "K2", "finite", "error", ("checkpoint",), "0.1"

_SHOWN = 5


def check(subject: Checkpoint) -> list[Finding]:
    content = subject.view.content
    tensors = named_tensors(content)
    broken = non_finite_tensors(content)
    if broken:
        return failed(
            f"{len(broken)} of {len(tensors)} tensors: {listed(broken, _SHOWN)}",
            "go back to an earlier checkpoint",
        )
    return passed(f"all {len(tensors)} tensors, {sum(tensor.numel() for _, tensor in tensors):,} values")
