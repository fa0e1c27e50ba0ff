"""The training loop of the one-step generator, and of its toy in the plane.

    commands/train.py → this file → objective/drift.py → models/drift_dit.py

State, checkpoints, averages, schedules, logs and signals are those of the first loop (`loop.py`); what a step sees and
minimises is not. The loss is told and never judged: with one normalised temperature it is 1 whatever happens. Runs are
judged by what they draw.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dittool.ckpt.files import list_checkpoints, newest_checkpoint, record_data, rotate, save_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.config.drift_schema import DriftConfig, ToyConfig
from dittool.config.load import config_to_dict, config_to_toml
from dittool.console import SILENT, Talk
from dittool.data.provenance import Provenance
from dittool.data.shards.read import ShardSet
from dittool.data.shards.write import HOLDOUT, TRAIN
from dittool.encoders.drift_features import DriftFeatures, SeededEncoder
from dittool.errors import BadDataError, Interrupted, NonFiniteError, UsageError
from dittool.families.drift_data import ClassSamples, Groups, LatentStream, ToyStream
from dittool.families.drift_evaluation import LatentEvaluation, ToyEvaluation
from dittool.families.feature_encoder import FeatureEncoder, train_feature_encoder
from dittool.models.drift_dit import ClassConditions
from dittool.objective.drift import FieldSettings, multi_feature_loss, unconditional_weight
from dittool.objective.schedule import learning_rate
from dittool.storage import folder_lock, output_folder, sweep_temporaries, write_atomic
from dittool.train.distributed import Ranks, gathered, process_group
from dittool.train.log import RunLog
from dittool.train.loop import due, restore, warm_start
from dittool.train.signals import StopRequest, stop_on_signal
from dittool.train.state import TrainState

# draws what averaged weights make
DrawGenerator = Callable[[nn.Module, DriftConfig | ToyConfig, Provenance, dict[str, Any], Path], None]


@dataclass(frozen=True)
class GeneratorSummary:
    """Where a run ended."""

    folder: Path
    checkpoint: Path
    step: int
    figures: dict[str, float]  # of the last evaluation, EMA weights
    encoder: dict[str, float] | None  # figures of a feature encoder that was trained for this run
    faults: list[str] | None  # of a toy: why its points do not pass for real ones; None: nothing was judged
    seconds: float  # of this call
    steps_per_second: float

    @property
    def line(self) -> str:
        """The run in one line."""
        shown = ", ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in self.figures.items())
        verdict = (
            ""
            if self.faults is None
            else "; passes for real points"
            if not self.faults
            else f"; does not pass: {'; '.join(self.faults)}"
        )
        return (
            f"step {self.step}: {shown or 'not evaluated'} (EMA weights){verdict}, {self.steps_per_second:.3g} steps/s"
        )

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "run": str(self.folder), "folder": str(self.folder), "checkpoint": str(self.checkpoint)}


@dataclass
class _Run:
    """What the steps of a run work on. Only the first process has a log, an evaluation and pictures, and only it
    saves.
    """

    folder: Path
    state: TrainState
    stream: ToyStream | LatentStream
    classes: list[str]
    features: DriftFeatures | None = None  # None: the samples are their own features
    encoder: FeatureEncoder | None = None  # trained for these features; None: not trained
    log: RunLog | None = None
    evaluation: ToyEvaluation | LatentEvaluation | None = None
    draw: DrawGenerator | None = None
    losses: list[dict[str, Tensor]] = field(default_factory=list)  # of the steps since the last row of the log
    norms: list[Tensor] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def content(self) -> dict[str, Any]:
        """A checkpoint: that of every run, with the queues' sample numbers, the names of the classes, and the
        encoder where one was trained.
        """
        encoder = {} if self.encoder is None else {"feature_encoder": self.encoder.to_checkpoint()}
        return {**self.state.to_checkpoint(), "queues": self.stream.state(), "classes": self.classes, **encoder}


def train_generator(
    config: DriftConfig | ToyConfig,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    strict: bool = False,
    named_changes: Sequence[str] = (),
    init: Path | None = None,
    draw: DrawGenerator | None = None,
    talk: Talk = SILENT,
) -> GeneratorSummary | None:
    """Trains to `train.steps` updates and leaves `checkpoint_final.pt`. Arguments, errors and torchrun as for
    `loop.train`; a toy reads no data.
    """
    if init is not None:
        config = config.model_copy(update={"train": config.train.model_copy(update={"lr": config.train.lr / 2})})
    output_folder(out)
    with ExitStack() as held:
        ranks = held.enter_context(process_group(config.train.parallel))
        talk = talk if ranks.first else SILENT
        _require_equal_shares(config, ranks)
        stream, provenance, evaluation, classes = (
            _toy(config) if config.model.arch == "drift-toy" else _latents(config, data)
        )
        stop = held.enter_context(stop_on_signal())
        if ranks.first:
            held.enter_context(folder_lock(out))
            sweep_temporaries(out)
            (out / "checkpoints").mkdir(exist_ok=True)
        if not resume and list_checkpoints(out / "checkpoints"):
            raise UsageError(
                f"{out}: holds checkpoints of an earlier run",
                f"go on with --resume, choose another --out, or remove it: rm -r {out}",
            )
        state = TrainState(config, provenance, ranks)
        run = _Run(out, state, stream, classes)
        saved = _begin(run, resume, strict, set(named_changes), init, talk)
        if ranks.first:
            write_atomic(out / "resolved.toml", config_to_toml(config).encode())
            if config.model.arch == "drift":
                record_data(out, data, provenance.identity_hash)
            run.log = held.enter_context(closing(RunLog(out, state.step, config)))
            run.evaluation, run.draw = evaluation, draw
        if isinstance(stream, LatentStream):
            _freeze_features(run, evaluation, saved, talk)
        return _run_steps(run, stop, talk)


def _run_steps(run: _Run, stop: StopRequest, talk: Talk) -> GeneratorSummary | None:
    """Steps until `train.steps`, with what is due after each."""
    state, config = run.state, run.state.config
    first, total, start, saved, figures = state.step, config.train.steps, time.monotonic(), None, {}
    with talk.progress("train", total - first, "step") as task:
        while state.step < total:
            train_step(run)
            # asked once: a signal that comes later waits for the next step
            stopping = state.ranks.any(stop.signal_number is not None)
            step, last = state.step, state.step == total
            evaluates, draws = due(step, config.train.eval_every, last), due(step, config.train.sample_every, last)
            model = state.gathered_ema() if evaluates or draws else None
            if run.evaluation is not None and evaluates:
                figures = run.evaluation.figures(model, state.device)
                run.log.write(step, figures)
            if due(step, config.train.log_every, last):
                _log(run, time.monotonic() - start, step - first)
            if run.draw is not None and draws:
                _draw(run, model)
            if stopping or due(step, config.checkpoint.every, last):
                content = run.content()
                if state.ranks.first:
                    saved = save_checkpoint(run.checkpoints, content, final=last, summary=figures)
                    rotate(run.checkpoints, config.checkpoint.keep, config.checkpoint.keep_every)
            task.advance(1, **{name: figures[name] for name in ("eval_energy",) if name in figures})
            if stopping and not last:
                number = stop.signal_number or signal.SIGTERM
                raise Interrupted(
                    f"stopped at step {step} of {total}, state saved", f"dit train --resume --out {run.folder}", number
                )
    if saved is None:
        return None
    seconds = time.monotonic() - start
    faults = run.evaluation.faults(figures) if figures and isinstance(run.evaluation, ToyEvaluation) else None
    encoder = None if run.encoder is None else run.encoder.figures
    return GeneratorSummary(run.folder, saved, state.step, figures, encoder, faults, seconds, (total - first) / seconds)


def _draw(run: _Run, model: nn.Module) -> None:
    state, about = run.state, {"step": run.state.step, "classes": run.classes}
    if isinstance(run.evaluation, ToyEvaluation):
        about["points"] = run.evaluation.points(model, state.device)
    run.draw(model, state.config, state.data, about, run.folder / "samples" / f"step{state.step:07d}_ema.png")


def train_step(run: _Run) -> None:
    """One optimizer update. Raises `NonFiniteError` before the weights are touched."""
    state, config = run.state, run.state.config
    autocast = torch.autocast(state.device.type, torch.bfloat16) if config.train.precision == "bf16" else nullcontext()
    state.model.train()
    run.stream.advance()
    for micro in range(config.train.accumulate):
        groups = run.stream.groups(*_share(config, state.step, micro, state.ranks)).to(state.device)
        with state.ranks.local_gradients(state.replica, wanted=micro < config.train.accumulate - 1):
            losses = _losses(run, groups, autocast)
            (_minimised(config, losses) / config.train.accumulate).backward()
        run.losses.append({name: loss.detach() for name, loss in losses.items()})
    norm = gathered(torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.train.clip))
    run.norms.append(norm)
    loss = state.ranks.mean(_minimised(config, run.losses[-1]))
    if not (torch.isfinite(loss) and torch.isfinite(norm)):
        raise NonFiniteError(
            f"step {state.step + 1}: loss {float(loss):g}, gradient norm {float(norm):g}; stopped before the update",
            "check the data with dit shard --verify and dit audit, lower train.lr, then dit train --resume",
        )
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config.train)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(state.model, state.step)
    state.step += 1
    state.samples_seen += config.train.batch_size * config.train.accumulate


def _losses(run: _Run, groups: Groups, autocast: Any) -> dict[str, Tensor]:
    """By kind of feature, the mean loss of this micro-batch's fields."""
    drift, (count, generated) = run.state.config.drift, groups.noise.shape[:2]
    labels, alpha = (each.repeat_interleave(generated) for each in (groups.labels, groups.alpha))
    with autocast:
        samples = run.state.replica(
            groups.noise.flatten(0, 1), alpha, ClassConditions(labels, groups.style.flatten(0, 1))
        ).float()
    weight = unconditional_weight(groups.alpha, generated, drift.unconditional)
    settings = FieldSettings(
        drift.temperatures, drift.normalise_distances, drift.normalise_drift, drift.repulsion, drift.kernel_values
    )
    with torch.no_grad():
        positives, unconditional = (
            _features(run, each.flatten(0, 1), count) for each in (groups.positives, groups.unconditional)
        )
    return multi_feature_loss(_features(run, samples, count), positives, unconditional, weight, settings)


