"""Noise, class, guidance scale and style each move the one-step generator's answer, and gradient reaches every
parameter.

## What it checks
On the network with open gates, or with a checkpoint's weights: exchanging one of the four inputs for another changes
the answer; gradient of the answer reaches every parameter, of tables the rows that were looked up; exchanging two
patches of the noise does not merely exchange the answers, so places count.

## Why it matters
A class that is embedded and never read gives one mixture for all classes; a guidance scale that does nothing makes
`--alpha` a lie; without style and noise all samples of a class are one picture. None of this is an error while
training.

## Example
A condition vector without the guidance scale fails: "guidance scale: the answer does not change".

## Fix
The evidence names the input; follow it through `DriftDiT.condition` and `forward` in `models/drift_dit.py`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.specimens.ours import Inputs, relative_change
from dittool.audit.subject import Subject
from dittool.models.drift_dit import DriftDiT

CODE, NAME, SEVERITY, SCOPE, SINCE = "G2", "live-generator", "error", ("generator",), "0.1"

_FIX = "follow the input through condition() and forward() in models/drift_dit.py"
_LEAST = 1e-5  # relative change that counts as one


def check(subject: Subject) -> list[Finding]:
    probe = subject.probe
    if subject.checkpoint is None:
        model, what = probe.awake(), f"with open gates{probe.note}"
    else:
        model, what = subject.trained_model(), "with the checkpoint's weights"
        if model is None:
            return skipped("the weights do not fit the configuration (see K3)")
    inputs = probe.inputs(batch=4)
    changes = _changes(model, inputs)
    faults = [
        f"{name}: the answer does not change ({change:.1g})" for name, change in changes.items() if change < _LEAST
    ]
    if dead := _without_gradient(model, inputs):
        faults.append(f"no gradient reaches {len(dead)} parameters, first {', '.join(dead[:3])}")
    if faults:
        return [finding for fault in faults for finding in failed(f"{fault}, {what}", _FIX)]
    shown = ", ".join(f"{name} {change:.2g}" for name, change in changes.items())
    return passed(f"relative change of the answer: {shown}; gradient reaches every parameter; {what}")


@torch.no_grad()
def _changes(model: DriftDiT, inputs: Inputs) -> dict[str, float]:
    """How far the answer moves with each input; for places, how far it is from the answer with two patches
    exchanged.
    """
    plain, (config, conditions) = _answer(model, inputs), (model.config, inputs.conditions)
    others = {"noise": replace(inputs, z=inputs.z.roll(1, 0)), "guidance scale": replace(inputs, t=inputs.t + 1)}
    if config.classes > 1:
        others["class"] = replace(
            inputs, conditions=replace(conditions, labels=(conditions.labels + 1) % config.classes)
        )
    if config.style_tokens and config.style_codebook > 1:
        others["style"] = replace(
            inputs, conditions=replace(conditions, style=(conditions.style + 1) % config.style_codebook)
        )
    changes = {name: relative_change(plain, _answer(model, other)) for name, other in others.items()}
    if config.grid[0] * config.grid[1] > 1:
        exchanged = _corners_exchanged(
            _answer(model, replace(inputs, z=_corners_exchanged(inputs.z, config.patch_size))), config.patch_size
        )
        changes["places"] = relative_change(plain, exchanged)
    return changes


def _corners_exchanged(z: Tensor, p: int) -> Tensor:
    other = z.clone()
    other[..., :p, :p], other[..., -p:, -p:] = z[..., -p:, -p:], z[..., :p, :p]
    return other


def _without_gradient(model: DriftDiT, inputs: Inputs) -> list[str]:
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    _answer(model, inputs).square().sum().backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    model.zero_grad(set_to_none=True)
    return without


def _answer(model: DriftDiT, inputs: Inputs) -> Tensor:
    return model(inputs.z, inputs.t, inputs.conditions)
