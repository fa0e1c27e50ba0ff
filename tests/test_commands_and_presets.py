"""Every command with every preset, and with a run of every family: whatever the answer is, it is never a bug of ours,
and a command that cannot serve a family says so in one line and names one that can.
"""

from __future__ import annotations

import pytest

from dittool.cli import BUILT_IN
from dittool.config.load import load_config
from dittool.config.presets import preset_names
from dittool.train import bench as bench_module
from dittool.train.loop import train
from tests.quick import others_slow

FEW_STEPS = ("-s", "train.steps=1", "-s", "train.warmup_steps=0")
BY_PRESET = {  # each ends early: at a folder or file that is not there, or after printing
    "presets": lambda name, place: ["presets", name],
    "presets --params": lambda name, place: ["presets", name, "--params"],
    "embed": lambda name, place: ["embed", place / "nothing", "--out", place / "derived", "--preset", name],
    "embed --estimate": lambda name, place: ["embed", place / "nothing", "--preset", name, "--estimate"],
    "shard --index": lambda name, place: ["shard", "--index", place / "nothing", "--preset", name],
    "audit": lambda name, place: ["audit", place / "nothing.pt", "--preset", name],
    "train": lambda name, place: [
        *("train", "--preset", name, "--data", place / "nothing", "--out", place / "run", "--no-audit"),
        *FEW_STEPS,
    ],
    "train --dry-run": lambda name, place: ["train", "--preset", name, "--data", place / "nothing", "--dry-run"],
    "warmstart": lambda name, place: [
        *("warmstart", place / "nothing.pt", "--preset", name, "--out", place / "init.safetensors"),
    ],
    "bench": lambda name, place: ["bench", "--preset", name, *small(name)],
    "doctor": lambda name, place: ["doctor", "--preset", name, "--out", place / "runs"],
}
SMALL = {  # keys that make a step of an architecture cheap
    "dit": ("model.depth=1", "model.width=16", "model.heads=2", "data.area=128x128", "train.batch_size=1"),
    "drift": (
        *("model.depth=1", "model.width=16", "model.heads=2", "model.mlp_width=16", "model.classes=2"),
        *("drift.generated=4", "drift.positives=4", "drift.unconditional=4", "drift.pushed=4", "train.batch_size=4"),
    ),
    "latent-mae": ("model.width=8", "model.depth=1", "model.classes=2", "train.batch_size=2"),
    "drift-toy": ("drift.generated=8", "drift.positives=8", "train.batch_size=8"),
}
BY_RUN = {
    "audit": lambda run, place: ["audit", run],
    "inspect-ckpt": lambda run, place: ["inspect-ckpt", run],
    "sample --prompt": lambda run, place: [
        *("sample", "--checkpoint", run, "--prompt", "a red circle", "--steps", 1, "--out", place / "a.png"),
    ],
    "sample --class": lambda run, place: ["sample", "--checkpoint", run, "--class", 0, "--out", place / "a.png"],
    "validate": lambda run, place: ["validate", run, "--limit", 1, "--tests", "mode_losses", "--out", place],
    "runs": lambda run, place: ["runs", run, "--page"],
    "train --resume": lambda run, place: ["train", "--resume", "--out", run],
    "warmstart": lambda run, place: ["warmstart", run, "--preset", "demo", "--out", place / "init.safetensors"],
    "export": lambda run, place: ["export", run, "--out", place / "exported"],
}
ONE_OF_A_KIND = ("base", "demo", "drift-b2-paper", "drift-mae-demo", "drift-toy")  # of the presets
# take neither a preset nor a run, or one with averages in it (tests/ckpt/test_chosen_average.py)
WITHOUT_A_FAMILY = {"demo", "ablate", "average"}


def small(preset: str) -> list[str]:
    """Options that make a step of a preset cheap."""
    keys = ("train.workers=0", "train.compile=false", "train.accumulate=1", *SMALL[load_config(preset).model.arch])
    return [word for key in keys for word in ("-s", key)]


def test_no_command_is_left_out():
    assert {line.split()[0] for line in [*BY_PRESET, *BY_RUN]} | WITHOUT_A_FAMILY == set(BUILT_IN)


def assert_no_bug(outcome) -> None:
    assert outcome.code in (0, 1, 2, 3, 7), outcome.err
    if outcome.code == 2:
        assert outcome.err.count("error:") == 1 and "next:" in outcome.err


@pytest.mark.parametrize("name", others_slow(preset_names(), ONE_OF_A_KIND))
@pytest.mark.parametrize("command", BY_PRESET)
def test_a_command_with_a_preset_is_no_bug(command, name, dit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_module, "_SECONDS", 0.0)
    assert_no_bug(dit(*BY_PRESET[command](name, tmp_path)))


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """A run of two steps of points in the plane. Read only."""
    out = tmp_path_factory.mktemp("toy") / "run"
    few = ("train.steps=2", "train.warmup_steps=0", "train.sample_every=0")
    train(load_config("drift-toy", [*SMALL["drift-toy"], *few]), out, out)
    return out


@pytest.mark.parametrize("run", ["tiny_run", "class_run", "toy_run"])
@pytest.mark.parametrize("command", BY_RUN)
def test_a_command_with_a_run_is_no_bug(command, run, dit, tmp_path, request):
    assert_no_bug(dit(*BY_RUN[command](request.getfixturevalue(run), tmp_path)))


@pytest.mark.parametrize(
    ("command", "preset", "said", "instead"),
    [
        (("embed", "images"), "drift-toy", "has no images", "dit train --preset drift-toy"),
        (("shard", "--index", "shards"), "drift-toy", "has no images", "dit train --preset drift-toy"),
        (("warmstart", "w.pt", "--out", "i.safetensors"), "drift-demo", "a one-step generator", "dit train --init W"),
    ],
)
def test_a_command_that_cannot_serve_a_family_names_one_that_can(command, preset, said, instead, dit):
    outcome = dit(*command, "--preset", preset)
    assert outcome.code == 2 and said in outcome.err and instead in outcome.err


@pytest.mark.parametrize("run", ["class_run", "toy_run"])
def test_weights_of_another_family_are_not_carried_over(run, dit, tmp_path, request):
    out = tmp_path / "init.safetensors"
    outcome = dit("warmstart", request.getfixturevalue(run), "--preset", "demo", "--out", out)
    assert outcome.code == 2 and "dit warmstart carries over rectified-flow transformers" in outcome.err
    assert "dit train --init" in outcome.err and not out.exists()