def _minimised(config: DriftConfig | ToyConfig, losses: dict[str, Tensor]) -> Tensor:
    """The sum over kinds of features, those of maps weighted."""
    return sum(loss * (1 if kind == "raw" else config.drift.maps_weight) for kind, loss in losses.items())


def _features(run: _Run, samples: Tensor, groups: int) -> dict[str, Tensor]:
    """By kind (K, n, L, C), of samples (K·n, *shape)."""
    found = {"raw": samples[:, None]} if run.features is None else run.features(samples)
    return {kind: vectors.reshape(groups, -1, *vectors.shape[1:]) for kind, vectors in found.items()}


def _share(config: DriftConfig | ToyConfig, step: int, micro: int, ranks: Ranks) -> tuple[int, int]:
    """First group and number of groups of this process in a micro-batch."""
    groups = config.train.batch_size // config.drift.generated
    mine = groups // ranks.count
    return (step * config.train.accumulate + micro) * groups + ranks.rank * mine, mine


def _require_equal_shares(config: DriftConfig | ToyConfig, ranks: Ranks) -> None:
    groups = config.train.batch_size // config.drift.generated
    if groups % ranks.count:
        raise UsageError(
            f"{groups} groups a step do not divide into {ranks.count} processes",
            f"set train.batch_size to a multiple of {ranks.count} × drift.generated ="
            f" {ranks.count * config.drift.generated}",
        )


