"""The faults of tests/validate/test_planted_faults.py in models that were really trained, on the demo's data.
Minutes: `pytest -m slow`.
"""

from __future__ import annotations

import pytest

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.shards.read import ShardSet
from dittool.data.shards.write import shard
from dittool.demo.checker import SCENE_CHECKER
from dittool.demo.drawing import draw_dataset
from dittool.demo.run import run_demo
from dittool.sampling.pipeline import Pipeline
from dittool.train.loop import train
from dittool.validate.run import ValidateOptions, validate_pipeline

pytestmark = pytest.mark.slow

LIMIT = 20


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of a finished demo run."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    run_demo(out)
    return out


def judged(pipeline, run, shards, out):
    """(what failed, the diagnosis, results)"""
    options = ValidateOptions(limit=LIMIT, checker=SCENE_CHECKER)
    done = validate_pipeline(pipeline, ShardSet.open(shards), out, options, run=run)
    assert (done.verdict == "NO-GO") == any(one.passed is False for one in done.criteria)
    return {one.name for one in done.criteria if one.passed is False}, done.results["diagnosis"], done.results


def trained(demo):
    return Pipeline.load(demo / "checkpoints" / "checkpoint_final.pt")


def test_without_a_fault_nothing_fails(demo, tmp_path):
    failed, diagnosis, results = judged(trained(demo), demo, demo / "data" / "shards", tmp_path)
    assert failed == set() and diagnosis == ""
    assert min(results["mode_losses"]["effect"].values()) > 0.05


def test_a_cut_text_path(demo, tmp_path):
    pipeline = trained(demo)
    pipeline.model.conditioning.text_proj.weight.zero_()
    failed, diagnosis, results = judged(pipeline, demo, demo / "data" / "shards", tmp_path)
    assert failed == {"edit_shown"}
    assert diagnosis.startswith("The caption is not followed") and "path into the model is cut" in diagnosis
    assert results["mode_losses"]["effect"]["text"] == pytest.approx(0, abs=1e-4)
    assert results["text_manip"]["sensitivity"] == pytest.approx(0, abs=1e-3)


def test_a_cut_reference_path(demo, tmp_path):
    pipeline = trained(demo)
    pipeline.model.conditioning.dino_proj.weight.zero_()
    pipeline.model.conditioning.dino_patch_proj.weight.zero_()
    failed, diagnosis, results = judged(pipeline, demo, demo / "data" / "shards", tmp_path)
    assert "swap_closer" in failed and "edit_shown" not in failed
    assert diagnosis.startswith("The reference is not followed") and "path into the model is cut" in diagnosis
    assert results["mode_losses"]["effect"]["reference"] == pytest.approx(0, abs=1e-4)


def test_truth_from_normalised_latents(demo, tmp_path):
    pipeline = trained(demo)
    pipeline.decode = pipeline.codec.decode
    failed, diagnosis, _ = judged(pipeline, demo, demo / "data" / "shards", tmp_path)
    assert "truth_as_result" in failed and diagnosis.startswith("The measurement is wrong, not the model")


def test_a_model_that_memorised_without_conditions(tmp_path):
    """A dozen small images again and again, all conditions dropped."""
    dropped = [
        f"dropout.{mode}={share}"
        for mode, share in (("none", 1.0), ("text_only", 0.0), ("reference_only", 0.0), ("both", 0.0))
    ]
    small = ["data.area=64x64", "model.depth=4", "train.steps=1500", "train.batch_size=16", "train.lr=1e-3"]
    config = load_config("demo", [*dropped, *small, "train.sample_every=0", "train.eval_every=0"])
    draw_dataset(tmp_path / "images", 24, seed=0)
    embed(tmp_path / "images", tmp_path / "derived", config)
    shard(tmp_path / "derived", tmp_path / "shards", holdout=0.5)
    run = tmp_path / "run"
    done = train(config, tmp_path / "shards", run)
    failed, diagnosis, results = judged(Pipeline.load(done.checkpoint), run, tmp_path / "shards", tmp_path / "out")
    assert {"gap_closed", "swap_closer", "edit_shown"} <= failed
    assert "learned by heart without looking at the conditions" in diagnosis
    assert results["mode_losses"]["loss_ratio"]["none"] > 1.5
