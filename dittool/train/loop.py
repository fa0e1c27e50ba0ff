"""The training loop of every family: from a configuration and data to checkpoints.

    commands/train.py → this file → families/flow.py → objective/flow.py → models/dit.py

A step is one optimizer update: `accumulate` micro-batches, one clipped update of the weights, one of their average.
What a step sees is a function of its number alone, so stopping and resuming anywhere gives the bits of the
uninterrupted run. What a micro-batch is, what is minimised on it, and what is shown of it, the family decides
(`families/family.py`).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from dittool.address import Address
from dittool.ckpt.files import list_checkpoints
from dittool.ckpt.run_data import record_data
from dittool.config.architectures import AnyConfig
from dittool.config.load import config_to_toml
from dittool.console import SILENT, Talk
from dittool.errors import DitError, Interrupted, UsageError, from_os_error
from dittool.families.family import Conclusion, MicroBatch, family_of
from dittool.shell import command_line, quoted
from dittool.storage import (
    folder_lock,
    free_name_beside,
    nothing_left_of_refusal,
    output_folder,
    sweep_temporaries,
    write_atomic,
)
from dittool.train.beginning import Beginning
from dittool.train.copies import Copies
from dittool.train.distributed import gathered, process_group
from dittool.train.failures import ReadingError, compiler_errors_explained, next_batch, not_finite
from dittool.train.log import Meter, RunLog, SideWork, StepFigures
from dittool.train.readiness import require_room, tell_disk
from dittool.train.saving import Saving
from dittool.train.signals import StopRequest, launcher_warning, stop_on_signal
from dittool.train.state import TrainState
from dittool.validate.text_edit import CaptionChecker


@dataclass(frozen=True)
class TrainSummary:
    """Where a run ended."""

    folder: Path
    checkpoint: Path
    step: int
    loss: float  # mean over the last logging interval that had an update; NaN when none had
    figures: Mapping[str, float]  # of the last evaluation, EMA weights
    conclusion: Conclusion
    seconds: float  # of this call
    samples_per_second: float
    steps_per_second: float
    signal_number: int | None = None  # of a signal that came during the last step; whoever goes on after it stops

    @property
    def line(self) -> str:
        """The run in one line."""
        shown = ", ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in self.figures.items())
        evaluated = f"; evaluated (EMA weights): {shown}" if shown else ""
        verdict = f"; {self.conclusion.verdict}" if self.conclusion.verdict else ""
        return f"step {self.step}: loss {self.loss:.4f}{evaluated}{verdict}, {self.samples_per_second:.3g} samples/s"

    def to_json(self) -> dict[str, object]:
        return {
            "run": str(self.folder),
            "folder": str(self.folder),
            "checkpoint": str(self.checkpoint),
            "step": self.step,
            "loss": self.loss,
            "eval_loss": self.figures.get("eval_loss"),
            "figures": dict(self.figures),
            **self.conclusion.facts,
            "seconds": self.seconds,
            "samples_per_second": self.samples_per_second,
            "steps_per_second": self.steps_per_second,
        }


@dataclass
class _Run:
    """What the steps of a run work on. Only the first process has a log, and only it evaluates, draws and saves."""

    folder: Path
    state: TrainState
    checker: CaptionChecker | None
    talk: Talk
    side: SideWork
    saving: Saving
    log: RunLog | None = None
    figures: dict[str, float] = field(default_factory=dict)  # of the last evaluation

    @property
    def checkpoints(self) -> Path:
        return self.saving.checkpoints


def train(
    config: AnyConfig,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    resume_from: Path | None = None,
    strict: bool = False,
    named_changes: Sequence[str] = (),
    init: Path | None = None,
    until: int | None = None,
    copies: Address | None = None,
    audit: Callable[[], None] | None = None,
    checker: CaptionChecker | None = None,
    talk: Talk = SILENT,
) -> TrainSummary | None:
    """Trains to `train.steps` updates and leaves `checkpoint_final.pt`.

    Under torchrun every process calls this and they train as one; all but the first return None.

    Args:
        data: a shards folder; not looked at by a family that reads none.
        out: the run's folder.
        resume: continue from the newest valid checkpoint in `out`.
        resume_from: continue from this checkpoint, of this run or, into an empty `out`, of another; newer ones in `out`
            are set aside.
        strict: with `resume`, refuse when the newest checkpoint is not valid.
        named_changes: dotted keys whose change against the checkpoint is wanted.
        init: weights to start from, a file or a run's folder; the peak learning rate is halved. Of a run that is
            resumed it only says that the rate was.
        until: save and return after this update, as if stopped there; to go on, resume.
        copies: where the checkpoints are copied to while training goes on (`train/copies.py`).
        audit: what the first process does before the first step, once data are opened; what it raises ends the run.
        checker: reads edited captions back from pictures, for judgements on the way.

    Nothing is made in `out` before the inputs are known to be there. Raises `BadDataError`, `UsageError`,
    `StorageError`; `NonFiniteError` where more losses or gradients were not finite than `train.skip_nonfinite` allows,
    none of which reached the weights; `Interrupted` after a signal, with the state saved.
    """
    beginning = Beginning(resume, resume_from, strict, set(named_changes), init)
    config = beginning.configured(config, talk)
    checkpoints, family = out / "checkpoints", family_of(config)
    with ExitStack() as held:
        ranks = held.enter_context(process_group(config.train.parallel))
        talk = talk if ranks.first else SILENT
        opened = family.open_data(config, data, ranks)
        require_room(config, family.largest_batch(opened), talk, ranks.device.type == "cuda")
        stop = held.enter_context(stop_on_signal())
        if warning := launcher_warning():
            talk.warn(warning)
        with ranks.first_alone() as alone:
            if alone and audit is not None:
                audit()
        if ranks.first:
            held.enter_context(nothing_left_of_refusal(out))
            held.enter_context(folder_lock(output_folder(out)))
            sweep_temporaries(out)
        if beginning.is_new and list_checkpoints(checkpoints):
            raise UsageError(
                f"{out}: holds checkpoints of an earlier run",
                f"go on with --resume, choose another --out, or move it out of the way:"
                f" {command_line('mv', out, free_name_beside(out))}",
            )
        state = TrainState(config, opened, ranks)
        saved = beginning.bring(state, checkpoints, talk)
        run = _Run(out, state, checker, talk, SideWork(talk), _open_saving(state, out, copies, talk, held))
        if ranks.first:
            _open_records(run, held)
        begun = {**beginning.said, **family.begin(opened, saved, talk)}
        if run.log is not None and begun:
            run.log.write(state.step, begun)
        return _run_steps(run, stop, min(until or config.train.steps, config.train.steps))


def _open_saving(state: TrainState, out: Path, copies: Address | None, talk: Talk, held: ExitStack) -> Saving:
    """What saves checkpoints, closed with `held`, and what copies them."""
    store = None
    if state.ranks.first:
        tell_disk(state, out, talk)
        if copies is not None:  # closed behind the log, so that its last rows are copied
            store = held.enter_context(closing(Copies(out, copies, talk)))
    return held.enter_context(closing(Saving(out, state, store, talk)))


def _open_records(run: _Run, held: ExitStack) -> None:
    """What the run writes beside its checkpoints, closed with `held`."""
    state, out = run.state, run.folder
    write_atomic(out / "resolved.toml", config_to_toml(state.config).encode())
    if state.data.folder is not None:
        provenance = state.data.provenance
        record_data(out, state.data.folder, provenance.identity_hash, provenance.order_hash)
    run.log = held.enter_context(closing(RunLog(out, state.step, state.config, run.side)))


def _run_steps(run: _Run, stop: StopRequest, end: int) -> TrainSummary | None:
    """Steps until `end`, with what is due after each."""
    state, train_config = run.state, run.state.config.train
    first, total, seen_before, start = state.step, train_config.steps, state.samples_seen, time.monotonic()
    batches, meter = state.family.batches(state.data, first, end), Meter(state.ranks, state.family.figures)
    with run.talk.progress("train", end - first, "step") as task:
        while state.step < end:
            try:
                meter.add(train_step(state, batches))
            except ReadingError as failure:
                raise _saved_before(run, meter, failure) from failure
            # asked once: a signal that comes later waits for the next step
            if stopping := state.ranks.any(stop.wanted or run.saving.failed):
                run.saving.finish()  # where the last checkpoint could not be saved, this raises why
            step, last = state.step, state.step == total
            judges = not stopping and due(step, state.family.judge_every(state.config), last)
            if due(step, train_config.log_every, last):
                meter.ema_distance = state.ema.distance(state.model)
            if _looks(state, stopping or step == end, last):
                _look(run, meter)
            averaged = _measure(run, meter, last, judges)
            if stopping or due(step, state.config.checkpoint.every, step == end):
                _save(run, meter, last, wait=stopping or step == end)
            if averaged is not None:
                _show(run, averaged, last, judges)
            shown = {} if meter.loss is None else {"loss": meter.loss}
            task.advance(1, **shown, **dict([*run.figures.items()][:1]))
            if stopping and not last:
                number = stop.signal_number or signal.SIGTERM
                raise Interrupted(
                    f"stopped at step {step} of {total}, state saved",
                    f"dit train --resume --out {quoted(run.folder)}",
                    number,
                )
    if run.saving.saved is None:
        return None
    seconds = time.monotonic() - start
    return TrainSummary(
        run.folder,
        run.saving.saved,
        state.step,
        math.nan if meter.loss is None else meter.loss,
        run.figures,
        state.family.conclude(state.data, run.figures),
        seconds,
        (state.samples_seen - seen_before) / seconds,
        (state.step - first) / seconds,
        stop.signal_number,
    )


def due(step: int, every: int, last: bool) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and (last or step % every == 0)


def _measure(run: _Run, meter: Meter, last: bool, judges: bool) -> nn.Module | None:
    """What is evaluated and written down after a step. All processes measure together, the first one writes. Returns
    the averaged model where something looks at it after this step.
    """
    state, keys, step, log = run.state, run.state.config.train, run.state.step, run.log
    evaluates, draws = due(step, keys.eval_every, last), due(step, keys.sample_every, last)
    averaged = state.gathered_ema() if evaluates or draws or judges else None
    if averaged is not None and evaluates:
        with state.ranks.first_alone(), run.side.attempted("the evaluation", step):
            if log is not None:
                found = state.family.evaluate(state.data, averaged, state.device)
                run.figures = found.figures
                if found.figures:
                    log.write(step, {**found.figures, **found.parts})
    if due(step, keys.log_every, last):
        figures = meter.summary()
        if log is not None and figures:
            log.write(step, figures)
    return averaged


def _show(run: _Run, averaged: nn.Module, last: bool, judges: bool) -> None:
    """What is drawn and judged after a step, by the first process, once the step's checkpoint is saved."""
    family, data, step = run.state.family, run.state.data, run.state.step
    with run.state.ranks.first_alone():
        if run.log is None:
            return
        if due(step, run.state.config.train.sample_every, last):
            with run.side.attempted("the plot of the loss", step):
                run.log.plot()
            with run.side.attempted("drawing a picture", step):
                drawn = run.folder / "samples" / f"step{step:07d}_ema.png"
                family.draw(data, averaged, step, drawn)
                run.log.picture(step, drawn)
        if judges:
            with run.side.attempted("the judgement", step):
                family.judge(data, averaged, step, run.folder, run.checker, run.talk)


