"""`dit runs`: what state a run is in, read from its folder alone."""

from __future__ import annotations

import json
import shutil

import pytest

from dittool.runs.state import state_of
from dittool.storage import folder_lock, in_use


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "runs" / "mine")


def test_a_finished_run(run):
    found = state_of(run)
    assert (found.name, found.state, found.step, found.steps, found.verdict) == ("mine", "finished", 8, 8, None)
    assert found.loss > 0 and found.seconds_left is None


def test_a_run_that_is_held_trains_and_says_how_long_still(run):
    (run / "checkpoints" / "checkpoint_final.pt").unlink()
    (run / "log.jsonl").write_text('{"step": 2, "loss": 1.5, "steps_per_second": 0.5}\n')
    for kept in (run / "checkpoints").iterdir():
        kept.unlink()
    with folder_lock(run):
        found = state_of(run)
        assert (found.state, found.step, found.seconds_left) == ("training", 2, 12)
    assert not in_use(run) and state_of(run).state == "stopped"


def test_looking_hinders_nobody(run):
    for _ in range(20):
        assert not in_use(run)
        with folder_lock(run):
            assert in_use(run)


@pytest.mark.parametrize("damage", ["resolved.toml", "log.jsonl", "validation/step0000008/results.json"])
def test_what_cannot_be_read_is_left_out(run, damage):
    (run / damage).parent.mkdir(parents=True, exist_ok=True)
    (run / damage).write_text("\x00{[")
    found = state_of(run)
    assert found.state == "finished" and found.step == 8 and found.verdict is None
    assert (found.steps is None) == (damage == "resolved.toml")


def test_the_newest_verdict_is_shown(run, dit):
    for step, verdict in ((2, "GO"), (8, "NO-GO")):
        folder = run / "validation" / f"step{step:07d}"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"verdict": verdict}))
    (run.parent / "no run").mkdir()
    shown = dit("runs", run.parent)
    assert shown.code == 0 and "mine" in shown.out and "finished" in shown.out and "NO-GO" in shown.out
    (row,) = json.loads(dit("runs", run.parent, "--json").out)["runs"]
    assert row["state"] == "finished" and row["verdict"] == "NO-GO" and row["steps"] == 8


def test_a_folder_without_runs_says_so(tmp_path, dit):
    assert "no runs" in dit("runs", tmp_path).out
