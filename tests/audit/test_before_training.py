"""`dit train` audits its configuration and a sample of its data first, and the result stays with the run."""

from __future__ import annotations

import json

from dittool.audit import runner
from dittool.audit.registry import RuleSet, load_rules
from dittool.config.load import load_config
from dittool.console import SILENT
from tests.audit.opened import audit_before_training
from tests.audit.planted_data import late_latents, transposed_grid

FORGETS_NOTHING = ("-s", "ema.target=0.99999", "-s", "ema.warmup=linear", "-s", "ema.warmup_steps=1")


def use_only(monkeypatch, *codes):
    rules = RuleSet(tuple(rule for rule in load_rules().rules if rule.code in codes), ())
    monkeypatch.setattr(runner, "load_rules", lambda: rules)


def test_a_plan_that_breaks_a_rule_is_not_trained(dit, tiny_shards, tmp_path, monkeypatch):
    use_only(monkeypatch, "E4")
    outcome = dit(
        "train", "--preset", "demo", "--data", tiny_shards.folder, "--out", tmp_path / "run", *FORGETS_NOTHING
    )
    assert outcome.code == 1
    assert "E4 ema-warmup" in outcome.out and "--no-audit" in outcome.err
    assert not (tmp_path / "run/checkpoints").exists()
    assert json.loads((tmp_path / "run/audit.json").read_text())["ok"] is False


def test_without_the_audit_it_is_trained_all_the_same(dit, tiny_shards, tmp_path):
    overrides = [part for override in tiny_shards.overrides for part in ("-s", override)]
    outcome = dit(
        "train",
        "--preset",
        "demo",
        "--data",
        tiny_shards.folder,
        "--out",
        tmp_path / "run",
        *overrides,
        *FORGETS_NOTHING,
        "--no-audit",
    )
    assert outcome.code == 0
    assert not (tmp_path / "run/audit.json").exists()


def test_the_result_lies_in_the_runs_folder(dit, tiny_shards, tmp_path, monkeypatch):
    use_only(monkeypatch, "C3", "C5")
    overrides = [part for override in tiny_shards.overrides for part in ("-s", override)]
    assert (
        dit("train", "--preset", "demo", "--data", tiny_shards.folder, "--out", tmp_path / "run", *overrides).code == 0
    )
    assert [finding["code"] for finding in json.loads((tmp_path / "run/audit.json").read_text())["findings"]] == [
        "C3",
        "C5",
    ]
    assert "| C5 schedule |" in (tmp_path / "run/audit.md").read_text()


def test_a_folder_with_checkpoints_keeps_its_audit(tiny_run):
    assert audit_before_training(load_config("demo"), "demo", tiny_run, tiny_run, SILENT) is None
    assert not (tiny_run / "audit.json").exists()


def train_on(dit, shards, run, *more):
    return dit("train", "--preset", "demo", "--data", shards, "--out", run, "-s", "data.area=96x96", *more)


def test_latents_of_other_images_are_not_trained_on(dit, workshop, monkeypatch):
    """The rules look at a sample, and at nothing that the run does not read."""
    shards = late_latents(workshop).data.folder
    use_only(monkeypatch, "D1", "D3", "D10", "D5", "D7")
    outcome = train_on(dit, shards, workshop.bench / "run")
    assert outcome.code == 1 and "of different images" in outcome.out and "--no-audit" in outcome.err
    assert not (workshop.bench / "run/checkpoints").exists()
    found = json.loads((workshop.bench / "run/audit.json").read_text())["findings"]
    assert {finding["code"] for finding in found} == {"D1", "D3", "D10"}


def test_patches_that_a_model_does_not_read_do_not_stop_it(dit, workshop, monkeypatch):
    shards = transposed_grid(workshop).data.folder
    use_only(monkeypatch, "D3")
    few = ("-s", "train.steps=1", "-s", "train.warmup_steps=0", "-s", "model.depth=1", "-s", "train.batch_size=2")
    without = ("-s", "model.patches=false", "-s", "model.patch_fusion=attended")
    assert train_on(dit, shards, workshop.bench / "run", *few).code == 1
    assert train_on(dit, shards, workshop.bench / "other", *few, *without).code == 0


def test_data_that_cannot_be_read_end_the_run_as_damaged(dit, workshop, monkeypatch):
    """Not as the answer of a rule."""
    shards = workshop.shards()
    for tar in shards.glob("bucket_*/*.tar"):
        tar.write_bytes(tar.read_bytes().replace(b"\x93NUMPY", b"\x93NUMPX"))
    use_only(monkeypatch, "D1", "D3")
    outcome = train_on(dit, shards, workshop.bench / "run")
    assert outcome.code == 3, outcome
    assert not (workshop.bench / "run/audit.json").exists()


def test_a_set_too_small_to_be_judged_is_trained_on(dit, tiny_shards, tmp_path, monkeypatch):
    use_only(monkeypatch, "D1", "D2", "D3", "D10")
    overrides = [part for override in tiny_shards.overrides for part in ("-s", override)]
    outcome = dit("train", "--preset", "demo", "--data", tiny_shards.folder, "--out", tmp_path / "run", *overrides)
    assert outcome.code == 0
    statuses = [finding["status"] for finding in json.loads((tmp_path / "run/audit.json").read_text())["findings"]]
    assert "skip" in statuses and "fail" not in statuses
