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
from contextlib import nullcontext

import torch
from torch import nn

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.subject import Subject
from dittool.ckpt.load import named_tensors

CODE, NAME, SEVERITY, SCOPE, SINCE = "C4", "precision", "error", ("model", "generator", "checkpoint"), "0.1"

_FIX = "keep weights, average and moments in fp32; run the model under torch.autocast(device, torch.bfloat16) for bf16"
_KEPT = ("model", "ema", "optimizer")


def check(subject: Subject) -> list[Finding]:
    if subject.foreign is not None:
        return _check_foreign(subject)
    findings = [] if subject.config is None else _check_run(subject)
    return findings + (_check_checkpoint(subject) if subject.checkpoint is not None else [])


def _check_run(subject: Subject) -> list[Finding]:
    probe, precision = subject.probe, subject.config.train.precision
    model, inputs = probe.awake().train(), probe.inputs()
    seen: Counter[str] = Counter()
    for layer in model.blocks.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _layer, _inputs, output: seen.update([_name(output.dtype)]))
    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
        answer = model(inputs.z, inputs.t, inputs.conditions)
    answer.float().square().mean().backward()
    wanted = "bfloat16" if precision == "bf16" else "float32"
    kinds = {
        "parameters": Counter(_name(parameter.dtype) for parameter in model.parameters()),
        "gradients": Counter(
            _name(parameter.grad.dtype) for parameter in model.parameters() if parameter.grad is not None
        ),
    }
    faults = [
        f"{what} are {_counts(found)}, not all float32" for what, found in kinds.items() if set(found) != {"float32"}
    ]
    if set(seen) != {wanted}:
        faults.append(f"with precision {precision} the blocks' linear layers give {_counts(seen)}, not all {wanted}")
    if not torch.isfinite(answer).all():
        faults.append(f"{int((~torch.isfinite(answer)).sum())} of {answer.numel()} values of the answer are not finite")
    if faults:
        return [finding for fault in faults for finding in failed(fault + probe.note, _FIX)]
    master = "; ".join(f"{what}: {_counts(found)}" for what, found in kinds.items())
    return passed(f"precision {precision}: {_counts(seen)} answers of linear layers; {master}{probe.note}")


def _check_foreign(subject: Subject) -> list[Finding]:
    kinds = Counter(_name(parameter.dtype) for parameter in subject.foreign.fresh().parameters())
    if set(kinds) != {"float32"}:
        return failed(f"parameters as built are {_counts(kinds)}, not all float32", _FIX)
    return passed(
        f"parameters as built: {_counts(kinds)}; in which precision they will be run is not the model's to say"
    )


def _check_checkpoint(subject: Subject) -> list[Finding]:
    view = subject.checkpoint
    if not view.ours:
        return skipped("weights alone may be stored in any precision")
    tensors = named_tensors({key: view.content[key] for key in _KEPT if key in view.content})
    wrong = [name for name, tensor in tensors if tensor.dtype != torch.float32]
    if wrong:
        return failed(
            f"{len(wrong)} of {len(tensors)} tensors of weights and moments are not float32, first {wrong[0]}", _FIX
        )
    return passed(f"all {len(tensors)} tensors of weights, average and moments are float32")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "nothing"
