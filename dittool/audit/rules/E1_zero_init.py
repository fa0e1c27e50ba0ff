"""At step 0 every block returns its input exactly, because its gates are zero.

## What it checks
The network is built at step 0, and then every weight except the modulations is drawn again. For random tokens,
timesteps and conditions each block must still return its input bit for bit, and each block's modulation must be zero.
Then the gates are opened: each block must now change its input. Of a foreign model the blocks are the lists of modules
that hand tokens on, and the modulation is what the condition vector feeds in them; parameters that a block holds beside
its layers, as PixArt's table, belong to it.

## Why it matters
With adaLN-Zero a deep network begins as the identity and lets its blocks in one by one; without it training from
scratch is unstable or slow. Six modulation vectors without gates look compliant and are not: zero shift and scale leave
the block's branches wide open. A zero output layer alone hides the fault, since the first prediction is zero either
way.

## Example
`x + attention(modulate(norm(x), shift, scale))` fails with max |block(x) − x| of about 1; `x + gate * attention(…)`
passes with 0.

## Fix
Give each branch of a block its own gate, nine vectors for three branches, and set weight and bias of the modulation's
last layer to zero.
"""

from __future__ import annotations

from dittool.audit.rule import Finding, judged, warned
from dittool.audit.subject import Checkpoint, Foreign, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "E1", "zero-init", "error", ("model", "generator"), "0.1"

_FIX = (
    "multiply each branch by its own gate, and set weight and bias of the modulation's last layer to zero when the"
    " model is built"
)


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    specimen = subject.specimen
    found, note = specimen.gates(), specimen.note
    left = {name: largest for name, largest in found.modulation.items() if largest}
    first = next(iter(left), "")
    not_zero = f"{len(left)} of {len(found.modulation)} of its tensors are not zero, first {first}"
    not_zero += f" (up to {left[first]:.2g})" if left else ""
    worst = max(found.at_start, key=found.at_start.__getitem__)
    gateless = max(found.without_modulation, key=found.without_modulation.__getitem__)
    moved, ungated = found.at_start[worst], found.without_modulation[gateless]
    no_gate = (
        f"no gate closes {gateless}: with its modulation at zero and its other weights redrawn it still moves tokens"
        f" by {ungated:.2g}"
    )

    faults: list[str] = []
    if moved > 0:
        is_open = f"its gates are there but open: {not_zero if left else 'the modulation is not zero'}"
        reason = no_gate if ungated > 0 else is_open
        faults.append(f"max |block(x) − x| is {moved:.3g} in {worst}, not 0, of {found.where}; {reason}")
    elif ungated > 0:
        faults.append(f"the blocks are the identity only because projections are zero; {no_gate}")
    if dead := [name for name, change in found.opened.items() if change == 0]:
        never = "returns its input whatever its weights are: it can never learn"
        faults.append(f"{dead[0]} {never}; {len(dead)} of {len(found.opened)} blocks")
    if left and not faults:
        identity = "every block is the identity, yet the modulation is not all zero at step 0"
        return warned(f"{identity}: {not_zero}{note}", _FIX)
    held = (
        f"max |block(x) − x| = 0 in {found.where} with all other weights redrawn{found.redrawn};"
        f" {min(found.opened.values()):.2g} or more with open gates"
    )
    return judged([fault + note for fault in faults], _FIX, held + note)
