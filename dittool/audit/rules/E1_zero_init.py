"""At step 0 every block returns its input exactly, because its gates are zero.

## What it checks
The network is built at step 0, and then every weight except the modulations is drawn again. For random tokens,
timesteps and conditions each block must still return its input bit for bit, and each block's modulation must be zero.
A gradient must reach the block's weights or what it is given beside tokens, else it never leaves the identity. Then the
gates are opened: each block must now change its input. Of a foreign model the blocks are the modules that hand tokens
on, and the modulation is what the condition vector feeds in them; parameters that a block holds beside its layers, as
PixArt's table, belong to it. Blocks of a caption's tokens are judged where they have a modulation. One that gives other
channels or fewer places than it takes cannot be the identity: of it everything but a linear shortcut must be zero.

Under the profile `any` it fails where blocks differ, some closed or nearly so and some of the same kind open, or where
a block can never learn. Gates that all begin open, none at all, and nearly closed ones are a choice, and warn. A model
that is trained is not judged.

## Why it matters
With adaLN-Zero a deep network begins as the identity and lets its blocks in one by one; without it training from
scratch is unstable or slow. Six modulation vectors without gates look compliant and are not: zero shift and scale leave
the block's branches wide open. A zero output layer alone hides the fault, since the first prediction is zero either
way.

## Example
`x + attention(modulate(norm(x), shift, scale))` fails with max |block(x) − x| of about 1; `x + gate * attention(…)`
passes with 0. A LayerScale that begins at 1e-5 leaves 1e-5, which is nearly the identity and not it.

## Fix
Give each branch of a block its own gate, nine vectors for three branches, and set weight and bias of the modulation's
last layer to zero.
"""

from __future__ import annotations

from dittool.audit.rule import FAIL, Finding, chosen, failed, passed, warned
from dittool.audit.specimens.specimen import Gates
from dittool.audit.subject import Checkpoint, Foreign, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "E1", "zero-init", "error", ("model", "generator"), "0.1"

_FIX = (
    "multiply each branch by its own gate, and set weight and bias of the modulation's last layer to zero when the"
    " model is built"
)
_NEARLY = 1e-2  # |block(x) − x| that is nearly none
_MUCH_LESS = 1e-2  # of what the block that moves its tokens most does: so little is another gate's doing
_OPEN = (
    "A choice: trained from scratch, deep networks whose blocks begin open diverge or learn slower. Diffusers' own DiT,"
    " SD3 and Flux begin so, for they are made to load weights"
)
_GATELESS = (
    "A choice: blocks without a gate on each branch cannot begin as the identity. U-ViT has none, PixArt none on its"
    " cross-attention"
)
_NEAR = (
    "Nearly the identity is not the identity, and close enough for most: a LayerScale of 1e-5 or 1e-6, as in CaiT and"
    " DINOv2, lets gradient in at that rate from the first step"
)


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    found, note = subject.specimen.gates(), subject.specimen.note
    findings = _never_learning(found) + _moving(found)
    left = {name: largest for name, largest in found.modulation.items() if largest}
    if left and not findings:
        identity = "every block is the identity, yet the modulation is not all zero at step 0"
        return warned(f"{identity}: {_not_zero(found)}{note}", _FIX)
    beside = f", no more than a linear shortcut in {len(found.reshaping)} of them" if found.reshaping else ""
    held = (
        f"max |block(x) − x| = 0 in {found.where} with all other weights redrawn{found.redrawn}{beside};"
        f" {min(found.opened.values()):.2g} or more with open gates"
    )
    noted = [Finding(finding.status, finding.evidence + note, finding.fix, finding.choice) for finding in findings]
    return noted or passed(held + note)


def _never_learning(found: Gates) -> list[Finding]:
    findings: list[Finding] = []
    if dead := [name for name, change in found.opened.items() if change == 0]:
        never = "returns its input whatever its weights are: it can never learn"
        findings += failed(f"{dead[0]} {never}; {len(dead)} of {len(found.opened)} blocks", _FIX)
    if stuck := [name for name in found.stuck if name not in dead]:
        why = "its gate is zero and so is what the gate multiplies, as of a scale without its 1 +"
        findings += failed(f"at step 0 no gradient reaches anything of {stuck[0]}: {why}; it stays the identity", _FIX)
    return findings


def _moving(found: Gates) -> list[Finding]:
    """What blocks do to their tokens at step 0, and under closed gates."""
    worst = max(found.at_start, key=found.at_start.__getitem__)
    gateless = max(found.without_modulation, key=found.without_modulation.__getitem__)
    moved, ungated = found.at_start[worst], found.without_modulation[gateless]
    no_gate = (
        f"no gate closes {gateless}: with its modulation at zero and its other weights redrawn it still moves tokens"
        f" by {ungated:.2g}"
    )
    if moved == 0 and ungated > 0:
        return chosen(f"the blocks are the identity only because projections are zero; {no_gate}", _FIX, _GATELESS)
    if moved == 0:
        return []
    any_left = any(found.modulation.values())
    is_open = f"its gates are there but open: {_not_zero(found) if any_left else 'the modulation is not zero'}"
    behind = "its residual stands in front of a norm, so it returns its tokens normed"
    reason = behind if worst in found.normalised else no_gate if ungated > 0 else is_open
    measured = "the part that is not linear" if worst in found.reshaping else "max |block(x) − x|"
    evidence = f"{measured} is {moved:.3g} in {worst}, not 0, of {found.where}; {reason}"
    near = 0.0 if worst in found.normalised else min(_MUCH_LESS * moved, _NEARLY)  # tokens are normed once
    closed = [name for name, change in found.at_start.items() if change <= near]
    uneven = [name for name in closed if ungated == 0 or found.kinds.get(name) == found.kinds.get(worst)]
    told_apart = moved > _NEARLY or any(found.at_start[name] == 0 for name in uneven)
    if uneven and told_apart and len(closed) < len(found.at_start):
        differ = f"; {len(closed)} of {len(found.at_start)} blocks begin closed, {closed[0]} among them"
        return failed(evidence + differ, f"let {worst} begin as {closed[0]} does")
    choice = _NEAR if moved < _NEARLY else _GATELESS if ungated > 0 else _OPEN
    return [Finding(FAIL, evidence, _FIX, choice)]


def _not_zero(found: Gates) -> str:
    left = {name: largest for name, largest in found.modulation.items() if largest}
    if not left:
        return ""
    first = next(iter(left))
    which = f"{len(left)} of {len(found.modulation)} of its tensors are not zero, first {first}"
    return f"{which} (up to {left[first]:.2g})"
