"""Gradient checkpointing recomputes every block in the backward pass, saves memory, and changes no gradient; off means
off.

## What it checks
The network runs forward and backward with the key on and with it off. Forward passes of each block are counted: two
with the key on, one with it off. The bytes that autograd keeps are measured with saved-tensor hooks and must fall. All
gradients must be equal. The preset's own setting is then observed to be the one that acts. A foreign model is switched
by a keyword argument, method or attribute with "checkpoint" in its name.

## Why it matters
A flag that is parsed and never used shows only as a crash when memory runs out at the real size, after days of waiting
for the machine.

## Example
A key `gradient_checkpointing = true` that no block reads fails: each block runs once, and not a byte is saved.

## Fix
Wrap each block in `torch.utils.checkpoint.checkpoint(…, use_reentrant=False)` when the key is on and the model trains.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import Tensor

from dittool.audit.rule import Finding, failed, passed
from dittool.audit.specimens.foreign.checkpointing import check_checkpointing
from dittool.audit.specimens.ours import ModelProbe
from dittool.audit.specimens.saved_bytes import SavedBytes
from dittool.audit.subject import Subject
from dittool.storage import bytes_text

CODE, NAME, SEVERITY, SCOPE, SINCE = "E5", "gradient-checkpointing", "error", ("model", "generator"), "0.1"

_FIX = (
    "wrap each block in torch.utils.checkpoint.checkpoint(..., use_reentrant=False) when model.gradient_checkpointing"
    " is on and the model trains"
)
_TOLERANCE = 1e-5  # of gradients, relative to the largest


@dataclass(frozen=True)
class _Pass:
    runs: list[int]  # forward passes of each block
    saved: int  # bytes kept for backward, outside of recomputation
    gradients: dict[str, Tensor]


def check(subject: Subject) -> list[Finding]:
    if subject.foreign is not None:
        return check_checkpointing(subject.foreign)
    probe = subject.probe
    off, on = (_forward_backward(probe, gradient_checkpointing=wanted) for wanted in (False, True))
    faults = []
    if wrong := [index for index, count in enumerate(off.runs) if count != 1]:
        faults.append(f"off: block {wrong[0]} runs {off.runs[wrong[0]]} times, not once")
    if wrong := [index for index, count in enumerate(on.runs) if count != 2]:
        faults.append(
            f"on: block {wrong[0]} runs {on.runs[wrong[0]]} times, not twice; {len(wrong)} of {len(on.runs)} blocks are"
            " not recomputed"
        )
    if on.saved >= off.saved:
        faults.append(
            f"on: {bytes_text(on.saved)} are kept for backward, off: {bytes_text(off.saved)}; nothing is saved"
        )
    largest = max(float(gradient.abs().max()) for gradient in off.gradients.values())
    apart = {name: float((off.gradients[name] - on.gradients[name]).abs().max()) / largest for name in off.gradients}
    name = max(apart, key=apart.get)
    if apart[name] > _TOLERANCE:
        faults.append(f"gradients of {name} differ by {apart[name]:.1g} of the largest gradient between on and off")
    if faults:
        return [finding for fault in faults for finding in failed(fault + probe.note, _FIX)]
    set_to = "on" if subject.config.model.gradient_checkpointing else "off"
    return passed(
        f"on: each of {len(on.runs)} blocks runs again in backward and {bytes_text(on.saved)} are kept instead of"
        f" {bytes_text(off.saved)} ({1 - on.saved / off.saved:.0%} less), gradients equal within {apart[name]:.1g}; the"
        f" preset says {set_to}{probe.note}"
    )


def _forward_backward(probe: ModelProbe, gradient_checkpointing: bool) -> _Pass:
    model = probe.awake(gradient_checkpointing=gradient_checkpointing).train()
    inputs = probe.inputs()
    runs: Counter[int] = Counter()
    for index, block in enumerate(model.blocks):
        block.attention.register_forward_pre_hook(lambda *_, index=index: runs.update([index]))
    with SavedBytes(model) as saved:
        answer = model(inputs.z, inputs.t, inputs.conditions)
    answer.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return _Pass([runs[index] for index in range(len(model.blocks))], saved.bytes, gradients)
