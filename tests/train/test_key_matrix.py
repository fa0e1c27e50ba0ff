"""New keys against all that a run must be able to do: stop and resume, share its work, compile, be inspected and
audited, begin from older weights.

Each row changes the demo's configuration, and every test runs for every row, on one short run of it that accumulates
two micro-batches. What starts processes is slow.
"""

from __future__ import annotations

import json

import pytest
import torch

from dittool.ckpt.files import list_checkpoints
from dittool.ckpt.load import load_checkpoint
from dittool.config.load import config_from_dict, config_to_toml
from dittool.train import state
from dittool.train.loop import train
from tests.quick import others_slow
from tests.run_states import assert_same_bits, final_state, stopped_at
from tests.train.test_distributed import finished, largest_difference, torchrun

KEYS = {
    "mlp": ["model.mlp=swiglu"],
    "norm": ["model.norm=rms"],
    "qk_norm": ["model.qk_norm=true"],
    "positions": ["model.positions=rope"],
    "shared_modulation": ["model.shared_modulation=true"],
    "context": ["model.context_norm=true", "model.context_balance=true"],
    "added_patches": ["model.patch_fusion=added"],
    "repa": ["repa.weight=0.5"],
    "repa_alone": ["model.patches=false", "repa.weight=0.5", "repa.block=1", "repa.until=0.5"],
    "tread": ["model.depth=3", "tread.share=0.5"],
    "tread_repa": [
        "model.depth=4",
        "tread.share=0.4",
        "tread.first=2",
        "tread.last=3",
        "repa.weight=0.5",
        "repa.block=2",
    ],
    "time_init": ["model.time_init=xavier"],
    "timesteps": ["flow.timestep_sampling=mode", "flow.shift=per-bucket"],
    "constant": ["train.schedule=constant"],
    "wsd": ["train.schedule=wsd", "train.cooldown_steps=1"],
    "averages": ["ema.averages=[0.05, 0.1]"],
    "block": [
        "model.mlp=swiglu",
        "model.norm=rms",
        "model.qk_norm=true",
        "model.positions=rope",
        "model.shared_modulation=true",
        "model.context_norm=true",
        "model.context_balance=true",
        "model.time_init=xavier",
        "model.gradient_checkpointing=true",
        "train.optimizer=muon",
    ],
}
SETTINGS = ("train.accumulate=2", "train.steps=6", "checkpoint.every=3")
ON_MODELS = ("E1", "E2", "E3", "E5", "C1", "C3", "C5", "C6", "C8")
ON_CHECKPOINTS = ("C5", "K1", "K2", "K3", "K4", "K5", "K6")

QUICK = ("block", "added_patches", "tread_repa", "averages")  # of all that every run tries

rows = pytest.mark.parametrize("row", others_slow(KEYS, QUICK))


@pytest.fixture(scope="module")
def run_of(tiny_shards, tmp_path_factory):
    """A run of a row to its end, made once."""
    made = {}

    def run(row):
        if row not in made:
            made[row] = tmp_path_factory.mktemp(row) / "run"
            train(tiny_shards.config_with(*SETTINGS, *KEYS[row]), tiny_shards.folder, made[row])
        return made[row]

    return run


def audited(shown) -> dict[str, str]:
    """Status of each rule that did not skip, with what it found where it did not pass."""
    found = json.loads(shown.out)["findings"]
    return {
        one["code"]: one["status"] if one["status"] == "pass" else one["evidence"]
        for one in found
        if one["status"] != "skip"
    }


@rows
def test_a_run_resumes_to_the_same_bits(run_of, tiny_shards, tmp_path, row):
    out = stopped_at(run_of(row), 3, tmp_path / "run")
    train(tiny_shards.config_with(*SETTINGS, *KEYS[row]), tiny_shards.folder, out, resume=True)
    assert_same_bits(final_state(run_of(row)), final_state(out))


@rows
def test_the_rules_know_it(run_of, dit, tiny_shards, tmp_path, row):
    preset = tmp_path / "preset.toml"
    preset.write_text(config_to_toml(tiny_shards.config_with(*SETTINGS, *KEYS[row])))
    shown = audited(dit("audit", preset, "--select", ",".join(ON_MODELS), "--json"))
    assert shown == dict.fromkeys(ON_MODELS, "pass")
    shown = audited(dit("audit", run_of(row), "--select", ",".join(ON_CHECKPOINTS), "--json"))
    assert shown == dict.fromkeys(ON_CHECKPOINTS, "pass")


