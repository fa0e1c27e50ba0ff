"""The learning rate warms up, reaches its peak and decays over the planned updates, and a step is an optimizer update.

## What it checks
The rate of every planned update: it must reach `train.lr`, before the second half of the run, never rise after that,
and end at `train.min_lr`, or with `schedule = "constant"` where it was. In a checkpoint, AdamW's own count of updates
must equal the checkpoint's step, the samples seen must be steps times batch times accumulation, and the optimizer's
rate must be the schedule's.

## Why it matters
A warm-up as long as the run only ever raises the rate. Steps counted in micro-batches make every schedule run too fast
by the accumulation, 256-fold in one real run.

## Example
`steps = 5000, warmup_steps = 5000` fails: the peak is reached by the last update only.

## Fix
Keep `train.warmup_steps` well below `train.steps`; count a step when the optimizer steps, not when a batch is read.
"""

from __future__ import annotations

import math

from dittool.audit.rule import Finding, failed, passed, skipped
from dittool.audit.subject import Checkpoint, Preset
from dittool.config.architectures import AnyConfig
from dittool.objective import schedule

CODE, NAME, SEVERITY, SCOPE, SINCE = "C5", "schedule", "error", ("preset", "plan", "checkpoint"), "0.1"

_CLOSE = 1e-6  # relative


def check(subject: Preset | Checkpoint) -> list[Finding]:
    findings = [] if subject.config is None else _check_plan(subject.config)
    return findings + (_check_count(subject) if isinstance(subject, Checkpoint) else [])


def _check_plan(config: AnyConfig) -> list[Finding]:
    train = config.train
    rates = [schedule.learning_rate(step, train) for step in range(train.steps)]
    peak = rates.index(max(rates))
    figures = (
        f"{train.steps:,} updates, {train.warmup_steps:,} of warm-up: {rates[0]:.3g} → {max(rates):.3g} at {peak + 1:,}"
        f" → {rates[-1]:.3g}"
    )
    fix = "set train.warmup_steps well below train.steps"
    if not math.isclose(max(rates), train.lr, rel_tol=_CLOSE):
        return failed(f"{figures}; the peak train.lr = {train.lr:g} is not what is reached", fix)
    if peak >= train.steps / 2:
        return failed(f"{figures}; the peak comes in the second half, so the rate hardly decays", fix)
    if any(after > before * (1 + _CLOSE) for before, after in zip(rates[peak:-1], rates[peak + 1 :], strict=True)):
        return failed(
            f"{figures}; the rate rises again after its peak",
            "the schedule must decay (objective.schedule.learning_rate)",
        )
    name, last = ("lr", train.lr) if train.schedule == "constant" else ("min_lr", train.min_lr)
    if train.steps > peak + 1 and not math.isclose(rates[-1], last, rel_tol=1e-3, abs_tol=train.lr * 1e-4):
        return failed(f"{figures}; it should end at train.{name} = {last:g}", "the schedule must end with the run")
    return passed(figures)


def _check_count(subject: Checkpoint) -> list[Finding]:
    view = subject.view
    if not view.ours or subject.config is None or not isinstance(view.content.get("optimizer"), dict):
        return skipped("no optimizer state or no valid configuration: how updates were counted cannot be seen")
    train, optimizer = subject.config.train, view.content["optimizer"]
    counts = {int(state["step"]) for state in optimizer["state"].values()}
    if view.step and counts != {view.step}:
        return failed(
            f"the checkpoint says step {view.step:,}, AdamW has counted"
            f" {', '.join(f'{count:,}' for count in sorted(counts)) or 'nothing'} updates",
            "count a step when the optimizer steps, not when a batch is read",
        )
    seen = view.content["samples_seen"]
    if train.batch_size is not None and seen != (expected := view.step * train.batch_size * train.accumulate):
        figures = f"{view.step:,} × {train.batch_size} × {train.accumulate} = {expected:,}"
        return failed(
            f"samples_seen is {seen:,}, step × batch × accumulation is {figures}", "count samples with the steps"
        )
    rates = {group["lr"] for group in optimizer["param_groups"]}
    wanted = schedule.learning_rate(max(view.step - 1, 0), train)
    if view.step and not all(math.isclose(rate, wanted, rel_tol=1e-3) for rate in rates):
        found = ", ".join(f"{rate:.4g}" for rate in sorted(rates))
        return failed(
            f"the optimizer's rate is {found}, the schedule's at step {view.step:,} is {wanted:.4g}",
            "set the rate before every update",
        )
    return passed(
        f"step {view.step:,} = AdamW's count of updates; {seen:,} samples seen; rate {wanted:.4g} as the schedule says"
    )
