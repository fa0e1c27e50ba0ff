"""After training every part has lived: gates have left zero, null tokens were used, every parameter has received a
gradient.

## What it checks
Of the raw weights: no tensor that begins at zero, and no single one of a modulation's vectors, is still zero. Of the
optimizer: no parameter's second moment is zero, which says that no gradient has ever reached it. Of somebody else's
weights in a known layout each gate of each block.

## Why it matters
A gate that stays zero is a branch that was never trained. A null token that was never used leaves guidance to subtract
a random vector.

## Example
A run without dropout of the text fails: "no gradient has reached conditioning.null_text".

## Fix
Give every mode of `[dropout]` a share; follow the parameter through the model with rule C6.
"""

from __future__ import annotations

from dittool.audit.checkpoint_view import gradient_mean
from dittool.audit.rule import Finding, failed, judged, passed, skipped
from dittool.audit.subject import Checkpoint

CODE, NAME, SEVERITY, SCOPE, SINCE = "K4", "dead-parts", "error", ("checkpoint",), "0.1"

_FEWEST_SAMPLES = 32  # seen; before that a rare mode need not have come
_SHOWN = 3
_FIX = "give every mode of [dropout] a share and follow the parameter through the model (rule C6), then train again"


def check(subject: Checkpoint) -> list[Finding]:
    view = subject.view
    if view.layout is not None:
        return _check_layout(subject, view.layout.name)
    if not view.ours or subject.config is None or "model" not in view.content:
        return skipped("no raw weights of a known network: nothing says what has been trained")
    if view.content.get("samples_seen", 0) < _FEWEST_SAMPLES:
        return skipped(
            f"{view.content.get('samples_seen', 0)} samples seen, {_FEWEST_SAMPLES} are needed before every mode must"
            " have come"
        )
    raw = view.weights("model")
    zero_first = [name for name in subject.specimen.zero_at_start() if name in raw]
    still_zero = [name for name in zero_first if not raw[name].any()]
    for name in zero_first:
        if f".{name}".endswith((".modulation.weight", ".modulation.offset")) and raw[name].any():
            # (9, D, D), or (9, D) of an offset: shifts, scales and gates
            vectors = raw[name].unflatten(0, (-1, subject.config.model.width))
            still_zero += [f"{name} vector {index}" for index, vector in enumerate(vectors) if not vector.any()]
    moments, over = view.moments() or {}, subject.specimen.no_longer_trained(view.step)
    untouched = [
        name
        for name, state in moments.items()
        if not state.get("exp_avg_sq", gradient_mean(state)).any() and name not in over
    ]
    faults = [f"{len(still_zero)} parts are still zero: {', '.join(still_zero[:_SHOWN])}"] if still_zero else []
    if untouched:
        faults.append(f"no gradient has reached {len(untouched)} parameters: {', '.join(untouched[:_SHOWN])}")
    reached = f"gradient has reached all {len(moments)} parameters with moments"
    unknown = "without an optimizer's state it is not known where gradient came"
    held = f"all {len(zero_first)} tensors that began at zero have left it; {reached if moments else unknown}"
    return judged([f"after {view.step:,} updates {fault}" for fault in faults], _FIX, held)


def _check_layout(subject: Checkpoint, layout: str) -> list[Finding]:
    gates = subject.specimen.open_gates()
    if closed := [name for name, is_open in gates.items() if not is_open]:
        first = ", ".join(closed[:_SHOWN])
        return failed(f"{layout}: {len(closed)} of {len(gates)} gates are zero throughout, first {first}", _FIX)
    unknown = "what else was trained, weights alone do not show"
    return passed(f"{layout}: all {len(gates)} gates of the blocks have left zero; {unknown}")
