"""Gradient checkpointing recomputes every block in the backward pass, saves memory, and changes no gradient; off means
off.

## What it checks
The network runs forward and backward with the key on and with it off. Runs of each block and of each module in it are
counted: as many in the forward pass either way, and with the key on again in the backward pass, whether the block is
wrapped, a group of blocks, or a block's own inside. The bytes that autograd keeps are measured with saved-tensor hooks
and must fall. All gradients must be equal. The preset's own setting is then observed to be the one that acts. A foreign
model is switched by a keyword argument, method or attribute with "checkpoint" in its name; a method must not raise, and
must be able to switch off what it switched on. Every second block, or a short list of its own left out, warns. Where no
blocks are found the bytes and the gradients alone are judged.

## Why it matters
A flag that is parsed and never used shows only as a crash when memory runs out at the real size, after days of waiting
for the machine.

## Example
A key `gradient_checkpointing = true` that no block reads fails: each block runs once, and not a byte is saved.

## Fix
Wrap each block in `torch.utils.checkpoint.checkpoint(…, use_reentrant=False)` when the key is on and the model trains.
"""

from __future__ import annotations

from dittool.audit.rule import Finding, failed, judged, warned
from dittool.audit.specimens.specimen import TrainingPass
from dittool.audit.subject import Checkpoint, Foreign, Preset
from dittool.storage import bytes_text

CODE, NAME, SEVERITY, SCOPE, SINCE = "E5", "gradient-checkpointing", "error", ("model", "generator"), "0.1"

_FIX = (
    "wrap each block in torch.utils.checkpoint.checkpoint(..., use_reentrant=False) when the switch is on and the model"
    " trains"
)
_TOLERANCE = 1e-5  # of gradients, relative to the largest
_FEW = 0.5  # of the blocks that are recomputed: so few others in lists of their own, as Lumina 2's refiners, warn


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    found, note = subject.specimen.checkpointing(), subject.specimen.structure_note
    off, on, switch, blocks = found.off, found.on, found.switch, found.blocks
    if found.broken and not blocks:
        return failed(f"{found.broken}{note}", "let the switch turn it on, and off again")
    kept, faults, few = f"{bytes_text(on.saved)} are kept", [], ""
    if wrong := [name for name in blocks if off.recomputed(name)]:
        faults.append(f"{switch}off: {wrong[0]} runs again in backward, which off must not do")
    if wrong := [name for name in blocks if on.runs[name] != off.runs[name]]:
        name = wrong[0]
        faults.append(f"{switch}on: {name} runs {_times(on.runs[name])} before backward, not {_times(off.runs[name])}")
    if missing := [name for name in blocks if not on.recomputed(name)]:
        lists = {found.kinds.get(name, "") for name in blocks}
        whole = [kind for kind in lists if all(name in missing for name in blocks if found.kinds.get(name, "") == kind)]
        recomputed = f"{len(missing)} of {len(blocks)} blocks are not recomputed"
        few = f"{switch}on: {missing[0]} does not run again in backward; {recomputed}"
        if whole and len(missing) > _FEW * (len(blocks) - len(missing)):
            faults.append(few)
    if on.saved >= off.saved:
        faults.append(f"{switch}on: {kept} for backward, off: {bytes_text(off.saved)}; nothing is saved")
    name, difference = found.gradient
    if difference > _TOLERANCE:
        faults.append(f"gradients of {name} differ by {difference:.1g} of the largest gradient between on and off")
    less = f"{kept} instead of {bytes_text(off.saved)} ({1 - on.saved / max(off.saved, 1):.0%} less)"
    equal = f"gradients equal within {difference:.1g}{found.setting}"
    if not faults and (few or found.broken):
        return warned(f"{'; '.join(filter(None, (few, found.broken)))}; {less}, {equal}{note}", _FIX)
    if not blocks:
        held = f"{switch}on: no blocks were found in which it could be counted what runs again, and {less}, {equal}"
        return judged([fault + note for fault in faults], _FIX, held + note)
    held = f"{switch}on: each of {len(blocks)} blocks runs again in backward{_parts(on, blocks)} and {less}, {equal}"
    return judged([fault + note for fault in faults], _FIX, held + note)


def _parts(on: TrainingPass, blocks: tuple[str, ...]) -> str:
    """Where a part of each block is recomputed, or the block runs its own checkpoint inside of itself."""
    inside = [name for name in blocks if on.recomputed(name) != [name]]
    return f" ({len(inside)} of them from inside: {', '.join(on.recomputed(inside[0])[:3])} …)" if inside else ""


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
