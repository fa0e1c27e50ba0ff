"""The toy of the drifting objective: exact resume without data, pictures, a verdict, and starts that it learns from."""

from __future__ import annotations

import json

import pytest
import torch

from dittool.config.load import load_config
from dittool.train.loop import train
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


def toy(*overrides: str):
    return load_config("drift-toy", [*TOY, *overrides])


def test_a_toy_resumes_with_the_same_bits_and_needs_no_data(tmp_path):
    train(toy(), tmp_path / "nothing", tmp_path / "whole")
    out = stopped_at(tmp_path / "whole", 2, tmp_path / "parts")
    train(toy(), tmp_path / "nothing", out, resume=True)
    assert_same_bits(final_state(tmp_path / "whole"), final_state(out))


@pytest.mark.parametrize(
    ("start", "mean", "spread"), [("middle", 0.0, 1.0), ("far", 6.0, 1.0), ("collapsed", 0.0, 0.01)]
)
def test_a_toy_begins_where_its_key_says(start, mean, spread):
    from dittool.models.build import build_toy
    from dittool.models.drift_dit import ClassConditions

    none = torch.zeros(500, dtype=torch.int64)
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        points = build_toy(toy(f"toy.start={start}"))(noise, torch.ones(500), ClassConditions(none, none[:, None]))
    assert abs(float(points[:, 0].mean()) - mean) < 0.2 and abs(float(points.std(dim=0).mean()) - spread) < 0.1 * max(
        spread, 0.1
    )


def test_the_command_trains_a_toy_with_a_picture_and_a_verdict(dit, tmp_path):
    overrides = [part for one in (*TOY, "train.sample_every=6") for part in ("-s", one)]
    outcome = dit("train", "--preset", "drift-toy", "--out", tmp_path / "run", *overrides)
    assert outcome.code == 0 and "does not pass" in outcome.out, outcome.err
    assert list((tmp_path / "run/samples").glob("*.png"))
    answer = json.loads(dit("train", "--preset", "drift-toy", "--out", tmp_path / "other", *overrides, "--json").out)
    assert answer["step"] == 6 and answer["faults"] and "eval_energy" in answer["figures"]


def trained_toy(tmp_path, *overrides: str) -> list[str]:
    done = train(load_config("drift-toy", ["train.eval_every=800", *overrides]), tmp_path, tmp_path / "run")
    return done.conclusion.facts["faults"]


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
