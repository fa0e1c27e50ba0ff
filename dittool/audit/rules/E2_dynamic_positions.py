"""Positions follow the latent's own height and width; nothing of them is learned or stored.

## What it checks
The network runs at several grids, wide and tall, odd and larger than its own, and answers in each shape, with finite
values. What distinguishes two tokens of equal content is the same under other weights, so it is not learned, and no
tensor in the state dict grows with the grid. On each grid position must split into a row's and a column's part, which a
transposed one does not; so must what the tokens get of a stored table while that holds a row's and a column's part
alone, which a table that is cut in the order of the sequence does not; what a convolution's padding does at the edges
is no position. No two places may be given the same. With closed blocks, changing one token of the input changes that
token of the output and none apart from it; in a block, what is done to a token must not show around another place
alone, as where windows are put back in another order. Exchanging two tokens must not merely exchange the answers. A
reference's patches, on the tokens' grid, must carry the tokens' positions. Where queries and keys are turned, attention
of the picture's queries over the picture's keys, found by raising patches, must depend on the distance in rows and
columns alone; what turns queries, one linear map a place whatever the content is, must be a rotation. With `positions =
"rope"` that is asked of our network without the sin-cos that its tokens carry as well; every block of a foreign model
is looked at, with all others passed by, the first and the last of each list before the others as long as there is time.
Attention whose logits are nearly equal, as weights just drawn leave it, is made sharp first, and noise that forward
draws is stilled. Positions that the caller brings, by an argument that was left out, are not called missing: that
argument is named.

Under the profile `any` learned and stored positions, one size only, and a stored table that larger grids leave with an
error are a choice, and warn; positions that are exchanged, cut short, the same at two places, or not there fail.

## Why it matters
Training runs over seven aspect ratios. A learned table of one size, or height and width exchanged, trains without an
error and draws torn pictures at every other shape.

## Example
`nn.Parameter(torch.zeros(1, 1024, width))` for positions fails: its size is that of one bucket.

## Fix
Make 2-D sin-cos positions on the fly from the batch's rows and columns (`models/positions.py`).
"""

from __future__ import annotations

from dittool.audit.rule import Finding, chosen, failed, passed, skipped
from dittool.audit.specimens.specimen import OF_LOGITS, Grid, OnGrid, Positions
from dittool.audit.subject import Checkpoint, Foreign, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "E2", "dynamic-positions", "error", ("model", "weights"), "0.1"

_FIX = (
    "make positions on the fly from the batch's own rows and columns: 2-D sin-cos added to the tokens, or 2-D rotary"
    " angles"
)
_LIES = ("wrong", "infinite")  # of problems: what no error says
_NO_CHANGE = 2e-6  # relative change of an answer that is rounding
_NOISE = 1e-4  # what rounding may leave of a difference that must be zero, relative to values of about 1
_TABLE_RESTS = 1e-2  # of a table's values, which a model may round or norm
_OF_ROUNDING = 16  # times the precision's own
_STORED = (
    "A choice: other sizes need the table cut or stretched. U-ViT learns one, DiT, SiT and SD3 keep sin-cos of one size"
)
_LEARNED = (
    "A choice: layers make them, and begin anywhere. Swin 2 makes them from coordinates, CPVT by a convolution; the"
    " recipe's are fixed"
)
_TABLE_ENDS = "A choice: the stored table of positions ends there, and larger shapes cannot be trained"
_ONE_SIZE = "A choice: aspect buckets cannot be trained. DiT and U-ViT are made for one size"


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    found, note = subject.specimen.positions(), subject.specimen.structure_note
    findings = _of_sizes(found)
    if found.stored:
        name, shape = next(iter(found.stored.items()))
        count = f"{len(found.stored)} tensors of the state dict hold positions of a fixed size, first {name} {shape}"
        findings += chosen(count, _FIX, _STORED)
    learned = [on.learned for on in found.grids if on.learned is not None and on.learned > _limit(on)]
    if learned and not found.stored:
        size = f"positions differ by {learned[0]:.2g} of their size between two sets of weights: they are learned"
        findings += chosen(size, _FIX, _LEARNED)
    table = bool(found.stored or learned)
    faults: dict[str, str] = {}  # the first of each kind
    for on in found.grids:
        for kind, fault in _faults_on(on, table).items():
            faults.setdefault(kind, fault)
    if cut := [(rest, grid) for grid, rest in found.tables.items() if rest > _TABLE_RESTS]:
        rest, grid = cut[0]
        laid = f"positions of {next(iter(found.stored))} do not split into row and column, though what it holds does"
        why = "height and width are exchanged, or it is cut in the order of the sequence"
        faults.setdefault("split", f"on {grid[0]}×{grid[1]} tokens {laid} (rest {rest:.2g} of its values): {why}")
    if found.reference is not None and found.reference > _NOISE:
        faults["reference"] = (
            f"positions of the reference's patches differ from the tokens' by {found.reference:.2g} at the same places"
        )
    if "none" in faults and found.not_fed:
        which = ", ".join(found.not_fed)
        brought = f"{faults.pop('none')} of its own. Its caller may bring them as {which}, which was not given"
        findings += skipped(f"{brought}: name it in --example")
    for fault in faults.values():
        findings += failed(fault, _FIX)
    if findings:
        return [
            Finding(each.status, f"{found.source}{each.evidence}{note}", each.fix, each.choice) for each in findings
        ]
    shapes = ", ".join(f"{rows}×{columns}" for rows, columns in found.ran)
    held = "positions are not learned, split into row and column, and bind tokens to places"
    return passed(f"runs at {shapes} tokens and answers in kind; {held}{note}")


