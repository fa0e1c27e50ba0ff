"""Every command takes a run whose checkpoints are in parts as it takes one of files."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from dittool.ckpt.files import list_checkpoints, newest_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.weights import load_weights
from dittool.train.loop import train
from tests.run_states import assert_same_bits, final_state
from tests.sharded import in_parts


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    """The same run, as files and in parts."""
    parts = shutil.copytree(tiny_run, tmp_path_factory.mktemp("runs") / "parts")
    for file in list_checkpoints(parts / "checkpoints"):
        in_parts(file.path, 3)
    return tiny_run, parts


def test_sample_draws_the_same_picture(runs, tmp_path, dit):
    drawn = []
    for run in runs:
        out = tmp_path / f"{run.name}.png"
        done = dit("sample", "--prompt", "a red circle", "--checkpoint", run, "--out", out, "--steps", "2", "--json")
        assert done.code == 0
        drawn.append(out)
    again = dit("sample", "--from", drawn[1], "--out", tmp_path / "again.png")
    assert again.code == 0 and "sha256" not in again.err
    from PIL import Image

    assert Image.open(drawn[0]).tobytes() == Image.open(drawn[1]).tobytes()
    assert Image.open(tmp_path / "again.png").tobytes() == Image.open(drawn[1]).tobytes()


def test_inspect_audit_and_warmstart_take_the_folder(runs, tmp_path, dit):
    newest = newest_checkpoint(runs[1] / "checkpoints").path
    inspected = dit("inspect-ckpt", newest, "--diff", newest_checkpoint(runs[0] / "checkpoints").path)
    assert inspected.code == 0 and "dit checkpoint" in inspected.out
    assert dit("inspect-ckpt", newest, "--export", tmp_path / "joined.safetensors").code == 0
    joined, of_file = (
        load_weights(path)
        for path in (tmp_path / "joined.safetensors", runs[0] / "checkpoints" / "checkpoint_final.pt")
    )
    assert all(torch.equal(joined[name], tensor) for name, tensor in of_file.items())
    outs = [tmp_path / name for name in ("file.safetensors", "parts.safetensors")]
    for run, out in zip(runs, outs, strict=True):
        assert dit("warmstart", run, "--preset", "demo", "--out", out).code == 0
    ours, theirs = map(load_weights, outs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for target in (newest, runs[1]):
        audits = [dit("audit", each, "--select", "K", "--json") for each in (target, runs[0])]
        statuses = [[(one["code"], one["status"]) for one in json.loads(audit.out)["findings"]] for audit in audits]
        assert statuses[0] == statuses[1] and ("K1", "pass") in statuses[0]


def test_train_goes_on_from_it_and_ends_where_it_is_finished(runs, tiny_shards, tmp_path, dit):
    words = [word for override in tiny_shards.overrides for word in ("-s", override)]
    line = ("train", "--no-audit", "--data", tiny_shards.folder, *words)
    finished = dit(*line, "--preset", "demo", "--continue", "--out", runs[1])
    assert finished.code == 0 and "finished at step 8 of 8" in finished.out
    chosen = next(file.path for file in list_checkpoints(runs[1] / "checkpoints") if file.step == 3)
    again = dit(*line, "--resume-from", chosen, "--out", tmp_path / "again")
    assert again.code == 0
    assert_same_bits(final_state(tmp_path / "again"), final_state(runs[0]))
    begun = dit(*line, "--preset", "demo", "--init", runs[1], "--out", tmp_path / "begun", "-s", "train.steps=3")
    assert begun.code == 0


@pytest.mark.slow
def test_validate_and_average_take_it(runs, tiny_shards, tmp_path, dit):
    judged = [
        dit("validate", run, "--data", tiny_shards.folder, "--limit", "2", "--out", tmp_path / run.name, "--json")
        for run in runs
    ]
    criteria = [json.loads(outcome.out)["criteria"] for outcome in judged]
    assert judged[0].code == judged[1].code and criteria[0] == criteria[1]
    run = tmp_path / "averaged"
    config = tiny_shards.config_with("ema.averages=[0.05, 0.1]", "checkpoint.every=1", "checkpoint.keep=9")
    train(config, tiny_shards.folder, run)
    assert dit("average", run, "--width", "0.08", "--out", tmp_path / "file.pt").code == 0
    for file in list_checkpoints(run / "checkpoints"):
        in_parts(file.path)
    assert dit("average", run, "--width", "0.08", "--out", tmp_path / "parts.pt").code == 0
    one, other = (load_checkpoint(tmp_path / f"{name}.pt")["ema"] for name in ("file", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
