"""`dit train --dry-run`: the plan of a run, measured, with nothing written."""

from __future__ import annotations

import json
import re

import pytest
import torch

from dittool import machine
from dittool.config.load import load_config
from dittool.train.estimate import device_name, estimate
from dittool.train.loop import train
from tests.conftest import TINY
from tests.run_states import stopped_at


def test_the_plan_adds_up_and_the_checkpoint_has_the_size_it_says(tiny_shards, tiny_run):
    plan = estimate(tiny_shards.config, tiny_shards.folder)
    assert plan.parameters == sum(
        tensor.numel() for tensor in torch.load(tiny_run / "checkpoints" / "checkpoint_final.pt")["model"].values()
    )
    assert sum(bucket.share for bucket in plan.buckets) == pytest.approx(1)
    assert {bucket.name: bucket.tokens for bucket in plan.buckets}["128x128"] == 64
    real = (tiny_run / "checkpoints" / "checkpoint_final.pt").stat().st_size
    assert real * 0.9 < plan.checkpoint_bytes < real + 1.2e6  # a megabyte is allowed for what is not tensors
    assert plan.seconds == pytest.approx(plan.steps * sum(bucket.share * bucket.seconds for bucket in plan.buckets))
    assert plan.memory_bytes > 5 * 4 * plan.parameters and "autograd" in plan.memory_from


@pytest.mark.slow
def test_checkpointing_lowers_the_measured_memory(tiny_shards):
    deep = ("model.depth=6", "train.batch_size=16")
    plain, recomputing = (
        estimate(tiny_shards.config_with(*deep, f"model.gradient_checkpointing={wanted}"), tiny_shards.folder)
        for wanted in ("false", "true")
    )
    assert recomputing.memory_bytes < 0.6 * plain.memory_bytes


def test_a_dry_run_prints_the_plan_and_writes_nothing(dit, tiny_shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ("train", "--preset", "demo", "--data", tiny_shards.folder, "--dry-run", "--json")
    shown = dit(*command, "-s", "train.batch_size=1")
    plan = json.loads(shown.out)
    assert (
        shown.code == 0
        and plan["parameters"] == 2_595_584
        and plan["disk_bytes"] == plan["checkpoint_bytes"] * plan["checkpoints_kept"]
    )
    assert not list(tmp_path.iterdir())


def test_a_copy_for_saving_is_counted(tiny_shards):
    alone, beside = (
        estimate(tiny_shards.config_with(f"checkpoint.background={value}"), tiny_shards.folder)
        for value in ('"gpu"', "true")
    )
    assert beside.memory_bytes - alone.memory_bytes == 4 * 4 * alone.parameters and "copy" in beside.memory_from


def test_measuring_a_plan_does_not_change_the_run(tiny_shards, tiny_run, tmp_path):
    estimate(tiny_shards.config, tiny_shards.folder)
    train(tiny_shards.config, tiny_shards.folder, tmp_path / "run")
    mine, theirs = (
        torch.load(run / "checkpoints" / "checkpoint_final.pt")["model"] for run in (tmp_path / "run", tiny_run)
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("preset", ["drift-demo", "drift-toy"])
def test_a_plan_of_a_one_step_generator_adds_up(preset, class_shards, tmp_path):
    sizes = class_shards.overrides if preset == "drift-demo" else ("drift.generated=8", "drift.positives=8")
    config = load_config(preset, [*sizes, "train.batch_size=8", "train.steps=10", "train.warmup_steps=1"])
    plan = estimate(config, class_shards.folder)
    assert (plan.steps, plan.samples_per_step, len(plan.buckets)) == (10, 8, 1)
    assert plan.seconds > 0 and plan.memory_bytes > 5 * 4 * plan.parameters
    real = train(config, class_shards.folder, tmp_path / "run").checkpoint.stat().st_size
    assert real * 0.9 < plan.checkpoint_bytes < real + 1.2e6  # a megabyte is allowed for what is not tensors
    if preset == "drift-toy":
        assert plan.epochs is None
    else:  # five real samples enter the queues with each step
        assert plan.epochs == pytest.approx(10 * 5 / plan.buckets[0].samples)


def test_a_device_is_called_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert device_name(torch.device("cuda", 1)) == "GPU 1" and device_name(torch.device("cpu")).startswith("CPU")


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("tiny_shards", r"100,000 samples of bucket \S+ in a batch, and (19|20|21) samples"),
        ("class_shards", "150,000 real samples in a batch, and 90 samples"),
    ],
)
def test_a_batch_far_beyond_the_data_ends_a_dry_run_at_once_with_both_numbers(family, said, dit, request):
    shards = request.getfixturevalue(family)
    words = [word for key in (*shards.overrides, "train.batch_size=100000") for word in ("-s", key)]
    outcome = dit("train", "--preset", shards.preset, "--data", shards.folder, "--dry-run", *words)
    assert outcome.code == 2 and re.search(said, outcome.err), outcome.err


def test_the_plan_of_a_run_that_goes_on_is_that_of_the_steps_left(dit, tiny_run, tiny_shards, tmp_path):
    run = stopped_at(tiny_run, 6, tmp_path / "run")
    line = ("train", "--out", run, "--data", tiny_shards.folder, "--dry-run", "--json")
    for goes_on, begun in (
        (("--resume",), 6),
        (("--continue",), 6),
        (("--resume-from", run / "checkpoints" / "checkpoint_step0000003.pt"), 3),
    ):
        plan = json.loads(dit(*line, *goes_on).out)
        assert plan["begun"] == begun and plan["seconds"] == pytest.approx((8 - begun) * plan["seconds_per_step"])
    at_its_end = dit("train", "--out", tiny_run, "--data", tiny_shards.folder, "--dry-run", "--resume")
    assert at_its_end.code == 2 and "is the end of this run" in at_its_end.err


def test_a_dry_run_looks_at_what_the_run_would_begin_with(dit, tiny_run, tiny_shards, tmp_path):
    line = ["train", "--preset", "demo", "--data", tiny_shards.folder, "--dry-run", "--out", tmp_path / "new"]
    words = [word for key in TINY for word in ("-s", key)]
    assert dit(*line, *words, "--init", tmp_path / "nowhere").code == 2
    measured = dit(*line, *words, "--init", tiny_run)
    assert measured.code == 0 and "becomes" in measured.err and str(tmp_path / "new") in measured.out
    assert dit(*line, *words, "--no-audit").code == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("preset", ["demo", "drift-demo", "drift-toy"])
def test_memory_that_a_batch_needs_is_told_before_it_is_made(preset, dit, monkeypatch):
    monkeypatch.setattr(machine, "_memory_limits", lambda: iter([(2 << 30, "the machine has free")]))
    for command in (["bench"], ["train", "--dry-run"]) if preset == "drift-toy" else (["bench"],):
        ended = dit(*command, "--preset", preset, "-s", "train.batch_size=102400000")
        assert ended.code == 5 and "102,400,000 samples" in ended.err and "free 2.1 GB" in ended.err, ended.err
