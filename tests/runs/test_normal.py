"""Figures that leave the band of a preset's reference runs, and those that stay."""

from __future__ import annotations

import json
import shutil

import pytest

from dittool.config.load import load_config
from dittool.config.presets import preset_folder
from dittool.data.provenance import Provenance
from dittool.data.shards.index import TRAIN
from dittool.data.shards.read import ShardSet
from dittool.demo.run import IMAGES, drawn_shards
from dittool.runs import normal
from dittool.runs.chart import Band
from dittool.runs.normal import Curves, curves_of, newly_outside
from dittool.runs.page import settings_of, write_page
from dittool.train.loop import train

CURVES = Curves("demo", [0, 1, 2], {"loss": Band([10, 100], [0.9, 0.9], [1.1, 1.1])})


def rows(values, start=1):
    return [{"step": 10 * number, "loss": value} for number, value in enumerate(values, start)]


def said(log):
    found, so_far = [], []
    for row in log:
        so_far.append(row)
        for figure, text in newly_outside(so_far, CURVES).items():
            so_far.append({"step": row["step"], "outside_figure": figure, "outside": text})
            found.append((row["step"], text))
    return found


def test_inside_nothing_is_said():
    assert said(rows([1.0] * 10)) == []


def test_one_outlier_is_none():
    assert said(rows([1.0, 1.0, 1.0, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])) == []


@pytest.mark.parametrize(("factor", "side", "meant"), [(1.6, "above", "learning rate"), (0.6, "below", "dropout")])
def test_what_stays_outside_is_said_once_with_its_meaning(factor, side, meant):
    ((step, text),) = said(rows([factor] * 10))
    assert step == 70 and f", {side} what runs of demo have" in text and meant in text and "3 seeds" in text


def test_behind_the_band_nothing_is_known():
    assert said(rows([5.0] * 10, start=95)) == []


def test_values_that_are_no_numbers_do_not_break_it():
    log = rows([1.0] * 10)
    log[4]["loss"], log[5]["loss"] = float("nan"), 0.0
    assert isinstance(said(log), list)


CURVE_FILES = sorted(preset_folder().glob("*.curves.json"))


@pytest.mark.parametrize("path", CURVE_FILES, ids=lambda path: path.stem)
def test_curves_that_ship_fit_their_preset(path):
    found = json.loads(path.read_text())
    config = load_config(found["preset"])
    assert path.name == f"{found['preset']}.curves.json" and len(set(found["seeds"])) >= 3
    assert (found["steps"], found["batch_size"]) == (config.train.steps, config.train.batch_size)
    for name, band in found["figures"].items():
        assert name in normal._NAMES and band["steps"] == sorted(set(band["steps"]))
        assert len(band["steps"]) == len(band["low"]) == len(band["high"])
        assert all(0 < low < high for low, high in zip(band["low"], band["high"], strict=True))


@pytest.mark.slow
def test_the_demos_curves_are_of_its_data(tmp_path):
    shards = drawn_shards(tmp_path, load_config("demo"), IMAGES)
    opened = ShardSet.open(shards)
    found = json.loads((preset_folder() / "demo.curves.json").read_text())
    assert found["identity_hash"] == opened.identity_hash
    assert found["order_hash"] == Provenance.of(opened, opened.split(TRAIN), load_config("demo")).order_hash


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Writes curves for `demo` as a preset's folder has them; returns how."""
    (tmp_path / "presets").mkdir()
    monkeypatch.setattr(normal, "preset_folder", lambda: tmp_path / "presets")

    def ship(run, low, high):
        record = json.loads((run / "run.json").read_text())
        content = {key: record[key] for key in ("identity_hash", "order_hash")}
        content |= {"preset": "demo", "steps": 8, "batch_size": settings_of(run).toml and 4, "seeds": [0, 1, 2]}
        content["figures"] = {"loss": {"steps": [1, 8], "low": [low] * 2, "high": [high] * 2}}
        (tmp_path / "presets" / "demo.curves.json").write_text(json.dumps(content))

    return ship


def test_only_runs_of_the_preset_on_its_data_are_held_against_it(tiny_run, tmp_path, shipped):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shipped(run, 0.5, 2.0)
    assert curves_of(run, "demo", 8, 4).bands["loss"].high == [2.0, 2.0]
    assert curves_of(run, "nano", 8, 4) is None
    assert curves_of(run, "demo", 9, 4) is None and curves_of(run, "demo", 8, 5) is None
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"order_hash": "of others"}))
    assert curves_of(run, "demo", 8, 4) is None


def test_a_run_outside_is_warned_and_goes_on(tiny_run, tiny_shards, tmp_path, shipped, new_listener):
    batch = tiny_shards.config.train.batch_size
    shipped(tiny_run, 1e-6, 2e-6)
    path = normal.preset_folder() / "demo.curves.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"batch_size": batch}))
    listener, out = new_listener(), tmp_path / "run"
    config = tiny_shards.config_with("train.log_every=1")
    assert train(config, tiny_shards.folder, out, talk=listener).step == 8
    warned = [line for line in listener.warnings if "above what runs of demo have" in line]
    assert len(warned) == 1 and warned[0].startswith("step 7: the loss is")
    shown = (out / "index.html").read_text()
    assert "above what runs of demo have" in shown and 'class="band"' in shown
    assert write_page(out, [{"step": 1, "loss": 1.0}], settings_of(out)).is_file()