def _begin(run: _Run, resume: bool, strict: bool, named: set[str], init: Path | None, talk: Talk) -> dict[str, Any]:
    """Fresh, warm-started, or exactly where a checkpoint left it. Returns that checkpoint, empty when there is none."""
    if resume:
        newest = newest_checkpoint(run.checkpoints, talk, strict)
        restore(newest, run.state, named, talk)
        saved = load_checkpoint(newest.path)
        if isinstance(run.stream, LatentStream):
            run.stream.restore(saved["queues"])
        return saved
    if init is not None:
        warm_start(run.state, init)
    if isinstance(run.stream, LatentStream):
        run.stream.fill()
    return {}


def _freeze_features(run: _Run, judged: LatentEvaluation, saved: dict[str, Any], talk: Talk) -> None:
    """What the fields are computed in. A trained encoder comes from the checkpoint, unless a resumed run asks for
    another one.
    """
    config, ranks = run.state.config, run.state.ranks
    if config.drift.encoder == "trained":
        kept = saved.get("feature_encoder")
        if kept is not None and saved["config"]["feature_encoder"] == config_to_dict(config)["feature_encoder"]:
            run.encoder = FeatureEncoder.from_checkpoint(kept, config, ranks)
        else:
            run.encoder = train_feature_encoder(config, run.stream.samples, judged, ranks, talk)
            talk.note(run.encoder.line)
            if run.log is not None:
                run.log.write(
                    run.state.step, {f"feature_encoder_{name}": value for name, value in run.encoder.figures.items()}
                )
    encoder = SeededEncoder(config.model.channels) if run.encoder is None else run.encoder.encoder
    run.features = DriftFeatures(config.drift.features, encoder).to(ranks.device)


