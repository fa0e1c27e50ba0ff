"""The averaged weights forget the beginning: their decay starts low, rises, and leaves under 10% to the first half of
the run.

## What it checks
The decay of every update of the planned run: it begins at 0.5 or less, never falls, and the product of the decays over
the second half, which is the weight that the first half keeps in the final average, is below 10%. In a checkpoint: the
average is there, finite, differs from the raw weights, and the parts that began at zero have followed the raw ones away
from it.

## Why it matters
Validation and sampling use the average. At 0.9999 from an early step on, a run of 5,000 steps ends with an average of
which 64% is from its warm-up: every picture is judged on weights that training had long left.

## Example
`target = 0.9999, warmup = "linear", warmup_steps = 500` with 5,000 steps fails: 78% of the average predates half of the
run.

## Fix
Use `ema.warmup = "power"`, or a lower `ema.target`, or more steps. An average of time constant 1/(1 − target) steps
needs a run several times longer.
"""

from __future__ import annotations

import math

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.subject import Checkpoint, Preset
from dittool.ckpt.load import non_finite_tensors
from dittool.ckpt.parts import is_state_dict
from dittool.config.architectures import AnyConfig
from dittool.objective import schedule

CODE, NAME, SEVERITY, SCOPE, SINCE = "E4", "ema-warmup", "error", ("preset", "plan", "checkpoint"), "0.1"

_MOST_OLD = 0.1  # of the final average
_HIGHEST_FIRST = 0.5
_FOLLOWED = 0.02  # least share of the raw weights' way from zero that the average has gone


def check(subject: Preset | Checkpoint) -> list[Finding]:
    findings = [] if subject.config is None else _check_plan(subject.config)
    return findings + (_check_average(subject) if isinstance(subject, Checkpoint) else [])


def _check_plan(config: AnyConfig) -> list[Finding]:
    ema, steps = config.ema, config.train.steps
    decays = [schedule.ema_decay(update, ema) for update in range(steps)]
    old = math.exp(sum(math.log(max(decay, 1e-300)) for decay in decays[steps // 2 :]))
    falls = next((update for update in range(1, steps) if decays[update] < decays[update - 1]), None)
    figures = f"decay {decays[0]:.3g} at the first of {steps:,} updates, {decays[-1]:.6g} at the last"
    fix = 'set ema.warmup = "power", lower ema.target, or plan more train.steps'
    if decays[0] > _HIGHEST_FIRST:
        return failed(f"{figures}: it starts above {_HIGHEST_FIRST:g}, so the initial weights stay in the average", fix)
    if falls is not None:
        return failed(f"the decay falls at update {falls:,}, from {decays[falls - 1]:.6g} to {decays[falls]:.6g}", fix)
    if old >= _MOST_OLD:
        return failed(
            f"{figures}; {old:.0%} of the final average predates half of the run, at most {_MOST_OLD:.0%} should", fix
        )
    return passed(f"{figures}; {old:.2g} of the final average predates half of the run")


def _check_average(subject: Checkpoint) -> list[Finding]:
    view = subject.view
    if not view.ours:
        return skipped("weights alone: whether they are averaged, the file does not say")
    raw, ema = view.content.get("model"), view.content.get("ema")
    if raw is None or ema is None or not is_state_dict(ema) or not is_state_dict(raw):
        evidence = "the checkpoint has no averaged weights under 'ema' beside the raw ones under 'model'"
        return failed(evidence, "keep the average in the checkpoint; validation needs it")
    if broken := non_finite_tensors(ema):
        return failed(
            f"{len(broken)} averaged tensors hold NaN or infinity, first {broken[0]}",
            "go back to an earlier checkpoint",
        )
    if view.step == 0 or subject.config is None:
        return skipped("no update was made yet, or no valid configuration says what began at zero")
    ways = {
        name: float(ema[name].norm() / raw[name].norm())
        for name in subject.specimen.zero_at_start()
        if name in ema and name in raw and raw[name].any()
    }
    if not ways:
        return skipped("none of the parts that begin at zero has left it; see K4 and K6")
    name, least = min(ways.items(), key=lambda item: item[1])
    if least < _FOLLOWED:
        return failed(
            f"the average of {name} has gone {least:.1%} of the raw weights' way from zero after {view.step:,} updates:"
            " it is still the initial one",
            "check that the average is updated with every optimizer step, then train again",
        )
    return passed(
        f"the average has followed the raw weights from zero in all {len(ways)} such tensors, {least:.0%} of the way or"
        " more"
    )
