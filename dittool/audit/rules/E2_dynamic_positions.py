"""Positions follow the latent's own height and width; nothing of them is learned or stored.

## What it checks
The network runs at four shapes and answers in each shape. What distinguishes two tokens of equal content is the same
under other weights, so it is not learned, and no tensor in the state dict grows with the grid. Position must split into
a row's and a column's part on a grid that is not square, which a transposed one does not. With closed blocks, changing
one token of the input changes that token of the output alone. Exchanging two tokens must not merely exchange the
answers. A reference's patches, on the tokens' grid, must carry the tokens' positions. Where a foreign model turns
queries and keys instead, attention between equal tokens must depend on their distance in rows and columns alone.

## Why it matters
Training runs over seven aspect ratios. A learned table of one size, or height and width exchanged, trains without an
error and draws torn pictures at every other shape.

## Example
`nn.Parameter(torch.zeros(1, 1024, width))` for positions fails: its size is that of one bucket.

## Fix
Make 2-D sin-cos positions on the fly from the batch's rows and columns (`models/positions.py`).
"""

from __future__ import annotations

from dittool.audit.rule import Finding, judged
from dittool.audit.specimens.specimen import Positions
from dittool.audit.subject import Checkpoint, Foreign, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "E2", "dynamic-positions", "error", ("model", "weights"), "0.1"

_FIX = (
    "make positions on the fly from the batch's own rows and columns: 2-D sin-cos added to the tokens, or 2-D rotary"
    " angles"
)
_NOISE = 1e-4  # what rounding may leave of a difference that must be zero, relative to values of about 1
_OF_LOGITS = 10 * _NOISE  # the same, of attention's logits
_OF_ROUNDING = 16  # times the precision's own


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    found = subject.specimen.positions()
    faults = [fault for fault in (_stored(found), found.problem) if fault]
    if found.grid != (0, 0):
        faults += _faults_on_a_grid(found, first=not faults)
    shapes, note = ", ".join(f"{rows}×{columns}" for rows, columns in found.ran), subject.specimen.note
    held = "positions are not learned, split into row and column, and bind tokens to places"
    otherwise = f"runs at {shapes} tokens and answers in kind; {held}{note}"
    return judged([f"{found.source}{fault}{note}" for fault in faults], _FIX, otherwise)


def _stored(found: Positions) -> str:
    if not found.stored:
        return ""
    name, shape = next(iter(found.stored.items()))
    return f"{len(found.stored)} tensors of the state dict hold positions of a fixed size, first {name} {shape}"


def _faults_on_a_grid(found: Positions, first: bool) -> list[str]:
    """`first`: whether no fault was found before, for a learned table splits into nothing either."""
    where, noise = f"on {found.grid[0]}×{found.grid[1]} tokens", max(_NOISE, _OF_ROUNDING * found.rounding)
    faults = []
    if found.learned is not None and found.learned > noise:
        faults.append(
            f"positions differ by {found.learned:.2g} of their size between two sets of weights: they are learned"
        )
    elif found.mixed is not None and found.mixed > noise:
        rest = f"do not split into row and column (rest {found.mixed:.2g}): height and width are exchanged"
        faults.append(f"{where} positions {rest}")
    if found.exchanged is not None and found.exchanged <= _NOISE:
        merely = f"merely exchanges their answers (relative change {found.exchanged:.1g}): there are no positions"
        faults.append(f"exchanging two tokens {merely}")
    if found.by_distance is not None and found.by_step is not None and not (faults and first):
        if found.by_distance <= _OF_LOGITS:
            alone = "depends on their distance in the sequence alone: it knows no rows and columns"
            faults.append(f"attention between equal tokens {alone}")
        elif found.by_step > _OF_LOGITS:
            more = f"depends on more than their distance in rows and columns ({found.by_step:.0%} of its range)"
            exchanged = "height and width are exchanged, or the angles are not 2-D"
            faults.append(f"{where} attention between equal tokens {more}: {exchanged}")
    if found.strayed is not None:
        changed, moved = found.strayed
        faults.append(
            f"with its blocks passed by, changing token {changed} of the input changes token {moved} of the output"
        )
    if found.reference is not None and found.reference > _NOISE:
        away = f"up to {found.reference:.2g} away from the tokens' at the same places"
        faults.append(f"the reference's patches carry positions {away}")
    return faults