def _save(run: _Run, meter: Meter, last: bool, wait: bool) -> None:
    """A checkpoint; `wait`: not in the background."""
    run.saving.save({"loss": meter.loss, **run.figures}, last, wait)


def _saved_before(run: _Run, meter: Meter, failure: ReadingError) -> Exception:
    """What to raise when a micro-batch cannot be read: the reason, once the state of the last step is saved."""
    _look(run, meter)
    reason, step = failure.reason, run.state.step
    if isinstance(reason, OSError):
        reason = from_os_error(reason) or reason
    if step == 0:
        return reason
    with run.side.attempted("saving the state", step):
        _save(run, meter, last=False, wait=True)
    if isinstance(reason, DitError) and (run.saving.saved is not None or not run.state.ranks.first):
        reason.hint = f"{reason.hint}; the state of step {step} is saved: dit train --resume --out {quoted(run.folder)}"
    return reason


def train_step(state: TrainState, batches: Iterator[MicroBatch]) -> StepFigures:
    """One optimizer update, without a wait for the device: where loss or gradient is not finite, the device itself
    leaves it out (`StepFigures.made`).
    """
    config, waited, samples, losses, weighted, ids = state.config, 0.0, 0, [], [], []
    state.model.train()
    for left in reversed(range(config.train.accumulate)):
        start = time.monotonic()
        batch = next_batch(batches, state.ranks).to(state.device)
        waited += time.monotonic() - start
        with state.ranks.local_gradients(state.replica, wanted=left > 0), compiler_errors_explained():
            loss = state.family.loss(state.data, state.forward, batch)
            (loss.mean * batch.weight).backward()
        losses.append(loss)
        weighted.append(loss.mean.detach() * batch.weight)
        samples += len(batch) * state.ranks.count
        ids += batch.ids
    grad_norm = gathered(torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.train.clip))
    mean = state.ranks.mean(torch.stack(weighted).sum())
    made = torch.isfinite(mean) & torch.isfinite(grad_norm)
    state.samples_seen += samples
    rate = state.optimizer.update(state.step, made)
    state.model.zero_grad(set_to_none=True)
    state.ema.update(state.model, state.step, made)
    state.averages.update(state.model, state.step, made)
    state.step += 1
    return StepFigures(state.step, mean, grad_norm, made, rate, waited, samples, losses, ids)


