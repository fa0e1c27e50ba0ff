"""Where a run begins: at step 0 with fresh weights or others' (`--init`), or exactly where a checkpoint left it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dittool.ckpt.files import (
    CheckpointFile,
    list_checkpoints,
    newest_checkpoint,
    newest_run,
    resolve_checkpoint,
    run_folder,
    sidecar_path,
)
from dittool.ckpt.load import load_checkpoint, require_finite, require_fit
from dittool.ckpt.run_log import read_log
from dittool.ckpt.sharded import is_sharded
from dittool.ckpt.warmstart import old_configuration, other_meanings
from dittool.ckpt.weights import load_weights
from dittool.config.architectures import AnyConfig
from dittool.config.load import changed, config_to_dict
from dittool.console import Talk
from dittool.data.identity import differences
from dittool.errors import BadDataError, UsageError
from dittool.models.alignment import is_training_only
from dittool.nearest import did_you_mean
from dittool.shell import command_line, quoted
from dittool.train.distributed import parts_like
from dittool.train.state import TrainState, require_same_run

SET_ASIDE = "set_aside"  # folder of a run: what was newer than the checkpoint that was chosen


@dataclass(frozen=True)
class Beginning:
    """What was asked for. Arguments as for `loop.train`."""

    resume: bool
    resume_from: Path | None
    strict: bool
    named_changes: set[str]
    init: Path | None

    @property
    def is_new(self) -> bool:
        """Whether the run begins at step 0."""
        return not self.resume and self.resume_from is None

    @property
    def said(self) -> dict[str, object]:
        """For the first row of a new run's log."""
        return {"init": str(self.init)} if self.is_new and self.init is not None else {}

    def configured(self, config: AnyConfig, talk: Talk) -> AnyConfig:
        """The configuration of the run. Raises `UsageError` where the weights to begin with are not there."""
        if self.init is None:
            return config
        if self.is_new:
            if not self.init.exists():
                hint = f"make it with: dit warmstart OLD --preset P --out {quoted(self.init)}"
                raise UsageError(f"--init {self.init}: no such file", did_you_mean(self.init, hint))
            require_same_meaning(self.init, config, talk)
        return for_warm_start(config, talk)

    def step(self, checkpoints: Path, total: int, talk: Talk) -> int:
        """Where the run of `total` steps begins, by what its checkpoints say of themselves; none is loaded. Raises
        `UsageError` at its end, `BadDataError` for a damaged checkpoint.
        """
        if self.is_new:
            return 0
        if self.resume_from is not None:
            found = chosen_checkpoint(self.resume_from, checkpoints)
        else:
            found = newest_checkpoint(checkpoints, talk, self.strict)
        require_steps_left(found.step or 0, total, found.path)
        return found.step or 0

    def bring(self, state: TrainState, checkpoints: Path, talk: Talk) -> dict[str, Any]:
        """Brings a fresh state to where the run begins, and returns the checkpoint that it came from; {}: none."""
        if self.resume_from is not None:
            chosen = chosen_checkpoint(self.resume_from, checkpoints)
            saved = restore(chosen, state, self.named_changes, talk)
            require_one_step(state, chosen.path)
            if state.ranks.first:
                set_aside_newer(checkpoints, state.step, talk)
            return saved
        if self.resume:
            newest = newest_checkpoint(checkpoints, talk, self.strict)
            saved = restore(newest, state, self.named_changes, talk)
            require_one_step(state, newest.path)
            return saved
        if self.init is not None:
            warm_start(state, resolve_checkpoint(self.init, talk=talk) if self.init.is_dir() else self.init)
        if state.ranks.first:
            set_aside_log(checkpoints.parent, talk)
        return {}


def for_warm_start(config: AnyConfig, talk: Talk) -> AnyConfig:
    """The configuration of a run that begins with trained weights: half of the peak learning rate, which is written
    down in it, so that it is not halved again when that configuration is given.
    """
    train = config.train
    if train.lr_halved:
        return config
    lr = train.lr / 2
    also = "" if train.muon_lr is None else f", train.muon_lr {train.muon_lr:g} becomes {train.muon_lr / 2:g}"
    talk.note(f"--init: train.lr {train.lr:g} becomes {lr:g}{also} (keep it with -s train.lr_halved=true)")
    changes = {"train.lr": lr, "train.min_lr": min(train.min_lr, lr), "train.lr_halved": True}
    if train.muon_lr is not None:
        changes["train.muon_lr"] = train.muon_lr / 2
    return changed(config, changes, "halved for --init")


