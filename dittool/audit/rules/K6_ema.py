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

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dittool.audit.checkpoint_view import CheckpointView, Moments, gradient_mean
from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.subject import Checkpoint
from dittool.ckpt.parts import is_state_dict

CODE, NAME, SEVERITY, SCOPE, SINCE = "K6", "ema-and-raw", "error", ("checkpoint",), "0.1"

_CLEAR = 0.05  # cosine; runs of a few hundred updates show 0.3 to 0.7
_FIX = "update the average after every optimizer step and store it under 'ema', the raw weights under 'model'"


def check(subject: Checkpoint) -> list[Finding]:
    view = subject.view
    if not view.ours and is_state_dict(view.content.get("model")) and is_state_dict(view.content.get("ema")):
        return _check_foreign(view)
    if not view.ours or not {"model", "ema", "optimizer", "step"} <= view.content.keys():
        return skipped("not both kinds of weights with an optimizer's state: nothing says which these are")
    raw, ema, moments = view.weights("model"), view.weights("ema"), view.moments()
    common = _common(raw, ema)
    if view.step == 0 or moments is None or len(common) < len(raw):
        return skipped("no update was made, or the tensors do not belong together (see K3 and K5)")
    differing = _differing(raw, ema, common)
    if not differing:
        return failed(f"all {len(common)} tensors are equal after {view.step:,} updates: nothing is averaged", _FIX)
    figures = (
        f"{differing} of {len(common)} tensors differ, by {_distance(raw, ema, common):.2g} of the raw weights' norm"
    )
    ahead = _ahead(raw, ema, moments, common)
    if ahead < -_CLEAR:
        behind = f"what is called raw lies behind the last updates (cosine {ahead:+.2g})"
        return failed(f"{figures}; {behind}: the names are exchanged", _FIX)
    clear = "the raw ones are ahead along the last updates"
    order = clear if ahead > _CLEAR else "the last updates do not show which is which"
    return passed(f"{figures}; {order} (cosine {ahead:+.2g})")


def _check_foreign(view: CheckpointView) -> list[Finding]:
    """Somebody else's file with both: whether they differ; which is which, only our own optimizer's names would
    tell.
    """
    raw, ema = view.weights("model"), view.weights("ema")
    common = [name for name in _common(raw, ema) if raw[name].is_floating_point()]
    differing = _differing(raw, ema, common)
    if not differing:
        equal = f"all {len(common)} tensors of 'model' and 'ema' are equal"
        return failed(f"{equal}: nothing is averaged, or one was saved twice", _FIX)
    distance = f"by {_distance(raw, ema, common):.2g} of the raw weights' norm"
    return passed(f"{differing} of {len(common)} tensors of 'model' and 'ema' differ, {distance}")


def _common(raw: Mapping[str, Tensor], ema: Mapping[str, Tensor]) -> list[str]:
    return [name for name in raw if name in ema and raw[name].shape == ema[name].shape]


def _differing(raw: Mapping[str, Tensor], ema: Mapping[str, Tensor], names: list[str]) -> int:
    return sum(not torch.equal(raw[name], ema[name]) for name in names)


def _distance(raw: Mapping[str, Tensor], ema: Mapping[str, Tensor], names: list[str]) -> float:
    """Between the two sets, as a share of the raw weights' norm."""
    return _norm(raw[name] - ema[name] for name in names) / max(_norm(raw[name] for name in names), 1e-30)


def _ahead(raw: Mapping[str, Tensor], ema: Mapping[str, Tensor], moments: Moments, names: list[str]) -> float:
    """Cosine between raw − ema and the direction of the last updates: of AdamW −m/√v, of Muon −m of one size."""
    dot = gap_square = step_square = 0.0
    for name in names:
        gap = (raw[name] - ema[name]).double()
        mean = gradient_mean(moments[name]).double()
        square = moments[name].get("exp_avg_sq", mean.square().mean())
        step = -mean / (square.double().sqrt() + 1e-12)
        dot += float((gap * step).sum())
        gap_square += float(gap.square().sum())
        step_square += float(step.square().sum())
    return dot / max((gap_square * step_square) ** 0.5, 1e-30)


def _norm(tensors: Iterable[Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5
