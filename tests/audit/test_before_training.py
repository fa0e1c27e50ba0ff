"""`dit train` audits its configuration first, and the result stays with the run."""

from __future__ import annotations

import json

from dittool.audit import runner
from dittool.audit.registry import RuleSet, load_rules
from dittool.config.load import load_config
from dittool.console import SILENT
from tests.audit.opened import audit_before_training

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
    assert "## C5 schedule: pass" in (tmp_path / "run/audit.md").read_text()


def test_a_folder_with_checkpoints_keeps_its_audit(tiny_run):
    assert audit_before_training(load_config("demo"), "demo", tiny_run, tiny_run, SILENT) is None
    assert not (tiny_run / "audit.json").exists()