def require_same_meaning(init: Path, config: AnyConfig, talk: Talk) -> None:
    """Weights of the right shapes may be of a model that computes otherwise with them. Raises `UsageError` for other
    heads, patches or encoders than the file remembers, and warns of other keys of the model.
    """
    before = old_configuration(resolve_checkpoint(init, talk=talk))
    old, new = ({} if one is None else config_to_dict(one)["model"] for one in (before, config))
    if before is None or old["arch"] != new["arch"]:
        return
    if changes := other_meanings(before, config):
        carried = command_line("dit", "warmstart", init, "--preset", "P", "--out", "W.safetensors")
        raise UsageError(
            f"--init {init}: weights of another model: {'; '.join(changes)}",
            f"carry them over with: {carried} (a rectified flow's), or train what they are of",
        )
    changes = [line for line in differences(new, old) if not line.startswith("gradient_checkpointing")]
    if changes:
        talk.warn(f"--init {init}: another model's weights: {'; '.join(f'model.{line}' for line in changes)}")


def warm_start(state: TrainState, init: Path) -> None:
    """Begins at these weights, the average too. What serves training alone begins fresh where the file has none, and is
    left out where this run needs none.
    """
    present = state.model.state_dict()
    weights = {name: part for name, part in load_weights(init).items() if name in present or not is_training_only(name)}
    needed = {name: part for name, part in present.items() if name in weights or not is_training_only(name)}
    require_fit(weights, needed, str(init))
    require_finite(weights, str(init))
    for model in (state.model, state.ema.model):
        model.load_state_dict(parts_like(weights, model.state_dict()), strict=False)


def restore(newest: CheckpointFile, state: TrainState, named: set[str], talk: Talk) -> dict[str, Any]:
    """Brings the state to where a checkpoint stood, and returns the checkpoint. Raises `UsageError` and `BadDataError`
    when it is of another run, or of this run's end.
    """
    total = state.config.train.steps
    content = load_checkpoint(newest.path, lazily=("model", "ema", "optimizer", "snapshots"))
    for change in require_same_run(content, state.config, state.data.provenance, named):
        talk.note(f"resuming with a change: {change}")
    for part in ("model", "ema"):
        require_fit(content[part], state.model.state_dict(), f"{newest.path}: {part}")
        require_finite(content[part], f"{newest.path}: {part}")
    state.restore(content)
    require_steps_left(state.step, total, newest.path)
    talk.note(f"resumed from {newest.path} at step {state.step}")
    return content


def require_one_step(state: TrainState, checkpoint: Path) -> None:
    """Raises `BadDataError` where the processes of a run found checkpoints of different steps, as on nodes that do not
    share its folder.
    """
    steps = state.ranks.gather(torch.tensor([state.step])).tolist()
    if len(set(steps)) > 1:
        stand = ", ".join(f"process {rank} at {step}" for rank, step in enumerate(steps))
        raise BadDataError(
            f"{checkpoint}: the processes of this run would go on from different steps: {stand}",
            "give all nodes one folder for the run (--out), or copy the newest checkpoint and its .json to each",
        )


def require_steps_left(step: int, total: int, checkpoint: Path) -> None:
    """Raises `UsageError` at the end of a run."""
    if step >= total:
        raise UsageError(
            f"{checkpoint}: step {step} of {total} is the end of this run",
            "train on with -s train.steps=N above that",
        )


def chosen_checkpoint(path: Path, checkpoints: Path) -> CheckpointFile:
    """The checkpoint that a run goes on from instead of its newest; `checkpoints`: of the run that goes on.

    Raises `UsageError` for a file that is none, or of another run than the one that has checkpoints there already, and
    `BadDataError` for a damaged one.
    """
    found = next((file for file in list_checkpoints(path.parent) if file.path.name == path.name), None)
    if found is None:
        raise UsageError(
            f"--resume-from {path}: no checkpoint of a run",
            "name a checkpoint_step….pt; to begin a new run from other weights: --init",
        )
    if list_checkpoints(checkpoints) and path.parent.resolve() != checkpoints.resolve():
        raise UsageError(
            f"--resume-from {path}: {checkpoints.parent} holds checkpoints of its own",
            "go on in the checkpoint's own run (leave --out out), or in a new folder (another --out)",
        )
    if reason := found.verify():
        raise BadDataError(f"{path}: {reason}", "choose another checkpoint, or go on from the newest valid: --resume")
    return found


