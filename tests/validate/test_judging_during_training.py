"""Judging during training: the run does not notice, and what the judge cannot do does not end it."""

from __future__ import annotations

import errno
import json

import pytest

from dittool.demo.checker import SCENE_CHECKER
from dittool.errors import WeightsMissingError
from dittool.train.loop import train
from dittool.validate.run import ValidateOptions, validate
from tests.run_states import assert_same_bits, final_state


@pytest.fixture(scope="module")
def judged_run(tiny_shards, tmp_path_factory, new_listener):
    """The run of `tiny_run`, judged at steps 3, 6 and 8; with what was said."""
    run, listener = tmp_path_factory.mktemp("judged") / "run", new_listener()
    config = tiny_shards.config_with("validate.every=3", "validate.limit=2")
    train(config, tiny_shards.folder, run, checker=SCENE_CHECKER, talk=listener)
    return run, listener


def test_a_run_that_is_judged_on_the_way_ends_with_the_same_bits(tiny_run, judged_run):
    assert_same_bits(final_state(tiny_run), final_state(judged_run[0]))


def test_each_judgement_stands_in_the_runs_folder_and_says_its_verdict(judged_run):
    run, listener = judged_run
    assert sorted(path.name for path in (run / "validation").iterdir()) == ["step0000003", "step0000006", "step0000008"]
    results = json.loads((run / "validation" / "step0000006" / "results.json").read_text())
    assert (results["step"], results["weights"]) == (6, "ema")
    assert "data:image/png" in (run / "validation" / "step0000006" / "report.html").read_text(), "the loss curve so far"
    assert [note.split(":")[0] for note in listener.notes if "GO" in note] == ["step 3", "step 6", "step 8"]


def test_judged_are_the_averaged_weights_of_that_step(judged_run, tiny_run, tiny_shards, tmp_path):
    saved = tiny_run / "checkpoints" / "checkpoint_step0000006.pt"
    options = ValidateOptions(limit=2, checker=SCENE_CHECKER)
    later = validate(saved, tiny_shards.folder, tmp_path / "later", options)
    then = json.loads((judged_run[0] / "validation" / "step0000006" / "results.json").read_text())
    for part in ("reconstruction", "dino_swap", "text_manip"):
        assert then[part] == json.loads(json.dumps(later.results[part]))


def test_by_default_nothing_is_judged_on_the_way(tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("dittool.validate.run.validate_pipeline", pytest.fail)
    train(tiny_shards.config_with("train.steps=3"), tiny_shards.folder, tmp_path / "run")
    assert not (tmp_path / "run" / "validation").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (WeightsMissingError("AlexNet is not here", "name it"), "AlexNet is not here"),
        (OSError(errno.ENOSPC, "Disk full", "page"), "Disk full"),
    ],
)
def test_what_cannot_be_judged_is_told_and_training_goes_on(
    tiny_run, tiny_shards, tmp_path, monkeypatch, listener, error, said
):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("dittool.validate.run.validate_pipeline", fails)
    run = tmp_path / "run"
    train(tiny_shards.config_with("validate.every=4"), tiny_shards.folder, run, talk=listener)
    assert_same_bits(final_state(tiny_run), final_state(run))
    assert [warning.split(":")[0] for warning in listener.warnings] == ["step 4", "step 8"]
    assert said in listener.warnings[0] and "training goes on" in listener.warnings[0]
