"""Gradient checkpointing recomputes every block in the backward pass, saves memory, and changes no gradient; off means
off.

## What it checks
The network runs forward and backward with the key on and with it off. Runs of each block are counted: one in the
forward pass, and with the key on another in the backward pass. The bytes that autograd keeps are measured with
saved-tensor hooks and must fall. All gradients must be equal. The preset's own setting is then observed to be the one
that acts. A foreign model is switched by a keyword argument, method or attribute with "checkpoint" in its name.

## Why it matters
A flag that is parsed and never used shows only as a crash when memory runs out at the real size, after days of waiting
for the machine.

## Example
A key `gradient_checkpointing = true` that no block reads fails: each block runs once, and not a byte is saved.

## Fix
Wrap each block in `torch.utils.checkpoint.checkpoint(…, use_reentrant=False)` when the key is on and the model trains.
"""

from __future__ import annotations

from dittool.audit.rule import Finding, judged
from dittool.audit.subject import Checkpoint, Foreign, Preset
from dittool.storage import bytes_text

CODE, NAME, SEVERITY, SCOPE, SINCE = "E5", "gradient-checkpointing", "error", ("model", "generator"), "0.1"

_FIX = (
    "wrap each block in torch.utils.checkpoint.checkpoint(..., use_reentrant=False) when the switch is on and the model"
    " trains"
)
_TOLERANCE = 1e-5  # of gradients, relative to the largest


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    found, note = subject.specimen.checkpointing(), subject.specimen.note
    off, on, switch, blocks = found.off, found.on, found.switch, found.blocks
    kept = f"{bytes_text(on.saved)} are kept"
    faults = []
    if wrong := [name for name in blocks if off.runs[name] + off.again[name] != 1]:
        faults.append(f"{switch}off: {wrong[0]} runs {off.runs[wrong[0]] + off.again[wrong[0]]} times, not once")
    if wrong := [name for name in blocks if on.runs[name] != 1]:
        faults.append(f"{switch}on: {wrong[0]} runs {on.runs[wrong[0]]} times before backward, not once")
    if wrong := [name for name in blocks if not on.again[name]]:
        recomputed = f"{len(wrong)} of {len(blocks)} blocks are not recomputed"
        faults.append(f"{switch}on: {wrong[0]} does not run again in backward; {recomputed}")
    if on.saved >= off.saved:
        faults.append(f"{switch}on: {kept} for backward, off: {bytes_text(off.saved)}; nothing is saved")
    name, difference = found.gradient
    if difference > _TOLERANCE:
        faults.append(f"gradients of {name} differ by {difference:.1g} of the largest gradient between on and off")
    less = f"{kept} instead of {bytes_text(off.saved)} ({1 - on.saved / max(off.saved, 1):.0%} less)"
    equal = f"gradients equal within {difference:.1g}{found.setting}"
    held = f"{switch}on: each of {len(blocks)} blocks runs again in backward and {less}, {equal}"
    return judged([fault + note for fault in faults], _FIX, held + note)
