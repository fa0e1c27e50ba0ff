"""The training loop: from a configuration and shards to checkpoints.

    commands/train.py → this file → objective/flow.py → models/dit.py

A step is one optimizer update: `accumulate` micro-batches, one clipped AdamW update, one EMA update. What a step sees
is a function of its number alone (`data/shards/stream.py`), so stopping and resuming anywhere gives the bits of the
uninterrupted run.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dittool.ckpt.files import CheckpointFile, list_checkpoints, newest_checkpoint, record_data, rotate, save_checkpoint
from dittool.ckpt.load import load_checkpoint, load_weights, require_finite, require_fit
from dittool.config.load import config_to_toml
from dittool.config.schema import Config
from dittool.console import SILENT, Talk
from dittool.data.provenance import Provenance
from dittool.data.shards.read import ShardSet
from dittool.data.shards.stream import Batch, BatchStream
from dittool.data.shards.write import HOLDOUT, TRAIN
from dittool.errors import BadDataError, Interrupted, NonFiniteError, UsageError
from dittool.families.flow_evaluation import Evaluation
from dittool.objective.flow import FlowLoss, dropout_modes, flow_loss, timesteps
from dittool.objective.schedule import learning_rate
from dittool.sampling.pipeline import Pipeline
from dittool.storage import folder_lock, output_folder, sweep_temporaries, write_atomic
from dittool.train.batches import reader_errors_explained, training_stream
from dittool.train.compiled import compiler_errors_explained
from dittool.train.distributed import gathered, parts_like, process_group
from dittool.train.log import Meter, RunLog, StepFigures
from dittool.train.signals import StopRequest, stop_on_signal
from dittool.train.state import TrainState, require_same_run

Draw = Callable[[Pipeline, Path], None]  # draws pictures into a file
Judge = Callable[[Pipeline], None]  # validates


@dataclass(frozen=True)
class TrainSummary:
    """Where a run ended."""

    folder: Path
    checkpoint: Path
    step: int
    loss: float  # mean over the last logging interval that had an update; NaN when none had
    eval_loss: float | None
    seconds: float  # of this call
    samples_per_second: float


def train(
    config: Config,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    strict: bool = False,
    named_changes: Sequence[str] = (),
    init: Path | None = None,
    draw: Draw | None = None,
    judge: Judge | None = None,
    talk: Talk = SILENT,
) -> TrainSummary | None:
    """Trains to `train.steps` updates and leaves `checkpoint_final.pt`.

    Under torchrun every process calls this and they train as one; all but the first return None.

    Args:
        data: a shards folder.
        out: the run's folder.
        resume: continue from the newest valid checkpoint in `out`.
        strict: with `resume`, refuse when the newest checkpoint is not valid.
        named_changes: dotted keys whose change against the checkpoint is wanted.
        init: weights to start from, made by `dit warmstart`; the peak learning rate is halved.
        draw: called every `train.sample_every` steps with the EMA weights.
        judge: the same every `validate.every` steps.

    Raises `BadDataError`, `UsageError`, `StorageError`; `NonFiniteError` before an update would spoil the weights;
    `Interrupted` after a signal, with the state saved.
    """
    if init is not None:
        config = config.model_copy(update={"train": config.train.model_copy(update={"lr": config.train.lr / 2})})
    checkpoints = output_folder(out) / "checkpoints"
    with ExitStack() as held:
        ranks = held.enter_context(process_group(config.train.parallel))
        talk = talk if ranks.first else SILENT
        # Data: what the run sees, and the identity that its checkpoints carry.
        shards = ShardSet.open(data)
        require_features(config, shards)
        refs = shards.split(TRAIN)
        provenance = Provenance.of(shards, refs, config)
        stream = training_stream(config, shards, refs, provenance.norm, ranks)

        stop = held.enter_context(stop_on_signal())
        if ranks.first:
            held.enter_context(folder_lock(out))
            sweep_temporaries(out)
            checkpoints.mkdir(exist_ok=True)
        if not resume and list_checkpoints(checkpoints):
            raise UsageError(
                f"{out}: holds checkpoints of an earlier run",
                f"go on with --resume, choose another --out, or remove it: rm -r {out}",
            )
        # State: fresh, warm-started, or exactly where a checkpoint left it.
        state = TrainState(config, provenance, ranks)
        if resume:
            restore(newest_checkpoint(checkpoints, talk, strict), state, set(named_changes), talk)
        elif init is not None:
            warm_start(state, init)
        run = _Run(out, checkpoints, state, stream)
        if ranks.first:
            write_atomic(out / "resolved.toml", config_to_toml(config).encode())
            record_data(out, data, provenance.identity_hash)
            run.log = held.enter_context(closing(RunLog(out, state.step, config)))
            run.evaluation, run.draw, run.judge = _evaluation(config, shards, provenance), draw, judge
        with reader_errors_explained():
            return _run_steps(run, stop, talk)


@dataclass
class _Run:
    """What the steps of a run work on. Only the first process has a log, an evaluation, pictures and a judge, and
    only it saves.
    """

    folder: Path
    checkpoints: Path
    state: TrainState
    stream: BatchStream
    log: RunLog | None = None
    evaluation: Evaluation | None = None
    draw: Draw | None = None
    judge: Judge | None = None


def _run_steps(run: _Run, stop: StopRequest, talk: Talk) -> TrainSummary | None:
    """Steps until `train.steps`, with what is due after each."""
    state, train_config = run.state, run.state.config.train
    first, total, seen_before, start = state.step, train_config.steps, state.samples_seen, time.monotonic()
    loader = run.stream.loader(
        first * train_config.accumulate, total * train_config.accumulate, train_config.workers, state.device
    )
    batches, meter = iter(loader), Meter(state.ranks)
    pipeline = Pipeline(state.ema.model, state.config, state.data, state.step)
    saved, eval_loss = None, None
    with talk.progress("train", total - first, "step") as task:
        while state.step < total:
            try:
                meter.add(train_step(state, batches))
            except NonFiniteError as failure:
                _skip_update(run, failure, talk)
            # asked once: a signal that comes later waits for the next step
            stopping = state.ranks.any(stop.signal_number is not None)
            step, last = state.step, state.step == total
            evaluates, draws = due(step, train_config.eval_every, last), due(step, train_config.sample_every, last)
            judges = due(step, state.config.validate_.every, last) and not stopping
            if evaluates or draws or judges:
                pipeline.model, pipeline.step = state.gathered_ema(), step
            if run.evaluation is not None and evaluates:
                eval_loss = run.evaluation.loss(pipeline.model, state.device)
                run.log.write(step, {"eval_loss": eval_loss})
            if due(step, train_config.log_every, last):
                figures = meter.summary()
                if run.log is not None and figures:
                    run.log.write(step, figures)
            if run.log is not None and draws:
                run.log.plot()
            if run.draw is not None and draws:
                run.draw(pipeline, run.folder / "samples" / f"step{step:07d}_ema.png")
            if stopping or due(step, state.config.checkpoint.every, last):
                content = state.to_checkpoint()
                if state.ranks.first:
                    saved = save_checkpoint(
                        run.checkpoints, content, final=last, summary={"loss": meter.loss, "eval_loss": eval_loss}
                    )
                    rotate(run.checkpoints, state.config.checkpoint.keep, state.config.checkpoint.keep_every)
            if run.judge is not None and judges:
                run.judge(pipeline)
            task.advance(1, **({} if meter.loss is None else {"loss": meter.loss}))
            if stopping and not last:
                number = stop.signal_number or signal.SIGTERM
                raise Interrupted(
                    f"stopped at step {step} of {total}, state saved", f"dit train --resume --out {run.folder}", number
                )
    if saved is None:
        return None
    seconds = time.monotonic() - start
    loss = math.nan if meter.loss is None else meter.loss
    return TrainSummary(
        run.folder, saved, state.step, loss, eval_loss, seconds, (state.samples_seen - seen_before) / seconds
    )


def due(step: int, every: int, last: bool) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and (last or step % every == 0)


def train_step(state: TrainState, batches: Iterator[Batch]) -> StepFigures:
    """One optimizer update. Raises `NonFiniteError` before the weights are touched."""
    config, waited, losses, weighted, ids = state.config, 0.0, [], [], []
    autocast = torch.autocast(state.device.type, torch.bfloat16) if config.train.precision == "bf16" else nullcontext()
    state.model.train()
    for left in reversed(range(config.train.accumulate)):
        start = time.monotonic()
        batch = next(batches).to(state.device)
        waited += time.monotonic() - start
        with state.ranks.local_gradients(state.replica, wanted=left > 0), compiler_errors_explained():
            with autocast:
                loss = _batch_loss(state, batch)
            (loss.mean * batch.weight).backward()
        losses.append(loss)
        weighted.append(loss.mean.detach() * batch.weight)
        ids += batch.ids
    grad_norm = gathered(torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.train.clip))
    mean = state.ranks.mean(torch.stack(weighted).sum())
    state.samples_seen += len(ids) * state.ranks.count
    _require_finite(state, mean, grad_norm, losses, ids)
    rate = learning_rate(state.step, config.train)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(state.model, state.step)
    state.step += 1
    return StepFigures(mean, grad_norm, rate, waited, losses)


def _batch_loss(state: TrainState, batch: Batch) -> FlowLoss:
    config = state.config
    t = timesteps(batch.timestep_draw, config.flow.timestep_sampling, config.flow.shift)
    d = config.dropout
    modes = dropout_modes(batch.mode_draw, [d.none, d.text_only, d.reference_only, d.both])
    return flow_loss(state.replica, batch.latents, batch.noise, t, batch.conditions, modes)


def _require_finite(state: TrainState, loss: Tensor, grad_norm: Tensor, losses: list[FlowLoss], ids: list[str]) -> None:
    """Raises `NonFiniteError` in all processes alike: the loss and the gradient that it looks at are those of all."""
    if torch.isfinite(loss) and torch.isfinite(grad_norm):
        return
    finite = torch.cat([torch.isfinite(loss.per_sample) for loss in losses]).tolist()
    broken = state.ranks.gather_names([sample for sample, good in zip(ids, finite, strict=True) if not good])
    suspects = broken or state.ranks.gather_names(ids)
    raise NonFiniteError(
        f"step {state.step + 1}: loss {float(loss):g}, gradient norm {float(grad_norm):g}; stopped before the update. "
        f"Samples: {', '.join(suspects[:8])}" + (f" and {len(suspects) - 8} more" if len(suspects) > 8 else ""),
        "check these samples with dit shard --verify and dit audit, lower train.lr, then dit train --resume",
        suspects,
    )


def _skip_update(run: _Run, failure: NonFiniteError, talk: Talk) -> None:
    """Leaves out the update of a step that was not finite, or raises the failure when `train.skip_nonfinite` of
    them were left out.
    """
    state, most = run.state, run.state.config.train.skip_nonfinite
    if state.skipped_updates >= most:
        raise failure
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.skipped_updates += 1
    if run.log is not None:
        run.log.write(state.step, {"skipped_updates": state.skipped_updates, "not_finite": failure.samples})
    talk.warn(f"{failure.message}; no update at this step ({state.skipped_updates} of at most {most} left out)")


def require_features(config: Config, shards: ShardSet) -> None:
    """Raises `BadDataError` when the data come from other encoders than the configuration names."""
    card, wanted = shards.card, config.encoders
    for made, name in ((card.image, wanted.image), (card.text, wanted.text), (card.vae, wanted.vae)):
        if made.id != name:
            raise BadDataError(
                f"{shards.folder}: features come from {made.kind} encoder '{made.id}', the configuration says '{name}'",
                "embed with this preset into another folder, or say what the data are:"
                f" -s encoders.{made.kind}={made.id}",
            )


def _evaluation(config: Config, shards: ShardSet, provenance: Provenance) -> Evaluation | None:
    held = shards.split(HOLDOUT)
    if not config.train.eval_every or not held:
        return None
    return Evaluation(
        shards, held, provenance.norm, config.flow.timestep_sampling, config.flow.shift, config.model.patches
    )


def restore(newest: CheckpointFile, state: TrainState, named: set[str], talk: Talk) -> None:
    total = state.config.train.steps
    content = load_checkpoint(newest.path)
    for change in require_same_run(content, state.config, state.data, named):
        talk.note(f"resuming with a change: {change}")
    for part in ("model", "ema"):
        require_fit(content[part], state.model.state_dict(), f"{newest.path}: {part}")
        require_finite(content[part], f"{newest.path}: {part}")
    state.restore(content)
    if state.step >= total:
        raise UsageError(
            f"{newest.path}: step {state.step} of {total} is the end of this run",
            "train on with -s train.steps=N above that",
        )
    talk.note(f"resumed from {newest.path} at step {state.step}")


def warm_start(state: TrainState, init: Path) -> None:
    weights = load_weights(init)
    require_fit(weights, state.model.state_dict(), str(init))
    require_finite(weights, str(init))
    for model in (state.model, state.ema.model):
        model.load_state_dict(parts_like(weights, model.state_dict()))
