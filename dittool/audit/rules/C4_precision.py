"""Weights, gradients and moments are fp32; with `precision = "bf16"` the matrix products run in bf16, otherwise nothing
does.

## What it checks
The network runs forward and backward as its precision says: with bf16 under autocast, where every linear layer of the
blocks must give bf16, with fp32 without. Parameters and gradients must be fp32 either way, and the answer finite. In a
checkpoint, raw and averaged weights and the optimizer's moments must be fp32.

## Why it matters
Updates of 1e-4 relative to a weight vanish in bf16's eight bits: a run with bf16 master weights stands still at low
rates. A model that is cast instead of autocast does just that.

## Example
`model.to(torch.bfloat16)` before training fails: parameters are bfloat16.

## Fix
Keep the model in fp32 and run it under `torch.autocast(device, torch.bfloat16)`.
"""

from __future__ import annotations

from collections import Counter

import torch

from dittool.audit.rule import Finding, chosen, failed, judged, or_skipped, passed, skipped
from dittool.audit.specimens.specimen import Specimen
from dittool.audit.subject import Checkpoint, Foreign, Preset
from dittool.ckpt.load import named_tensors

CODE, NAME, SEVERITY, SCOPE, SINCE = "C4", "precision", "error", ("model", "generator", "checkpoint"), "0.1"

_FIX = "keep weights, average and moments in fp32; run the model under torch.autocast(device, torch.bfloat16) for bf16"
_CHOICE = "A choice for drawing, as Flux is published; trained so, updates below a 256th of a weight vanish in bfloat16"
_KEPT = ("model", "ema", "optimizer")
_MASTER = {"float32"}


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    if not isinstance(subject, Checkpoint):
        return _check_run(subject.specimen)
    findings = [] if subject.config is None else or_skipped(lambda: _check_run(subject.specimen))
    return findings + _check_checkpoint(subject)


def _check_run(specimen: Specimen) -> list[Finding]:
    found, note = specimen.precision(), specimen.note
    if not found.planned:
        if set(found.parameters) != _MASTER:
            return chosen(f"parameters as built are {_counts(found.parameters)}, not all float32", _FIX, _CHOICE)
        unknown = "in which precision they will be run is not the model's to say"
        return passed(f"parameters as built: {_counts(found.parameters)}; {unknown}")
    wanted = "bfloat16" if found.planned == "bf16" else "float32"
    kept = {"parameters": found.parameters, "gradients": found.gradients}
    faults = [f"{what} are {_counts(kinds)}, not all float32" for what, kinds in kept.items() if set(kinds) != _MASTER]
    if set(found.linear) != {wanted}:
        given = f"the blocks' linear layers give {_counts(found.linear)}, not all {wanted}"
        faults.append(f"with precision {found.planned} {given}")
    if found.not_finite:
        faults.append(f"{found.not_finite} of {found.values} values of the answer are not finite")
    master = "; ".join(f"{what}: {_counts(kinds)}" for what, kinds in kept.items())
    held = f"precision {found.planned}: {_counts(found.linear)} answers of linear layers; {master}{note}"
    return judged([fault + note for fault in faults], _FIX, held)


def _check_checkpoint(subject: Checkpoint) -> list[Finding]:
    view = subject.view
    if not view.ours:
        return skipped("weights alone may be stored in any precision")
    tensors = named_tensors({key: view.content[key] for key in _KEPT if key in view.content})
    wrong = [name for name, tensor in tensors if tensor.dtype != torch.float32]
    if wrong:
        return failed(
            f"{len(wrong)} of {len(tensors)} tensors of weights and moments are not float32, first {wrong[0]}", _FIX
        )
    return passed(f"all {len(tensors)} tensors of weights, average and moments are float32")


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "nothing"