def set_aside_newer(checkpoints: Path, step: int, talk: Talk) -> None:
    """Moves the checkpoints after a step, with a copy of the log, out of the way: the steps to come may differ."""
    newer = [file for file in list_checkpoints(checkpoints) if file.step is None or file.step > step]
    if not newer:
        return
    run = checkpoints.parent
    place = _new_place_aside(run, step)
    if (run / "log.jsonl").is_file():
        shutil.copy2(run / "log.jsonl", place)
    for file in newer:
        for path in (sidecar_path(file.path), file.path):  # in this order it stops to count at once
            if path.exists():
                os.replace(path, place / path.name)
    talk.note(f"{len(newer)} checkpoints after step {step} are kept in {place}")


def set_aside_log(run: Path, talk: Talk) -> None:
    """Of a new run in a folder without checkpoints that holds the log of an earlier one: keeps what is left of that."""
    rows = read_log(run)
    if not rows:
        return
    last = rows[-1]["step"]
    place = _new_place_aside(run, last)
    for name in ("log.jsonl", "resolved.toml", "loss.png"):
        if (run / name).is_file():
            os.replace(run / name, place / name)
    talk.warn(
        f"{run}: the log of an earlier run reaches step {last}, and none of its checkpoints is there: begins anew, and"
        f" keeps that log in {place}"
    )


def _new_place_aside(run: Path, step: int) -> Path:
    """A new folder in a run for what its next steps would write over."""
    number = 1
    while (place := run / SET_ASIDE / f"step{step:07d}_{number}").exists():
        number += 1
    place.mkdir(parents=True)
    return place


def run_folders(preset: str | None, out: Path | None, resume_from: Path | None, resume: bool) -> tuple[Path, Path]:
    """The folder of a run, and the one whose `resolved.toml` and data it takes where nothing else is named. Raises
    `UsageError` where there is none to resume, and no preset named nor written down.
    """
    own = out if resume_from is None else run_folder(resume_from)
    if out is None:
        out = own or (newest_run(Path("runs")) if preset is None else Path("runs") / Path(preset).stem)
    own = own or out
    if resume and not out.is_dir():
        hint = did_you_mean(out, "check the path, or begin it: leave --resume out")
        raise UsageError(f"--out {out}: no such run to resume", hint)
    if preset is None and not (own / "resolved.toml").is_file():
        hint = did_you_mean(own, "name it: --preset P")
        raise UsageError(f"{own}: no run there whose resolved.toml says what to train", hint)
    return out, own


def require_one_beginning(
    preset: str | None, resume: bool, continue_: bool, resume_from: Path | None, init: Path | None, strict: bool
) -> None:
    """Raises `UsageError` for options that say differently where the run begins."""
    going_on = {"--resume": resume, "--continue": continue_, "--resume-from": resume_from is not None}
    given = [name for name, is_given in going_on.items() if is_given]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} exclude each other",
            "--resume goes on from the newest checkpoint, --resume-from from the one that is named, --continue also"
            " begins where there is none",
        )
    if init is not None and given and not continue_:
        raise UsageError(
            f"{given[0]} and --init exclude each other",
            f"--init starts a new run from old weights; {given[0]} goes on with a run; --continue --init W does"
            " whichever is due",
        )
    if resume_from is not None and not (resume_from.is_file() or is_sharded(resume_from)):
        raise UsageError(
            f"--resume-from {resume_from}: no such file",
            did_you_mean(resume_from, "name one of runs/NAME/checkpoints"),
        )
    if preset is None and not given:
        raise UsageError("no preset: what shall be trained?", "dit train --preset demo, or see them with: dit presets")
    if strict and not (resume or continue_):
        raise UsageError("--strict has no effect without --resume", "add --resume, or leave --strict out")
