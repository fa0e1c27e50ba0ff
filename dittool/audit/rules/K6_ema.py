"""Raw and averaged weights differ, and each stands under its own name.

## What it checks
The two sets of weights are compared. The average lags behind: seen from it, the raw weights lie in the direction of the
optimizer's last updates, which its first moments remember. When they lie in the other direction, the names are
exchanged.

## Why it matters
Pictures "of the EMA" drawn from raw weights, or the reverse, have been published and compared. Equal sets mean that
nothing is averaged.

## Example
A file whose `ema` is a copy of `model` fails: "all 97 tensors are equal".

## Fix
Update the average after every optimizer step, and store it under `ema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dittool.audit.checkpoint_view import CheckpointView
from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.subject import Checkpoint
from dittool.ckpt.load import is_state_dict

CODE, NAME, SEVERITY, SCOPE, SINCE = "K6", "ema-and-raw", "error", ("checkpoint",), "0.1"

_CLEAR = 0.05  # cosine; runs of a few hundred updates show 0.3 to 0.7
_FIX = "update the average after every optimizer step and store it under 'ema', the raw weights under 'model'"


def check(subject: Checkpoint) -> list[Finding]:
    view = subject.view
    if not view.ours and is_state_dict(view.content.get("model")) and is_state_dict(view.content.get("ema")):
        return _check_foreign(view)
    if not view.ours or not {"model", "ema", "optimizer", "step"} <= view.content.keys():
        return skipped("not both kinds of weights with an optimizer's state: which these are cannot be told")
    raw, ema = view.weights("model"), view.weights("ema")
    common = [name for name in raw if name in ema and raw[name].shape == ema[name].shape]
    moments = view.moments()
    if view.step == 0 or moments is None or len(common) < len(raw):
        return skipped("no update was made, or the tensors do not belong together (see K3 and K5)")
    differing = [name for name in common if not torch.equal(raw[name], ema[name])]
    if not differing:
        return failed(f"all {len(common)} tensors are equal after {view.step:,} updates: nothing is averaged", _FIX)
    distance = _norm(raw[name] - ema[name] for name in common) / _norm(raw[name] for name in common)
    ahead = _ahead(raw, ema, moments, common)
    figures = f"{len(differing)} of {len(common)} tensors differ, by {distance:.2g} of the raw weights' norm"
    if ahead < -_CLEAR:
        return failed(
            f"{figures}; what is called raw lies behind the last updates (cosine {ahead:+.2g}): the names are"
            " exchanged",
            _FIX,
        )
    order = (
        "the raw ones are ahead along the last updates"
        if ahead > _CLEAR
        else "the last updates do not tell which is which"
    )
    return passed(f"{figures}; {order} (cosine {ahead:+.2g})")


def _check_foreign(view: CheckpointView) -> list[Finding]:
    """Somebody else's file with both: whether they differ; which is which, only our own optimizer's names would
    tell.
    """
    raw, ema = view.weights("model"), view.weights("ema")
    common = [
        name for name in raw if name in ema and raw[name].shape == ema[name].shape and raw[name].is_floating_point()
    ]
    differing = [name for name in common if not torch.equal(raw[name], ema[name])]
    if not differing:
        return failed(
            f"all {len(common)} tensors of 'model' and 'ema' are equal: nothing is averaged, or one was saved twice",
            _FIX,
        )
    distance = _norm(raw[name] - ema[name] for name in common) / max(_norm(raw[name] for name in common), 1e-30)
    return passed(
        f"{len(differing)} of {len(common)} tensors of 'model' and 'ema' differ, by {distance:.2g} of the raw weights'"
        " norm"
    )


def _ahead(raw: Mapping[str, Tensor], ema: Mapping[str, Tensor], moments: Mapping[str, Any], names: list[str]) -> float:
    """Cosine between raw − ema and the direction of AdamW's last updates, −m/√v."""
    dot = gap_norm = step_norm = 0.0
    for name in names:
        gap = (raw[name] - ema[name]).double()
        step = -moments[name]["exp_avg"].double() / (moments[name]["exp_avg_sq"].double().sqrt() + 1e-12)
        dot, gap_norm, step_norm = (
            dot + float((gap * step).sum()),
            gap_norm + float(gap.square().sum()),
            step_norm + float(step.square().sum()),
        )
    return dot / max((gap_norm * step_norm) ** 0.5, 1e-30)


def _norm(tensors: Any) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5