def test_a_gate_of_a_shared_modulation_that_never_opened_is_found(run_of, dit, tmp_path):
    content = final_state(run_of("shared_modulation"))
    for name in ("modulation.weight", "blocks.0.modulation.offset"):
        content["model"][name].unflatten(0, (9, -1))[2].zero_()
    torch.save(content, tmp_path / "edited.pt")
    evidence = audited(dit("audit", tmp_path / "edited.pt", "--select", "K4", "--json"))["K4"]
    assert "2 parts are still zero: modulation.weight vector 2, blocks.0.modulation.offset vector 2" in evidence


@rows
def test_a_checkpoint_remembers_it_and_is_inspected(run_of, dit, tiny_shards, row):
    checkpoint = list_checkpoints(run_of(row) / "checkpoints")[-1].path
    remembered = config_from_dict(load_checkpoint(checkpoint)["config"], "the checkpoint")
    assert remembered == tiny_shards.config_with(*SETTINGS, *KEYS[row])
    shown = dit("inspect-ckpt", checkpoint, "--tree")
    assert shown.code == 0 and "model" in shown.out


def test_a_cooldown_starts_from_any_checkpoint_and_leaves_what_was_before(run_of, tiny_shards, tmp_path):
    """The run that cools down from step 3 is the one that was planned so from the beginning."""
    keys = ("train.schedule=wsd", "train.cooldown_steps=2", "train.steps=5")
    train(tiny_shards.config_with(*SETTINGS, *keys), tiny_shards.folder, tmp_path / "planned")
    named = [key.partition("=")[0] for key in keys]
    checkpoint = stopped_at(run_of("constant"), 3, tmp_path / "copy") / "checkpoints" / "checkpoint_step0000003.pt"
    config = tiny_shards.config_with(*SETTINGS, *keys)
    train(config, tiny_shards.folder, tmp_path / "cooled", resume_from=checkpoint, named_changes=named)
    assert_same_bits(final_state(tmp_path / "planned"), final_state(tmp_path / "cooled"))


@rows
def test_weights_from_before_it_are_a_start(tiny_run, dit, tiny_shards, tmp_path, row):
    preset, init = tmp_path / "preset.toml", tmp_path / "init.safetensors"
    config = tiny_shards.config_with(*SETTINGS, *KEYS[row], "train.steps=3")
    preset.write_text(config_to_toml(config))
    shown = dit("warmstart", tiny_run, "--preset", preset, "--out", init, "--json")
    counts = json.loads(shown.out)["counts"]
    assert shown.code == 0 and counts["copied"] > 0
    train(config, tiny_shards.folder, tmp_path / "run", init=init)
    assert final_state(tmp_path / "run")["step"] == 3


@pytest.mark.parametrize("row", [row if row == "block" else pytest.param(row, marks=pytest.mark.slow) for row in KEYS])
def test_a_compiled_run_ends_where_the_plain_one_ends(run_of, tiny_shards, tmp_path, monkeypatch, row):
    graphs = []

    def backend(graph, _example):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(state, "COMPILER", backend)
    config = tiny_shards.config_with(*SETTINGS, *KEYS[row], "train.compile=true")
    train(config, tiny_shards.folder, tmp_path / "run")
    torch._dynamo.reset()
    assert 1 <= len(graphs) <= 2 and largest_difference(final_state(run_of(row)), final_state(tmp_path / "run")) < 1e-5


@pytest.mark.xdist_group("torchrun")  # two of them at once may take one port, and hang
@pytest.mark.slow
@rows
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_take_the_steps_of_one(tiny_shards, tmp_path, row, parallel):
    keys = (*SETTINGS, *KEYS[row], f"train.parallel={parallel}", "train.lr=1e-4", "train.steps=3")
    train(tiny_shards.config_with(*keys), tiny_shards.folder, tmp_path / "one")
    finished(torchrun(2, tmp_path / "two", tiny_shards, *keys))
    assert largest_difference(final_state(tmp_path / "one"), final_state(tmp_path / "two")) < 1e-4
