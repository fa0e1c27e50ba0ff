"""A validation once more: what is the same, what only rounds otherwise, and what is another result."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dittool.errors import BadDataError
from dittool.sampling.pipeline import Pipeline
from dittool.storage import read_json, write_json
from dittool.validate.repetition import compare_results, recorded

MADE = {"asked": {"tests": ["fid"]}, "made_of": {"checkpoint": "aa"}, "made_with": {"threads": 1}}


def test_numbers_are_equal_or_rounded_or_different_and_the_worst_comes_first():
    then = {**MADE, "seconds": 3.0, "a": {"mean": 0.5, "pairs": 7, "name": "x"}, "b": [0.25, 1e-9], "verdict": "GO"}
    now = {**MADE, "seconds": 9.0, "a": {"mean": 0.5004, "pairs": 8, "name": "y"}, "b": [0.3, 2e-9], "verdict": "GO"}
    found = compare_results(then, now)
    assert found.numbers == 4 and not found.same
    assert {one.where: one.is_rounding for one in found.differences} == {
        "a.mean": True,
        "a.pairs": False,
        "a.name": False,
        "b[0]": False,
        "b[1]": True,
    }
    assert [one.is_rounding for one in found.differences] == [False] * 3 + [True] * 2
    assert "4 numbers: 0 equal to the bit, 2 within rounding, 3 beyond it" in found.line
    same = compare_results(then, {**then, "made_with": {"threads": 2}})
    assert same.same and not same.other_inputs and same.made_otherwise == ["threads: 2, then 1"]


def test_other_inputs_are_named_where_numbers_differ():
    found = compare_results({**MADE, "x": 1.0}, {**MADE, "made_of": {"checkpoint": "bb"}, "x": 2.0})
    assert "the inputs are not those of then" in found.line and "checkpoint: bb, then aa" in found.made_otherwise


def test_results_that_do_not_say_how_they_were_made_cannot_be_repeated(tmp_path):
    write_json(tmp_path / "results.json", {"verdict": "GO"})
    with pytest.raises(BadDataError, match="does not say how it was made"):
        recorded(tmp_path / "results.json")


def test_a_judgement_is_repeated_to_the_bit_and_a_changed_figure_is_found(drawn, oracle, tmp_path, monkeypatch, dit):
    monkeypatch.setattr(Pipeline, "load", staticmethod(lambda checkpoint: oracle()))
    (tmp_path / "checkpoint_final.pt").touch()
    line = ("validate", tmp_path / "checkpoint_final.pt", "--data", drawn[0].folder, "--quiet")
    dit(*line, "--tests", "dino_swap,mode_losses", "--limit", "2")
    path = tmp_path / "validation" / "step0001234_dino_swap_mode_losses_limit2" / "results.json"
    results = read_json(path)
    assert results["asked"]["limit"] == 2 and results["made_of"]["encoders"]["text"]["weights"]
    assert {"dit", "sources", "torch", "numpy", "threads", "python"} <= results["made_with"].keys()

    ended = dit("validate", "--repeat", path, "--json", "--quiet")
    assert ended.code == 0, ended.err
    printed = json.loads(ended.out)
    assert printed["same"] and printed["differences"] == [] and printed["numbers"] > 50
    assert (path.parent.with_name(f"{path.parent.name}_repeat") / "repeat.json").is_file()

    results["dino_swap"]["mean_margin"] += 0.1
    write_json(path, results)
    ended = dit("validate", "--repeat", path, "--quiet", "--out", tmp_path / "again")
    assert ended.code == 1 and "dino_swap.mean_margin" in ended.out and "1 beyond it" in ended.out


def test_a_measured_set_is_repeated_from_its_files(tmp_path, dit):
    rows = np.random.RandomState(0).randn(2, 60, 5).astype(np.float32)
    np.savez(tmp_path / "a.npz", arr_0=rows[0])
    np.savez(tmp_path / "b.npz", arr_0=rows[1])
    dit("validate", tmp_path / "a.npz", "--reference", tmp_path / "b.npz", "--tests", "fid,precision-recall", "--quiet")
    path = tmp_path / "a_figures" / "results.json"
    assert dit("validate", "--repeat", path, "--quiet").code == 0
    np.savez(tmp_path / "b.npz", arr_0=rows[1] + 1)
    ended = dit("validate", "--repeat", path)
    assert ended.code == 1 and "the inputs are not those of then" in ended.out