def _of_sizes(found: Positions) -> list[Finding]:
    if not found.problems:
        return []
    kinds = {problem.kind for problem in found.problems}
    worst = next((problem for problem in found.problems if problem.kind in _LIES), found.problems[0])
    lies = bool(kinds & set(_LIES))
    if not lies and (len(found.ran) < 2 or kinds == {"refused"}):
        return chosen(worst.evidence, _FIX, _ONE_SIZE)
    if found.stored and not lies and _are_larger([problem.grid for problem in found.problems], found.ran):
        return chosen(worst.evidence, _FIX, _TABLE_ENDS)
    return failed(worst.evidence, _FIX)


def _are_larger(grids: list[Grid], ran: list[Grid]) -> bool:
    """Whether each of some grids has more rows or more columns than any that ran."""
    return all(
        any(side > max(sides) for side, sides in zip(grid, zip(*ran, strict=True), strict=True)) for grid in grids
    )


def _limit(on: OnGrid) -> float:
    return max(_NOISE, _OF_ROUNDING * on.rounding)


def _faults_on(on: OnGrid, table: bool) -> dict[str, str]:
    """Faults by kind; a table does not split into rows and columns."""
    where, faults = f"on {on.grid[0]}×{on.grid[1]} tokens" + (f" in {on.block}" if on.block else ""), {}
    if on.mixed is not None and on.mixed > _limit(on) and not table:
        rest = f"do not split into row and column (rest {on.mixed:.2g}): height and width are exchanged"
        faults["split"] = f"{where} positions {rest}"
    if on.exchanged is not None and on.exchanged <= _NO_CHANGE and on.mixed is None and on.by_step is None:
        merely = f"merely exchanges their answers (relative change {on.exchanged:.1g}): there are no positions"
        faults["none"] = f"exchanging two tokens {merely}"
    if on.by_distance is not None and on.by_distance <= OF_LOGITS and 1 not in on.grid:
        alone = "depends on their distance in the sequence alone: it knows no rows and columns"
        faults["split"] = f"{where} attention between equal tokens {alone}"
    elif on.by_step is not None and on.by_step > OF_LOGITS:
        more = f"depends on more than their distance in rows and columns ({on.by_step:.0%} of its range)"
        cause = "height and width are exchanged, or the angles are not 2-D"
        if on.stretch is not None and on.stretch <= OF_LOGITS:
            cause = "queries and keys are not turned alike"
        elif on.stretch is not None:
            cause = f"its turn is no rotation, queries grow up to {on.stretch:.0%} longer from place to place"
            cause += "; angles of cos and sin are laid out for other pairs of channels than are turned"
        faults["split"] = f"{where} attention between equal tokens {more}: {cause}"
    if on.same_place is not None and "split" not in faults:
        first, second = (f"{place // on.grid[1]}, {place % on.grid[1]}" for place in on.same_place)
        faults["same"] = f"{where} the places ({first}) and ({second}) are given the same position"
    if on.strayed is not None:
        changed, moved = on.strayed
        passed_by = f"changing token {changed} of the input changes token {moved} of the output"
        faults["strayed"] = f"{where}, with the blocks passed by, {passed_by}"
    if on.astray is not None:
        changed, moved = on.astray
        beside = (
            f"changing token {changed} changes what is given around token {moved}, and nothing beside its own place"
        )
        faults["strayed"] = f"{where} {beside}: its windows are put back in another order"
    return faults
