"""A model whose own code would not run here: which line said so, and what is judged nevertheless."""

from __future__ import annotations

import json

import pytest

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from dittool.errors import UsageError
from tests.audit.opened import open_subject

TARGET = "tests.audit.refusing_models:Refusing"
RUN = ("R1", "R2", "E1", "E2", "E5", "C6", "C8")  # rules that need a run


def judged(example: str | None = None, **kwargs: object) -> dict[str, list[tuple[str, str]]]:
    subject = open_subject(TARGET, kwargs=json.dumps(kwargs), example=example)
    found: dict[str, list[tuple[str, str]]] = {}
    result = audit_subject(subject, built_in_rules())
    assert not result.crashes
    for each in result.findings:
        found.setdefault(each.rule.code, []).append((each.finding.status, each.finding.evidence))
    return found


@pytest.mark.parametrize("attention", ["cuda", "kernel", "inner_import", "optional_function"])
@pytest.mark.parametrize("example", [None, "tests.audit.refusing_models:example"])
def test_rules_that_need_a_run_are_skipped_with_the_line_that_would_not(attention, example):
    found = judged(example, attention=attention)
    for code in RUN:
        ((status, evidence),) = found[code]
        assert status == "skip" and "its own code refuses to run here" in evidence
        assert "refusing_models.py:" in evidence and f"in {attention}" in evidence


def test_structure_is_judged_all_the_same():
    biased, plain = judged(), judged(bias=False)
    assert biased["E3"][0][0] == "warn" and "4 biases" in biased["E3"][0][1]
    assert plain["E3"][0][0] == "pass"
    acting, unseen = plain["C1"]
    assert acting[0] == "pass" and "depth (shapes)" in acting[1] and "bias (shapes)" in acting[1]
    assert unseen[0] == "skip" and "unused" in unseen[1] and "nothing was run" in unseen[1]
    assert plain["C4"][0][0] == "pass"


def test_checkpointing_that_raises_in_training_is_broken():
    subject = open_subject("tests.audit.refusing_models:Uncheckpointed")
    result = audit_subject(subject, [rule for rule in built_in_rules() if rule.code == "E5"])
    (finding,) = (each.finding for each in result.findings)
    assert finding.status == "fail" and "with it on, training raises TypeError" in finding.evidence


def test_a_mistake_is_no_refusal():
    with pytest.raises(UsageError) as caught:
        judged(attention="own_mistake")
    assert "misspelt" in caught.value.message
