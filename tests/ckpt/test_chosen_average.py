"""An average that is chosen after training is the one that training would have followed."""

from __future__ import annotations

import json

import pytest
import torch

from dittool.ckpt.chosen_average import Snapshot, chosen_average, combination
from dittool.ckpt.weights import load_weights
from dittool.errors import BadDataError
from dittool.objective.schedule import power_decay, power_exponent
from dittool.train.loop import train
from tests.quick import others_slow
from tests.run_states import assert_same_bits, final_state, stopped_at

LONG = (
    "train.steps=60",
    "checkpoint.every=6",
    "checkpoint.keep=20",
    "train.log_every=60",
    "train.schedule=constant",
    "train.lr=0.01",
)


@pytest.fixture(scope="module")
def followed(tiny_shards, tmp_path_factory):
    """A run of sixty updates that follows two widths, and keeps ten checkpoints."""
    out = tmp_path_factory.mktemp("followed") / "run"
    train(tiny_shards.config_with(*LONG, "ema.averages=[0.05, 0.1]"), tiny_shards.folder, out)
    return out


def test_the_exponents_are_those_of_the_paper():
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.01)
    assert power_decay(0, 0.1) == 0


@pytest.mark.parametrize("width", others_slow([0.06, 0.075, 0.12], ()))
def test_another_width_is_within_a_thousandth_of_the_followed_one(followed, tiny_shards, tmp_path, width):
    train(tiny_shards.config_with(*LONG, f"ema.averages=[{width}]"), tiny_shards.folder, tmp_path / "run")
    expected = final_state(tmp_path / "run")["snapshots"]["weights"][f"{width:g}"]
    found = chosen_average(followed / "checkpoints", width)
    flat, wanted = (torch.cat([part[name].flatten() for name in expected]) for part in (found.content["ema"], expected))
    raw = torch.cat([final_state(followed)["model"][name].flatten() for name in expected])
    off, way = (flat - wanted).norm(), (raw - wanted).norm()
    assert (
        off < 1e-3 * wanted.norm() and way > 1e-2 * wanted.norm() and off < 0.02 * way
    )  # the raw weights are not near
    assert found.snapshots == 20 and found.rest < 0.01


def test_factors_sum_to_one_and_a_followed_width_is_itself(tmp_path):
    found = [Snapshot(tmp_path, step, width, 0) for step in (500, 1000) for width in (0.05, 0.1)]
    factors, rest = combination(found, 0.05)
    assert sum(factors) == pytest.approx(1) and factors == pytest.approx([0, 0, 1, 0], abs=1e-6) and rest < 1e-6


def test_too_few_snapshots_are_refused(followed, tmp_path):
    with pytest.raises(BadDataError, match=r"leave \d+% of one of width 0\.01 open"):
        chosen_average(followed / "checkpoints", 0.01)
    with pytest.raises(BadDataError, match="step 7 with averages is not there"):
        chosen_average(followed / "checkpoints", 0.07, step=7)


def test_averages_resume_to_the_same_bits(followed, tiny_shards, tmp_path):
    out = stopped_at(followed, 30, tmp_path / "run")
    train(tiny_shards.config_with(*LONG, "ema.averages=[0.05, 0.1]"), tiny_shards.folder, out, resume=True)
    one, other = final_state(followed), final_state(out)
    assert_same_bits(one, other)
    for width, weights in one["snapshots"]["weights"].items():
        assert all(torch.equal(tensor, other["snapshots"]["weights"][width][name]) for name, tensor in weights.items())


def test_the_command_writes_what_is_drawn_judged_and_exported(followed, dit, tmp_path):
    out = tmp_path / "chosen.pt"
    shown = dit("average", followed, "--width", 0.075, "--out", out, "--json")
    assert shown.code == 0 and json.loads(shown.out)["snapshots"] == 20
    assert dit("sample", "--checkpoint", out, "--prompt", "a red circle", "--out", tmp_path / "a.png").code == 0
    assert dit("inspect-ckpt", out, "--export", tmp_path / "w.safetensors").code == 0
    ema = load_weights(tmp_path / "w.safetensors")
    expected = chosen_average(followed / "checkpoints", 0.075).content["ema"]
    assert all(torch.equal(ema[name], tensor) for name, tensor in expected.items())
    assert dit("average", followed, "--width", 0.1, "--out", out).code == 0  # its own earlier result
    (tmp_path / "theirs.pt").write_bytes(b"x")
    assert dit("average", followed, "--width", 0.1, "--out", tmp_path / "theirs.pt").code == 2
