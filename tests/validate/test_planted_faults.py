"""Four faults that a verdict must catch, each for its own reason. The same with trained models:
tests/demo/test_models_with_planted_faults.py.
"""

from __future__ import annotations

import pytest

from tests.validate.oracle import judge


def failed(done):
    return {one.name for one in done.criteria if one.passed is False}


def test_a_cut_text_path_is_no_go_because_captions_are_not_followed(drawn, oracle, tmp_path):
    done = judge(oracle(cut=["text"]), drawn[0], tmp_path)
    assert (done.verdict, failed(done)) == ("NO-GO", {"edit_shown", "edit_shown_shape"})
    assert done.results["diagnosis"].startswith("The caption is not followed")


def test_a_model_that_reads_all_but_the_shape_is_no_go_where_shapes_have_a_threshold(drawn, oracle, tmp_path):
    keys = ['validate.edits=[["left", "right"], ["circle", "square"]]', "validate.thresholds.edit_shown=0.2"]
    keys.append("validate.thresholds.edit_shown_shape=0.7")
    done = judge(oracle(*keys, cut=["shape"]), drawn[0], tmp_path / "cut")
    assert (done.verdict, failed(done)) == ("NO-GO", {"edit_shown_shape"})
    assert "✘" in done.report.read_text() and "edits of the shape that show" in done.report.read_text()
    whole = judge(oracle(*keys), drawn[0], tmp_path / "whole")
    assert whole.verdict == "GO" and any(one.name == "edit_shown_shape" and one.passed for one in whole.criteria)


def test_a_threshold_of_shapes_that_nothing_edits_says_so(drawn, oracle, tmp_path):
    done = judge(oracle('validate.edits=[["left", "right"]]'), drawn[0], tmp_path)
    line = next(one for one in done.criteria if one.name == "edit_shown_shape")
    assert line.passed is None and "circle and square" in line.reason


def test_a_cut_reference_path_is_no_go_because_references_are_not_followed(drawn, oracle, tmp_path):
    done = judge(oracle(cut=["reference"]), drawn[0], tmp_path)
    assert done.verdict == "NO-GO" and "swap_closer" in failed(done) and "edit_shown" not in failed(done)
    assert done.results["diagnosis"].startswith("The reference is not followed")


def test_a_model_that_memorised_without_conditions_is_no_go_and_is_called_that(drawn, oracle, tmp_path):
    shards = drawn[0]
    done = judge(oracle("sample.steps=12").memorised(shards), shards, tmp_path)
    assert done.verdict == "NO-GO" and {"gap_closed", "swap_closer", "edit_shown"} <= failed(done)
    assert "learned by heart without looking at the conditions" in done.results["diagnosis"]
    modes = done.results["mode_losses"]
    assert modes["effect"] == {"text": 0, "reference": 0, "divergence": 0}
    assert modes["loss_ratio"]["none"] > 1.5
    assert done.results["reconstruction"]["gap_closed"] == pytest.approx(0, abs=1e-6)


def test_the_memoriser_is_no_better_on_its_own_training_images(drawn, oracle, tmp_path):
    """It draws them, and not the one that was asked for."""
    shards = drawn[0]
    done = judge(oracle("sample.steps=12").memorised(shards), shards, tmp_path, split="train", limit=10)
    assert done.verdict == "NO-GO" and {"gap_closed", "swap_closer"} <= failed(done)


def test_truth_from_normalised_latents_is_no_go_because_the_measurement_is_wrong(drawn, oracle, tmp_path):
    model = oracle()
    model.decode = model.codec.decode  # the normalisation is not undone
    done = judge(model, drawn[0], tmp_path)
    assert done.verdict == "NO-GO" and "truth_as_result" in failed(done)
    assert done.results["diagnosis"].startswith("The measurement is wrong, not the model")
    assert "The measurement is wrong" in done.report.read_text()


def test_the_command_line_says_the_reason(drawn, oracle, tmp_path, monkeypatch, dit):
    from dittool.sampling.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: oracle(cut=["text"])))
    (tmp_path / "checkpoint_final.pt").touch()
    ended = dit("validate", tmp_path / "checkpoint_final.pt", "--data", drawn[0].folder, "--quiet")
    assert ended.code == 1
    assert "✘ edited captions whose edit shows: the caption is not understood" in ended.out
    assert "The caption is not followed" in ended.out
