"""Guidance of scale 0 and 1 gives exactly the branches that it must, and the preset's scales give the formula's sum.

## What it checks
The sampler is run for one Euler step, from which the guided velocity follows, on a network with open gates. Scales 0, 0
must give the unconditional prediction; text 1 the text branch; reference 1 the reference branch; nested 1, 1 the
prediction with both. With the preset's own kind and scales the result must be the formula's combination of the
branches.

## Why it matters
A wrong sign, a swapped scale or a branch that keeps the wrong condition still draws pictures, only worse ones, and
nobody looks at the algebra.

## Example
`v = v_text + s·(v_text − v_∅)` fails: scale 0 gives the text branch instead of the unconditional one.

## Fix
See the two formulas in `sampling/guidance.py`; the weights of the branches must sum to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.specimens.ours import Inputs, relative_change
from dittool.audit.subject import Subject
from dittool.models.conditioning import Kept
from dittool.models.dit import DiT
from dittool.sampling.latents import sample_latents
from dittool.sampling.settings import SampleSettings

CODE, NAME, SEVERITY, SCOPE, SINCE = "C7", "guidance", "error", ("model",), "0.1"

_FIX = "compare sampling/guidance.py and sampling/latents.py with the formulas at the top of the former"
_CLOSE = 1e-4  # relative; batches of other sizes round differently


@torch.no_grad()
def check(subject: Subject) -> list[Finding]:
    if subject.foreign is not None:
        return skipped("a model alone: guidance is what its sampler does with it")
    probe, sample = subject.probe, subject.config.sample
    model, inputs = probe.shared_awake, probe.inputs()
    branch = {name: _branch(model, inputs, *kept) for name, kept in _KEPT.items()}
    none, text, dino, full = branch.values()
    cases = {
        ("additive", 0.0, 0.0): none,
        ("additive", 1.0, 0.0): text,
        ("additive", 0.0, 1.0): dino,
        ("nested", 0.0, 0.0): none,
        ("nested", 0.0, 1.0): dino,
        ("nested", 1.0, 1.0): full,
    }
    s_text, s_dino = sample.cfg_text, sample.cfg_dino
    formulas = {
        "additive": none + s_text * (text - none) + s_dino * (dino - none),
        "nested": none + s_dino * (dino - none) + s_text * (full - dino),
    }
    cases[(sample.guidance, s_text, s_dino)] = formulas[sample.guidance]
    apart = {case: relative_change(expected, _guided(model, inputs, *case)) for case, expected in cases.items()}
    wrong = [
        f"{kind} with text {text:g}, reference {dino:g}: {error:.2g}"
        for (kind, text, dino), error in apart.items()
        if error > _CLOSE
    ]
    if wrong:
        return failed(
            f"{len(wrong)} of {len(cases)} cases are off by more than {_CLOSE:g}: {'; '.join(wrong)}{probe.note}", _FIX
        )
    return passed(
        f"{len(cases)} cases within {max(apart.values()):.1g} of their branches, the preset's own ({sample.guidance},"
        f" text {s_text:g}, reference {s_dino:g}) among them{probe.note}"
    )


_KEPT = {"none": (False, False), "text": (True, False), "dino": (False, True), "full": (True, True)}


def _branch(model: DiT, inputs: Inputs, text: bool, reference: bool) -> Tensor:
    """The prediction at t = 1 with these conditions kept."""
    batch = len(inputs.z)
    kept = Kept(torch.full((batch,), text), torch.full((batch,), reference))
    return model(inputs.z, torch.ones(batch), inputs.conditions, kept)


def _guided(model: DiT, inputs: Inputs, kind: str, text: float, dino: float) -> Tensor:
    """The guided velocity at t = 1: one Euler step from 1 to 0 is z − v."""
    settings = SampleSettings(solver="euler", steps=1, cfg_text=text, cfg_dino=dino, guidance=kind, shift=1.0)
    return inputs.z - sample_latents(model, inputs.conditions, inputs.z, settings)