def _toy(config: ToyConfig) -> tuple[ToyStream, Provenance, ToyEvaluation, list[str]]:
    """A toy's data are its configuration."""
    return ToyStream(config), Provenance.of_toy(config_to_dict(config)["toy"]), ToyEvaluation(config), []


def _latents(config: DriftConfig, data: Path) -> tuple[LatentStream, Provenance, LatentEvaluation, list[str]]:
    shards = ShardSet.open(data)
    refs, held = shards.split(TRAIN), shards.split(HOLDOUT)
    _require_fitting(config, shards)
    provenance = Provenance.of(shards, refs, config)
    stream = LatentStream(config, shards, refs, provenance.norm)
    judged = ClassSamples(shards, held, provenance.norm, config.train.seed, partial=True) if held else stream.samples
    return stream, provenance, LatentEvaluation(config, judged), shards.classes


def _require_fitting(config: DriftConfig, shards: ShardSet) -> None:
    """Raises `BadDataError` when the latents are not those that the model draws."""
    model, stride = config.model, shards.card.vae.stride
    columns, rows = model.cells[1] * stride, model.cells[0] * stride
    found = sorted({ref.bucket for ref in shards.samples})
    if found != [f"{columns}x{rows}"]:
        raise BadDataError(
            f"{shards.folder}: images of {', '.join(found)}; model.input {model.input} with a codec of stride {stride}"
            f" draws {columns}x{rows} alone",
            f'embed with data.buckets = ["{columns}x{rows}"], or change model.input',
        )
    facts = {
        "model.channels": (model.channels, shards.dims["latent_channels"]),
        "model.classes": (model.classes, len(shards.classes)),
    }
    if not shards.classes:
        facts.pop("model.classes")  # ClassSamples says what is wrong
    for key, (mine, theirs) in facts.items():
        if mine != theirs:
            raise BadDataError(f"{shards.folder}: {key} is {mine}, the data have {theirs}", f"set -s {key}={theirs}")
    if (vae := shards.card.vae.id) != config.encoders.vae:
        raise BadDataError(
            f"{shards.folder}: latents come from '{vae}', the configuration says '{config.encoders.vae}'",
            f"say it: -s encoders.vae={vae}",
        )


def _log(run: _Run, seconds: float, steps: int) -> None:
    """Means since the last row. All processes must ask together."""
    kinds = {
        kind: run.state.ranks.mean(torch.stack([one[kind] for one in run.losses]).mean()) for kind in run.losses[0]
    }
    figures = {
        "loss": float(_minimised(run.state.config, kinds)),
        **{f"loss_{kind}": float(loss) for kind, loss in kinds.items()},
    }
    figures |= {"lr": run.state.optimizer.param_groups[0]["lr"], "grad_norm": float(torch.stack(run.norms).mean())}
    figures["steps_per_second"] = steps / seconds
    if run.log is not None:
        run.log.write(run.state.step, figures)
    run.losses.clear()
    run.norms.clear()
