"""Models in the manner of others, each asked what its habit, or its planted fault, is about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from tests.audit import foreign_habits, foreign_strangers, foreign_strangers_tokens
from tests.audit.opened import open_subject
from tests.quick import every_third

FAMILIES = (foreign_strangers, foreign_strangers_tokens)
JUDGED = {kind: answers for family in FAMILIES for kind, answers in family.JUDGED.items()}
WORST = ("skip", "pass", "warn", "fail")


def judged(kind, codes):
    rules = [rule for rule in built_in_rules() if rule.code in codes]
    file = next(family.__file__ for family in FAMILIES if kind in family.JUDGED)
    result = audit_subject(open_subject(f"{file}:{kind}"), rules, profile="any")
    assert not result.crashes, result.crashes
    return result.findings


def worst(findings):
    found: dict[str, str] = {}
    for each in findings:
        code, status = each.rule.code, each.finding.status
        found[code] = max(status, found.get(code, "skip"), key=WORST.index)
    return found


@pytest.mark.parametrize("kind", every_third(JUDGED))
def test_a_strangers_model_is_judged_as_it_deserves(kind):
    assert worst(judged(kind, JUDGED[kind])) == JUDGED[kind]


def test_an_argument_that_only_a_trainer_reads_is_not_called_dead():
    skipped = next(each.finding.evidence for each in judged("HandsOn", ["C1"]) if each.finding.status == "skip")
    assert "configure_optimizers (foreign_strangers.py:" in skipped and "on_batch_end" in skipped


def test_a_copy_that_is_neither_trained_nor_run_is_left_out_and_named():
    (only,) = judged("HandsOn", ["R1"])
    assert "left out, neither trained nor run: average" in only.finding.evidence


@pytest.mark.parametrize("habit", ["one_time_for_all", "averaged_time"])
def test_a_model_that_mixes_its_samples_is_still_given_a_time_for_each(habit):
    kwargs = json.dumps({"style": "fused", "habit": habit})
    subject = open_subject(f"{Path(foreign_habits.__file__)}:with_habit", kwargs=kwargs)
    assert subject.specimen.inputs()["t"].shape == (2,)