def _looks(state: TrainState, stopping: bool, last: bool) -> bool:
    """Whether the host looks at what the device computed: before anything is written or shown, and at each step where
    that is no wait.
    """
    train, step = state.config.train, state.step
    intervals = (train.log_every, train.eval_every, train.sample_every, state.config.checkpoint.every)
    comes = any(due(step, every, last) for every in (*intervals, state.family.judge_every(state.config)))
    return comes or stopping or last or looking_is_free(state.device)


def looking_is_free(device: torch.device) -> bool:
    """Whether the host has no device to wait for."""
    return device.type == "cpu"


def _look(run: _Run, meter: Meter) -> None:
    """Writes down which steps since the last look were without an update, because loss or gradient was not finite.
    Raises `NonFiniteError` for the first of them beyond `train.skip_nonfinite`.
    """
    state, most = run.state, run.state.config.train.skip_nonfinite
    for left_out in meter.look():
        failure = not_finite(left_out, state.ranks)
        if state.skipped_updates >= most:
            if list_checkpoints(run.checkpoints):
                again = command_line("dit", "train", "--resume", "--out", run.folder)
                failure.hint = f"{failure.hint}; go on from the last checkpoint with: {again} -s train.lr=N"
            raise failure
        state.skipped_updates += 1
        if run.log is not None:
            facts = {"skipped_updates": state.skipped_updates, "not_finite": failure.samples}
            run.log.write(left_out.step, facts)
        run.talk.warn(f"{failure.message}; no update at this step ({state.skipped_updates} of at most {most} left out)")
