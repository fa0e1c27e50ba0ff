"""Each condition moves the prediction and can be learned: text, the reference's CLS, its patches, and the timestep.

## What it checks
On the network with open gates, or with a checkpoint's weights: exchanging the text, the CLS or the patches for others
changes the prediction; gradient reaches every parameter when all four dropout modes stand in a batch; the timestep's
embedding varies over [0, 1]; padding and the length of a caption do not show, neither under the mask nor when the text
is dropped. Of a foreign model each input is exchanged in turn; what dropping a condition means to it cannot be known.

## Why it matters
A condition that is projected and never read trains to an unconditional model without any error. With t fed without its
factor of 1000 the embedding is nearly constant. A dropped text that keeps its mask tells its length, and guidance is
spoiled.

## Example
A context without the patch tokens fails: "patches: the prediction does not change".

## Fix
The evidence names the condition; follow it through `models/conditioning.py` into the context, the mask and the
condition vector.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.specimens.foreign.conditions import check_conditions
from dittool.audit.specimens.ours import Inputs, relative_change
from dittool.audit.subject import Subject
from dittool.models.conditioning import Kept
from dittool.models.dit import DiT
from dittool.objective import flow

CODE, NAME, SEVERITY, SCOPE, SINCE = "C6", "live-conditions", "error", ("model",), "0.1"

_FIX = "follow the condition through models/conditioning.py into the context, the mask and the condition vector"
_LEAST = 1e-5  # relative change that counts as one
# relative change of t's embedding over a fifth of [0, 1]; without the factor of 1000 it is 0.04, with it 1.2
_LEAST_TURN = 0.2


def check(subject: Subject) -> list[Finding]:
    if subject.foreign is not None:
        return check_conditions(subject.foreign)
    probe = subject.probe
    if subject.checkpoint is None:
        model, what = probe.shared_awake, f"with open gates{probe.note}"
    else:
        model, what = subject.trained_model(), "with the checkpoint's weights"
        if model is None:
            return skipped("the weights do not fit the configuration (see K3)")
        if not model.output.weight.any():
            return skipped("the output layer is still zero: nothing can show before the first update")
    inputs = probe.inputs(batch=4)
    with torch.no_grad():
        changes = _changes(model, inputs)
        leaks = _leaks(model, inputs)
        # before training: a question of the code, not of the weights
        embedding = probe.fresh().timestep(torch.linspace(0, 1, 101))
        turn = relative_change(embedding[:-20], embedding[20:])
    dead = _without_gradient(model, inputs)
    faults = [
        f"{name}: the prediction does not change ({change:.1g})" for name, change in changes.items() if change < _LEAST
    ]
    faults += [
        f"{name}: shows in the prediction (relative change {change:.2g})"
        for name, change in leaks.items()
        if change > _LEAST
    ]
    if turn < _LEAST_TURN:
        faults.append(
            f"t's embedding changes by {turn:.2g} over a fifth of [0, 1], at least {_LEAST_TURN} is wanted (t times"
            " 1000?)"
        )
    if dead:
        faults.append(f"no gradient reaches {len(dead)} parameters, first {', '.join(dead[:3])}")
    if faults:
        return [finding for fault in faults for finding in failed(f"{fault}, {what}", _FIX)]
    shown = ", ".join(f"{name} {change:.2g}" for name, change in changes.items())
    return passed(
        f"relative change of the prediction: {shown}; t's embedding {turn:.2g}; gradient reaches every parameter; no"
        f" length leaks; {what}"
    )


def _changes(model: DiT, inputs: Inputs) -> dict[str, float]:
    """How far the prediction moves when each sample is given another's condition."""
    plain = _predict(model, inputs)
    conditions = inputs.conditions
    others = {
        "text": replace(conditions, text=-conditions.text),
        "CLS": replace(conditions, cls=conditions.cls.roll(1, 0)),
    }
    if conditions.patches is not None:
        others["patches"] = replace(conditions, patches=conditions.patches.roll(1, 0))
    changes = {
        name: relative_change(plain, _predict(model, replace(inputs, conditions=other)))
        for name, other in others.items()
    }
    return changes | {"t": relative_change(plain, _predict(model, replace(inputs, t=1 - inputs.t)))}


def _leaks(model: DiT, inputs: Inputs) -> dict[str, float]:
    """How far the prediction moves with what must not be seen."""
    conditions, batch = inputs.conditions, len(inputs.z)
    padding = torch.where(conditions.text_mask[..., None], conditions.text, torch.randn_like(conditions.text))
    shorter = conditions.text_mask & (torch.arange(conditions.text_mask.shape[1]) < 2)
    kept = Kept(torch.ones(batch, dtype=torch.bool), torch.ones(batch, dtype=torch.bool))
    dropped = replace(kept, text=~kept.text)
    cases = {
        "text under the mask": (kept, {"text": padding}),
        "length of a dropped text": (dropped, {"text_mask": shorter}),
        "content of a dropped text": (dropped, {"text": -conditions.text}),
    }
    return {
        name: relative_change(
            _predict(model, inputs, mode),
            _predict(model, replace(inputs, conditions=replace(conditions, **other)), mode),
        )
        for name, (mode, other) in cases.items()
    }


def _without_gradient(model: DiT, inputs: Inputs) -> list[str]:
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    _predict(
        model, inputs, flow.kept_conditions(torch.arange(len(inputs.z)) % len(flow.MODES))
    ).square().sum().backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    model.zero_grad(set_to_none=True)
    return without


def _predict(model: DiT, inputs: Inputs, kept: Kept | None = None) -> Tensor:
    return model(inputs.z, inputs.t, inputs.conditions, kept)
