"""Training of the one-step generator: checkpoints, exact resume, several processes, and errors that name both sides."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from dittool.audit.runner import audit
from dittool.ckpt.files import list_checkpoints
from dittool.ckpt.load import load_checkpoint
from dittool.config.load import config_to_toml, load_config
from dittool.data.normalisation import LatentNorm
from dittool.data.shards.read import ShardSet
from dittool.errors import BadDataError, Interrupted, NonFiniteError, UsageError
from dittool.families.drift_data import ClassSamples, LatentStream
from dittool.train import drift_loop
from dittool.train.drift_loop import train_generator
from dittool.train.log import read_log
from tests.run_states import assert_same_bits, final_state, stopped_at

TOY = (
    "train.steps=6",
    "train.eval_every=3",
    "train.sample_every=0",
    "train.warmup_steps=1",
    "drift.generated=16",
    "drift.positives=16",
    "train.batch_size=32",
    "checkpoint.every=2",
    "checkpoint.keep=9",
    "model.width=16",
    "train.log_every=2",
)


def test_a_run_leaves_what_every_run_leaves_and_what_a_generator_needs(class_run, class_shards):
    assert {path.name for path in class_run.iterdir()} >= {
        "resolved.toml",
        "log.jsonl",
        "loss.png",
        "checkpoints",
        "run.json",
    }
    state = final_state(class_run)
    assert (state["step"], state["samples_seen"]) == (6, 48)
    assert state["classes"] == ShardSet.open(class_shards.folder).classes and len(state["classes"]) == 12
    rows = read_log(class_run)
    assert [row["step"] for row in rows if "eval_energy" in row] == [3, 6]
    assert {"loss_raw", "loss_moments1", "grad_norm"} <= rows[-1].keys()


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_ends_with_the_same_bits(class_run, class_shards, tmp_path, step):
    out = stopped_at(class_run, step, tmp_path / "run")
    train_generator(class_shards.config(), class_shards.folder, out, resume=True)
    assert_same_bits(final_state(class_run), final_state(out))


def test_maps_weigh_what_their_key_says(class_shards, tmp_path):
    weights = {}
    for weight in (1.0, 0.25):
        run = tmp_path / str(weight)
        train_generator(class_shards.config(f"drift.maps_weight={weight}", "train.steps=2"), class_shards.folder, run)
        row = next(row for row in read_log(run) if "loss_raw" in row)
        maps = sum(value for name, value in row.items() if name.startswith("loss_") and name != "loss_raw")
        assert row["loss"] == pytest.approx(row["loss_raw"] + weight * maps, rel=1e-4)
        weights[weight] = final_state(run)["model"]["output.weight"]
    assert not torch.allclose(weights[1.0], weights[0.25], atol=1e-5)


def test_a_resumed_run_that_fills_its_queues_anew_does_not_end_with_the_same_bits(
    class_run, class_shards, tmp_path, monkeypatch
):
    """The comparison above can fail."""
    out = stopped_at(class_run, 2, tmp_path / "run")
    monkeypatch.setattr(LatentStream, "restore", lambda self, state: self.fill())
    train_generator(class_shards.config(), class_shards.folder, out, resume=True)
    with pytest.raises(AssertionError):
        assert_same_bits(final_state(class_run), final_state(out))


def test_workers_change_no_bit(class_run, class_shards, tmp_path):
    train_generator(class_shards.config("train.workers=2"), class_shards.folder, tmp_path / "run")
    assert_same_bits(final_state(class_run), final_state(tmp_path / "run"))


def test_accumulated_groups_are_the_groups_of_one_large_batch(class_shards, tmp_path):
    """Four groups at once or as two and two: the same gradient but for rounding."""
    for name, settings in (("whole", ("train.batch_size=16",)), ("parts", ("train.accumulate=2",))):
        train_generator(
            class_shards.config("train.steps=2", "train.warmup_steps=1", *settings),
            class_shards.folder,
            tmp_path / name,
        )
    whole, parts = (final_state(tmp_path / name)["model"] for name in ("whole", "parts"))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-4) for name in whole)


def test_a_signal_ends_the_run_after_its_step_with_the_state_saved(class_shards, tmp_path, monkeypatch):
    from contextlib import contextmanager

    class Request:
        signal_number = 15

    @contextmanager
    def at_once():
        yield Request

    monkeypatch.setattr(drift_loop, "stop_on_signal", at_once)
    with pytest.raises(Interrupted) as stopped:
        train_generator(class_shards.config(), class_shards.folder, tmp_path / "run")
    assert stopped.value.exit_code == 143 and [one.step for one in list_checkpoints(tmp_path / "run/checkpoints")] == [
        1
    ]


def test_a_loss_that_is_not_finite_stops_before_the_update(class_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(drift_loop, "multi_feature_loss", lambda x, *_: {"raw": x["raw"].sum() * float("nan")})
    with pytest.raises(NonFiniteError, match="step 1"):
        train_generator(class_shards.config(), class_shards.folder, tmp_path / "run")


def test_weights_can_be_the_start_of_another_run(class_run, class_shards, tmp_path):
    from dittool.ckpt.inspect import export_safetensors

    export_safetensors(class_run / "checkpoints/checkpoint_final.pt", tmp_path / "init.safetensors")
    done = train_generator(
        class_shards.config("train.steps=1", "train.warmup_steps=0", "train.lr=1e-9", "train.min_lr=0.0"),
        class_shards.folder,
        tmp_path / "run",
        init=tmp_path / "init.safetensors",
    )
    began, old = load_checkpoint(done.checkpoint)["model"], final_state(class_run)["ema"]
    assert all(torch.allclose(began[name], old[name], atol=1e-6) for name in old)


def test_the_audit_of_a_run_is_clean(class_run):
    found = audit(str(class_run))
    assert found.ok, [judged for judged in found.findings if judged.finding.status == "fail"]
    codes = {judged.rule.code for judged in found.findings if judged.finding.status == "pass"}
    assert codes >= {"G1", "G2", "C4", "K1", "K2", "K3", "K5"}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("model.classes=11",), "model.classes is 11, the data have 12"),
        (("model.channels=4",), "model.channels is 4, the data have 16"),
        (("model.input=8x8",), "images of 32x32; model.input 8x8 with a codec of stride 8 draws 64x64 alone"),
        (("encoders.vae=some/vae",), "latents come from 'builtin:dct', the configuration says 'some/vae'"),
    ],
)
def test_data_that_do_not_fit_are_refused_with_both_sides(overrides, told, class_shards, tmp_path):
    with pytest.raises(BadDataError, match=told):
        train_generator(class_shards.config(*overrides), class_shards.folder, tmp_path / "run")


def test_shards_without_classes_say_how_to_make_some(tiny_shards):
    shards = ShardSet.open(tiny_shards.folder)
    with pytest.raises(BadDataError, match="its samples have no classes") as caught:
        ClassSamples(shards, shards.samples, LatentNorm((0.0,), (1.0,)), 0)
    assert "images/CLASS/NAME.jpg" in caught.value.hint


def test_a_class_without_a_training_sample_is_named(class_shards):
    shards = ShardSet.open(class_shards.folder)
    kept = [ref for ref in shards.samples if shards.read_record(ref).cls != "blue-circle"]
    with pytest.raises(BadDataError, match="1 classes have no training sample, the first is 'blue-circle'"):
        ClassSamples(shards, kept, LatentNorm((0.0,), (1.0,)), 0)


def test_the_second_run_in_a_folder_is_refused(class_run, class_shards):
    with pytest.raises(UsageError, match="holds checkpoints of an earlier run"):
        train_generator(class_shards.config(), class_shards.folder, class_run)


@pytest.mark.xdist_group("torchrun")  # two of them at once may take one port, and hang
@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_take_the_steps_of_one(class_shards, tmp_path, parallel):
    settings = (
        "train.lr=1e-4",
        "train.steps=3",
        f"train.parallel={parallel}",
        "drift.encoder=trained",
        "feature_encoder.steps=3",
    )
    train_generator(class_shards.config(*settings), class_shards.folder, tmp_path / "one")
    (tmp_path / "two.toml").write_text(config_to_toml(class_shards.config(*settings)))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "dittool",
        "train",
        "--no-audit",
        "--preset",
        str(tmp_path / "two.toml"),
        "--data",
        str(class_shards.folder),
        "--out",
        str(tmp_path / "two"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=dict(os.environ, OMP_NUM_THREADS="1")
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (final_state(tmp_path / name) for name in ("one", "two"))
    assert one["samples_seen"] == two["samples_seen"] == 24
    assert max(float((one["model"][name] - two["model"][name]).abs().max()) for name in one["model"]) < 1e-4
    encoders = (each["feature_encoder"]["weights"] for each in (one, two))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*(each.values() for each in encoders), strict=True))
    assert all(
        torch.equal(torch.as_tensor(one["queues"][name]), torch.as_tensor(two["queues"][name]))
        for name in one["queues"]
    )


# The toy


def toy(*overrides: str):
    return load_config("drift-toy", [*TOY, *overrides])


def test_a_toy_resumes_with_the_same_bits_and_needs_no_data(tmp_path):
    train_generator(toy(), tmp_path / "nothing", tmp_path / "whole")
    out = stopped_at(tmp_path / "whole", 2, tmp_path / "parts")
    train_generator(toy(), tmp_path / "nothing", out, resume=True)
    assert_same_bits(final_state(tmp_path / "whole"), final_state(out))


@pytest.mark.parametrize(
    ("start", "mean", "spread"), [("middle", 0.0, 1.0), ("far", 6.0, 1.0), ("collapsed", 0.0, 0.01)]
)
def test_a_toy_begins_where_its_key_says(start, mean, spread):
    from dittool.models.build import build_generator
    from dittool.models.drift_dit import ClassConditions

    none = torch.zeros(500, dtype=torch.int64)
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        points = build_generator(toy(f"toy.start={start}"))(
            noise, torch.ones(500), ClassConditions(none, none[:, None])
        )
    assert abs(float(points[:, 0].mean()) - mean) < 0.2 and abs(float(points.std(dim=0).mean()) - spread) < 0.1 * max(
        spread, 0.1
    )


def test_the_command_trains_a_toy_with_a_picture_and_a_verdict(dit, tmp_path):
    overrides = [part for one in (*TOY, "train.sample_every=6") for part in ("-s", one)]
    told = dit("train", "--preset", "drift-toy", "--out", tmp_path / "run", *overrides)
    assert told.code == 0 and "does not pass" in told.out, told.err
    assert list((tmp_path / "run/samples").glob("*.png"))
    answer = json.loads(dit("train", "--preset", "drift-toy", "--out", tmp_path / "other", *overrides, "--json").out)
    assert answer["step"] == 6 and answer["faults"] and "eval_energy" in answer["figures"]


def trained_toy(tmp_path, *overrides: str) -> list[str]:
    done = train_generator(load_config("drift-toy", ["train.eval_every=800", *overrides]), tmp_path, tmp_path / "run")
    return done.faults


@pytest.mark.slow
@pytest.mark.parametrize("start", ["middle", "far", "collapsed"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_toy_passes_for_real_points_from_every_start(start, seed, tmp_path):
    assert trained_toy(tmp_path, f"toy.start={start}", f"train.seed={seed}") == []


@pytest.mark.slow
@pytest.mark.parametrize("start", ["middle", "collapsed"])
@pytest.mark.parametrize("repulsion", [0.0, 1.5, 2.0])
def test_a_field_that_is_not_antisymmetric_does_not_pass(repulsion, start, tmp_path):
    assert trained_toy(tmp_path, f"toy.start={start}", f"drift.repulsion={repulsion}") != []
