"""Guidance of scale 0 and 1 gives exactly the branches that it must, and the preset's scales give the formula's sum.

## What it checks
The sampler is run for one Euler step, from which the guided velocity follows, on a network with open gates. Scales 0, 0
must give the unconditional prediction; text 1 the text branch; reference 1 the reference branch; nested and joint 1, 1
the prediction with both. With the preset's own kind and scales the result must be the formula's combination of the
branches.

## Why it matters
A wrong sign, a swapped scale or a branch that keeps the wrong condition still draws pictures, only worse ones, and
nobody looks at the algebra.

## Example
`v = v_text + s·(v_text − v_∅)` fails: scale 0 gives the text branch instead of the unconditional one.

## Fix
See the three formulas in `sampling/guidance.py`; the weights of the branches must sum to 1.
"""

from __future__ import annotations

from torch import Tensor

from dittool.audit.rule import Finding, failed, passed
from dittool.audit.specimens.specimen import Guidance, relative_change
from dittool.audit.subject import Checkpoint, Foreign, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "C7", "guidance", "error", ("model",), "0.1"

_FIX = "compare sampling/guidance.py and sampling/latents.py with the formulas at the top of the former"
_CLOSE = 1e-4  # relative; batches of other sizes round differently


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    specimen = subject.specimen
    none, text = specimen.branch(text=False, reference=False), specimen.branch(text=True, reference=False)
    dino, full = specimen.branch(text=False, reference=True), specimen.branch(text=True, reference=True)
    sample, note = specimen.flow().sample, specimen.note
    s_text, s_dino = sample.cfg_text, sample.cfg_dino
    cases: dict[tuple[Guidance, float, float], Tensor] = {
        ("additive", 0.0, 0.0): none,
        ("additive", 1.0, 0.0): text,
        ("additive", 0.0, 1.0): dino,
        ("nested", 0.0, 0.0): none,
        ("nested", 0.0, 1.0): dino,
        ("nested", 1.0, 1.0): full,
        ("joint", 0.0, 1.0): dino,
        ("joint", 1.0, 1.0): full,
    }
    formulas = {
        "additive": none + s_text * (text - none) + s_dino * (dino - none),
        "nested": none + s_dino * (dino - none) + s_text * (full - dino),
        "joint": full + (s_text - 1) * (full - dino) + (s_dino - 1) * (full - text),
    }
    if 0 in (s_text, s_dino):  # a scale of 0 leaves its condition out
        formulas["joint"] = formulas["additive"]
    cases[(sample.guidance, s_text, s_dino)] = formulas[sample.guidance]
    errors = {case: relative_change(expected, specimen.guided(*case)) for case, expected in cases.items()}
    wrong = [
        f"{kind} with text {text:g}, reference {dino:g}: {error:.2g}"
        for (kind, text, dino), error in errors.items()
        if error > _CLOSE
    ]
    if wrong:
        return failed(
            f"{len(wrong)} of {len(cases)} cases are off by more than {_CLOSE:g}: {'; '.join(wrong)}{note}", _FIX
        )
    return passed(
        f"{len(cases)} cases within {max(errors.values()):.1g} of their branches, the preset's own ({sample.guidance},"
        f" text {s_text:g}, reference {s_dino:g}) among them{note}"
    )
