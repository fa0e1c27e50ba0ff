"""The loop: a step is an update, resuming is exact, what would spoil a run stops it with a reason."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.run_log import read_log
from dittool.config.load import load_config
from dittool.errors import BadDataError, NonFiniteError, UsageError
from dittool.families import flow
from dittool.train import loop
from dittool.train.loop import train
from tests.run_states import assert_same_bits, final_state, fresh_state, stopped_at


def test_a_run_leaves_what_the_contract_names(tiny_run):
    assert {path.name for path in tiny_run.iterdir()} >= {
        "resolved.toml",
        "log.jsonl",
        "loss.png",
        "tensorboard",
        "checkpoints",
    }
    names = {path.name for path in (tiny_run / "checkpoints").iterdir()}
    assert {
        "checkpoint_step0000006.pt",
        "checkpoint_step0000006.json",
        "checkpoint_final.pt",
        "checkpoint_final.json",
    } <= names
    state = final_state(tiny_run)
    assert {
        "format_version",
        "config",
        "model",
        "ema",
        "optimizer",
        "step",
        "samples_seen",
        "skipped_updates",
        "rng",
        "data",
    } == set(state)
    assert (state["step"], state["samples_seen"]) == (8, 32)


def test_the_resolved_configuration_repeats_the_run(family_run, family_shards, tmp_path):
    train(load_config(str(family_run / "resolved.toml")), family_shards.folder, tmp_path / "again")
    assert_same_bits(final_state(family_run), final_state(tmp_path / "again"))


@pytest.mark.parametrize("step", [3, 6])
def test_a_resumed_run_ends_with_the_same_bits(family_run, family_shards, tmp_path, step):
    out = stopped_at(family_run, step, tmp_path / "run")
    train(family_shards.config_with(), family_shards.folder, out, resume=True)
    assert_same_bits(final_state(family_run), final_state(out))
    assert [row["step"] for row in read_log(out)] == [row["step"] for row in read_log(family_run)]
    for mine, theirs in zip(read_log(out), read_log(family_run), strict=True):
        assert mine["loss"] == theirs["loss"]


@pytest.mark.row(24)
def test_a_chain_of_interruptions_with_workers_and_accumulation_ends_with_the_same_bits(
    tiny_shards, tmp_path, monkeypatch
):
    settings = ("train.accumulate=2", "checkpoint.every=100")
    train(tiny_shards.config_with(*settings), tiny_shards.folder, tmp_path / "whole")
    for stop_at, workers in ((2, 0), (5, 2), (None, 0)):
        _stop_after(monkeypatch, stop_at)
        try:
            resume = (tmp_path / "chain").exists()
            config = tiny_shards.config_with(*settings, f"train.workers={workers}")
            train(config, tiny_shards.folder, tmp_path / "chain", resume=resume, named_changes=["train.workers"])
        except loop.Interrupted as stopped:
            assert stopped.exit_code == 143
    assert_same_bits(final_state(tmp_path / "whole"), final_state(tmp_path / "chain"))


def _stop_after(monkeypatch, step: int | None) -> None:
    """As if SIGTERM had come during the step."""

    class Request:
        signal_number, wanted = signal.SIGTERM, False

    class Manager:
        def __enter__(self):
            return Request

        def __exit__(self, *_):
            return False

    def counting_step(state, batches, real=_REAL_STEP):
        figures = real(state, batches)
        Request.wanted = step is not None and state.step >= step
        return figures

    monkeypatch.setattr(loop, "stop_on_signal", Manager if step is not None else _REAL_STOP)
    monkeypatch.setattr(loop, "train_step", counting_step if step is not None else _REAL_STEP)


_REAL_STEP, _REAL_STOP = loop.train_step, loop.stop_on_signal


def test_a_run_that_forgets_its_optimizer_does_not_end_with_the_same_bits(tiny_run, tiny_shards, tmp_path, monkeypatch):
    """The comparison above can fail."""
    out = stopped_at(tiny_run, 3, tmp_path / "run")
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda *_: None)
    train(tiny_shards.config_with(), tiny_shards.folder, out, resume=True)
    with pytest.raises((AssertionError, KeyError)):
        assert_same_bits(final_state(tiny_run), final_state(out))


def test_evaluation_and_pictures_do_not_disturb_training(family_run, family_shards, tmp_path):
    config = family_shards.config_with("train.eval_every=2", "train.sample_every=4")
    train(config, family_shards.folder, tmp_path / "run")
    assert_same_bits(final_state(family_run), final_state(tmp_path / "run"))
    evaluated = [row["step"] for row in read_log(tmp_path / "run") if any(name.startswith("eval_") for name in row)]
    assert evaluated == [2, 4, 6, 8]
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == [
        "step0000004_ema.png",
        "step0000008_ema.png",
    ]


def test_what_fails_beside_training_is_counted_and_the_run_goes_on(
    tiny_run, tiny_shards, tmp_path, monkeypatch, listener
):
    seen = []

    def fail(data, model, *rest):
        seen.append(sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("*.pt")))
        raise MemoryError if len(seen) == 1 else OSError(28, "No space left on device")

    broken = dataclasses.replace(flow.FAMILY, evaluate=fail, draw=fail, judge=fail)
    monkeypatch.setattr(flow, "FAMILY", broken)
    keys = ("train.eval_every=4", "train.sample_every=4", "validate.every=4", "checkpoint.every=4")
    train(tiny_shards.config_with(*keys), tiny_shards.folder, tmp_path / "run", talk=listener)
    assert_same_bits(final_state(tiny_run), final_state(tmp_path / "run"))
    # evaluated before the checkpoint of its step is saved, drawn and judged after
    assert seen[0] == [] and seen[1] == seen[2] == ["checkpoint_step0000004.pt"]
    rows = [row for row in read_log(tmp_path / "run") if "failed" in row]
    assert [(row["step"], row["failed"]) for row in rows] == [
        (step, what) for step in (4, 8) for what in ("the evaluation", "drawing a picture", "the judgement")
    ]
    assert rows[0]["reason"] == "MemoryError" and "No space left" in rows[1]["reason"]
    assert any("the judgement failed (2 in this run)" in line for line in listener.warnings)


@pytest.mark.row(15)
@pytest.mark.parametrize("family_shards", ["flow", pytest.param("drift", marks=pytest.mark.slow)], indirect=True)
def test_sigterm_finishes_the_step_saves_and_exits_143(family_run, family_shards, tmp_path):
    out = tmp_path / "run"
    overrides = [
        word
        for override in (*family_shards.overrides, "train.steps=100000", "checkpoint.every=100000")
        for word in ("-s", override)
    ]
    places = ["--data", str(family_shards.folder), "--out", str(out)]
    command = [
        sys.executable,
        "-m",
        "dittool",
        "train",
        "--no-audit",
        "--preset",
        family_shards.preset,
        *places,
        *overrides,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS="1"))
    deadline = time.monotonic() + 60
    while not (out / "log.jsonl").exists() or not (out / "log.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "dit train --resume" in err and "Traceback" not in err
    checkpoint = load_checkpoint(resolve_checkpoint(out))
    assert checkpoint["step"] >= 1 and checkpoint["samples_seen"] == (
        family_shards.config_with().train.batch_size * checkpoint["step"]
    )


def test_resuming_an_ended_run_says_so(family_run, family_shards):
    with pytest.raises(UsageError, match="step 8 of 8"):
        train(family_shards.config_with(), family_shards.folder, family_run, resume=True)


@pytest.mark.row(25)
def test_resume_without_a_checkpoint_is_an_error(family_shards, tmp_path):
    """Row 25."""
    with pytest.raises(BadDataError):
        train(family_shards.config_with(), family_shards.folder, tmp_path / "run", resume=True)


def test_a_run_is_not_overwritten(family_run, family_shards):
    with pytest.raises(UsageError, match="checkpoints of an earlier run") as refused:
        train(family_shards.config_with(), family_shards.folder, family_run)
    assert "--resume" in refused.value.hint


@pytest.mark.row(23)
def test_a_changed_configuration_must_be_named(tiny_run, tiny_shards, tmp_path):
    """Row 23."""
    out = stopped_at(tiny_run, 6, tmp_path / "run")
    changed = tiny_shards.config_with("train.lr=1e-4", "train.steps=9")
    with pytest.raises(UsageError, match=r"train\.steps: 9 here, 8 there.*train\.lr: 0\.0001 here, 0\.002 there"):
        train(changed, tiny_shards.folder, out, resume=True)
    with pytest.raises(UsageError, match=r"train\.lr"):
        train(changed, tiny_shards.folder, out, resume=True, named_changes=["train.steps"])
    assert train(changed, tiny_shards.folder, out, resume=True, named_changes=["train.steps", "train.lr"]).step == 9


@pytest.mark.row(23)
def test_other_data_are_refused(tiny_run, tiny_shards, tmp_path):
    """Row 23."""
    from dittool.data.shards.write import shard

    shard(tiny_shards.store.folder, tmp_path / "fewer", limit=20)
    out = stopped_at(tiny_run, 6, tmp_path / "run")
    with pytest.raises(BadDataError, match="training samples"):
        train(tiny_shards.config_with(), tmp_path / "fewer", out, resume=True)


def test_data_of_another_encoder_than_configured_are_refused(tiny_shards, tmp_path):
    with pytest.raises(BadDataError, match="'builtin:words', the configuration says 'google/t5'"):
        train(tiny_shards.config_with("encoders.text=google/t5"), tiny_shards.folder, tmp_path / "run")


@pytest.mark.row(26)
def test_a_corrupt_newest_checkpoint_falls_back_to_the_one_before(family_run, family_shards, tmp_path):
    """Row 26."""
    out = stopped_at(family_run, 6, tmp_path / "run")
    path = out / "checkpoints" / "checkpoint_step0000006.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadDataError, match="checkpoint_step0000006"):
        train(family_shards.config_with(), family_shards.folder, out, resume=True, strict=True)
    train(family_shards.config_with(), family_shards.folder, out, resume=True)
    assert_same_bits(final_state(family_run), final_state(out))


@pytest.mark.row(62)
def test_non_finite_loss_stops_before_the_update(family_shards, tmp_path, poisoned):
    """Row 62."""
    named = poisoned(6)
    with pytest.raises(NonFiniteError, match=r"step 6: loss nan") as stopped:
        train(family_shards.config_with("checkpoint.every=2"), family_shards.folder, tmp_path / "run")
    assert stopped.value.message.endswith(f"Samples: {named[0]}") and stopped.value.exit_code == 6
    newest = load_checkpoint(resolve_checkpoint(tmp_path / "run"))
    assert newest["step"] == 4 and all(torch.isfinite(tensor).all() for tensor in newest["model"].values())


def test_accumulation_gives_the_gradient_of_the_whole_batch(tiny_shards):
    """Two micro-batches of one step weigh as their mean."""
    state = fresh_state(tiny_shards.config_with("train.accumulate=2"), tiny_shards.folder)
    stream = tiny_shards.stream(accumulate=2)
    before = {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}
    losses = [flow.loss(state.data, state.forward, stream[number]).mean for number in (0, 1)]
    gradients = torch.autograd.grad(sum(losses) / 2, list(state.model.parameters()), allow_unused=True)
    norm = torch.sqrt(sum(g.square().sum() for g in gradients if g is not None))
    figures = loop.train_step(state, iter([stream[0], stream[1]]))
    assert float(figures.grad_norm) == pytest.approx(float(norm), rel=1e-5)
    assert state.step == 1 and not torch.equal(before["output.weight"], state.model.output.weight)


def test_the_log_holds_losses_by_mode_and_timestep(tiny_run):
    rows = [json.loads(line) for line in (tiny_run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all({"loss", "lr", "grad_norm", "samples_per_second", "data_wait_share"} <= set(row) for row in rows)
    assert any("loss_text_only" in row for row in rows) and any("loss_t_low" in row for row in rows)


def test_a_stop_before_the_first_row_of_the_log_still_saves(family_shards, tmp_path, monkeypatch):
    _stop_after(monkeypatch, 2)
    with pytest.raises(loop.Interrupted):
        train(family_shards.config_with("train.log_every=5"), family_shards.folder, tmp_path / "run")
    assert load_checkpoint(resolve_checkpoint(tmp_path / "run"))["step"] == 2


@pytest.mark.row(58, 59)
def test_weights_to_start_from_must_fit_and_be_finite(tiny_run, tiny_shards, tmp_path):
    """Rows 58 and 59."""
    weights = final_state(tiny_run)["ema"]
    torch.save({name: tensor for name, tensor in weights.items() if "blocks.1" not in name}, tmp_path / "part.pt")
    torch.save({**weights, "output.bias": torch.full_like(weights["output.bias"], float("nan"))}, tmp_path / "nan.pt")
    for name, said in (
        ("part", "belong to another architecture"),
        ("nan", "1 tensors hold NaN or infinity: output.bias"),
    ):
        with pytest.raises(BadDataError, match=said):
            train(tiny_shards.config_with(), tiny_shards.folder, tmp_path / name, init=tmp_path / f"{name}.pt")


def test_a_warm_start_begins_at_the_old_weights_with_half_the_rate(family_run, family_shards, tmp_path):
    weights = final_state(family_run)["ema"]
    torch.save(weights, tmp_path / "old.pt")
    config = family_shards.config_with("train.steps=1", "train.warmup_steps=0", "train.lr=1e-12", "train.min_lr=0.0")
    train(config, family_shards.folder, tmp_path / "run", init=tmp_path / "old.pt")
    new = final_state(tmp_path / "run")
    assert all(torch.allclose(new["model"][name], weights[name], atol=1e-6) for name in weights)
    assert new["config"]["train"]["lr"] == 0.5e-12


def test_a_resumed_run_finds_its_preset_and_its_shards_again(dit, family_run, tmp_path, monkeypatch):
    out = stopped_at(family_run, 6, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    assert dit("train", "--resume", "--quiet").code == 0
    assert_same_bits(final_state(family_run), final_state(out))


# Updates that are left out because something was not finite


@pytest.mark.row(62)
def test_an_update_that_is_not_finite_is_left_out_up_to_a_cap(family_shards, tmp_path, poisoned):
    named = poisoned(3, 5)
    ended = train(family_shards.config_with("train.skip_nonfinite=2"), family_shards.folder, tmp_path / "run")
    state, rows = final_state(tmp_path / "run"), read_log(tmp_path / "run")
    assert (ended.step, state["samples_seen"], state["skipped_updates"]) == (
        8,
        8 * family_shards.config_with().train.batch_size,
        2,
    )
    assert all(torch.isfinite(tensor).all() for part in ("model", "ema") for tensor in state[part].values())
    assert {int(moments["step"]) for moments in state["optimizer"]["state"].values()} == {6}
    assert [(row["step"], row["skipped_updates"]) for row in rows if "not_finite" in row] == [(3, 1), (5, 2)]
    assert next(row for row in rows if row["step"] == 3) == {"step": 3, "skipped_updates": 1, "not_finite": [named[0]]}
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 4, 6, 7, 8]


@pytest.mark.row(62)
def test_one_more_than_the_cap_ends_the_run(family_shards, tmp_path, poisoned):
    poisoned(2, 4, 7)
    with pytest.raises(NonFiniteError, match="step 7: loss nan"):
        train(family_shards.config_with("train.skip_nonfinite=2"), family_shards.folder, tmp_path / "run")
    assert load_checkpoint(resolve_checkpoint(tmp_path / "run"))["step"] == 6


@pytest.mark.row(62)
def test_the_count_of_left_out_updates_is_part_of_the_state(family_shards, tmp_path, poisoned):
    """A run that is resumed does not get its cap anew, and ends with the bits of the uninterrupted one."""
    config = family_shards.config_with("train.skip_nonfinite=2")
    poisoned(2, 7)
    train(config, family_shards.folder, tmp_path / "run")
    train(config, family_shards.folder, stopped_at(tmp_path / "run", 3, tmp_path / "resumed"), resume=True)
    assert_same_bits(final_state(tmp_path / "run"), final_state(tmp_path / "resumed"))
    assert final_state(tmp_path / "resumed")["skipped_updates"] == 2
    poisoned(7, 8)
    with pytest.raises(NonFiniteError, match="step 8"):
        train(config, family_shards.folder, stopped_at(tmp_path / "run", 3, tmp_path / "again"), resume=True)


def test_a_run_of_nothing_but_nan_ends_without_a_figure(family_shards, tmp_path, poisoned):
    import math

    poisoned(*range(1, 9))
    ended = train(family_shards.config_with("train.skip_nonfinite=8"), family_shards.folder, tmp_path / "run")
    assert math.isnan(ended.loss) and ended.step == 8
