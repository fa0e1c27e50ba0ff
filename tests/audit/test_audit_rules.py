"""Each rule finds the faults planted for it, with numbers, and is silent on what is clean."""

from __future__ import annotations

import re
from functools import cache

import pytest

import tests.audit.planted_checkpoints
import tests.audit.planted_data
import tests.audit.planted_generators
import tests.audit.planted_models  # noqa: F401
from dittool.audit.registry import BUILT_IN, built_in_rules
from dittool.audit.runner import audit_subject
from dittool.config.load import load_config
from dittool.config.presets import preset_names
from tests.audit.opened import open_subject
from tests.audit.planted import PLANTED, Planted

RULES = {rule.code: rule for rule in built_in_rules()}


def judge(code, subject):
    result = audit_subject(subject, [RULES[code]])
    assert not result.crashes
    return [judged.finding for judged in result.findings]


def quick_ones() -> list[Planted]:
    """The first two of each rule: every run of the tests plants them."""
    of_rules = {code: [one for one in PLANTED if one.code == code and not one.slow] for code in BUILT_IN}
    return [one for planted in of_rules.values() for one in planted[:2]]


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param(
            planted, id=f"{planted.code}: {planted.fault}", marks=() if planted in quick_ones() else pytest.mark.slow
        )
        for planted in PLANTED
    ],
)
def test_a_planted_fault_is_found_by_its_rule(planted, workshop):
    findings = judge(planted.code, planted.plant(workshop))
    found = [finding for finding in findings if finding.status == planted.status]
    assert found, findings
    assert all(finding.fix for finding in found), "a fault without a next step"
    assert any(re.search(r"\d", finding.evidence) for finding in found), "evidence without a number"
    assert not (workshop.bench / "canary").exists()


def test_every_rule_has_a_planted_fault():
    assert {planted.code for planted in PLANTED} == set(BUILT_IN)


@pytest.mark.parametrize("target", ["shards", "derived", "run", "run/checkpoints/checkpoint_final.pt"])
def test_no_rule_finds_a_fault_in_what_is_clean(clean, target):
    result = audit_subject(open_subject(str(clean / target)), list(RULES.values()))
    assert not result.crashes
    assert [judged for judged in result.findings if judged.finding.status not in ("pass", "skip")] == []


QUICK = {"demo", "drift-toy", "drift-demo", "drift-mae-demo"}


@cache
def audited(preset):
    return audit_subject(open_subject(preset), list(RULES.values()))


@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in preset_names()]
)
def test_every_shipped_preset_is_clean(preset):
    result = audited(preset)
    assert not result.crashes
    skipped = {judged.rule.code for judged in result.findings if judged.finding.status == "skip"}
    assert {judged.finding.status for judged in result.findings} <= {"pass", "skip"}
    assert skipped <= {"C1"}  # keys that act only while a run trains
    assert (
        result.counts["pass"] >= {"dit": 8, "drift": 7, "drift-toy": 2, "latent-mae": 2}[load_config(preset).model.arch]
    )


@pytest.mark.slow
def test_every_rule_passes_on_something_clean(clean):
    """A rule that only ever skips proves nothing."""
    subjects = [open_subject(str(clean / "shards")), open_subject(str(clean / "run"))]
    results = [audited("demo"), audited("drift-demo")]
    results += [audit_subject(subject, list(RULES.values())) for subject in subjects]
    assert {
        judged.rule.code for result in results for judged in result.findings if judged.finding.status == "pass"
    } == set(BUILT_IN)


def test_an_older_set_without_an_index_is_audited_as_it_is(workshop):
    subject = workshop.open(workshop.without_index(workshop.shards()))
    statuses = {
        judged.rule.code: judged.finding.status for judged in audit_subject(subject, list(RULES.values())).findings
    }
    assert "fail" not in statuses.values()
    assert statuses["D4"] == "warn" and statuses["D5"] == "skip"


def test_weights_alone_are_judged_as_far_as_they_go(workshop, clean):
    from dittool.ckpt.inspect import export_safetensors

    path = workshop.bench / "weights.safetensors"
    export_safetensors(clean / "run/checkpoints/checkpoint_final.pt", path)
    statuses = {
        judged.rule.code: judged.finding.status
        for judged in audit_subject(open_subject(str(path)), list(RULES.values())).findings
    }
    assert statuses["K1"] == statuses["K2"] == statuses["K3"] == statuses["C6"] == "pass"
    assert statuses["K5"] == statuses["K6"] == statuses["D4"] == "skip"


def test_a_foreign_state_dict_is_judged_by_its_tensors_and_the_rest_says_why_not(workshop):
    import torch

    torch.save({"state_dict": {"layer.weight": torch.ones(2, 2)}}, workshop.bench / "foreign.pt")
    subject = open_subject(str(workshop.bench / "foreign.pt"))
    findings = {judged.rule.code: judged.finding for judged in audit_subject(subject, list(RULES.values())).findings}
    assert findings["K1"].status == findings["K2"].status == "pass"
    assert findings["E1"].status == findings["K3"].status == "skip"
    assert "which configuration" in findings["E1"].evidence
    assert (
        judge("K3", workshop.open(workshop.bench / "foreign.pt", subject.expected or open_subject("demo").config))[
            0
        ].status
        == "fail"
    )


def test_a_huge_preset_is_tried_on_a_twin_and_the_evidence_says_so():
    (finding,) = judge("E1", open_subject("base"))
    assert "tried on a twin of depth 2" in finding.evidence
    (finding,) = judge("E3", open_subject("base"))
    assert "475," in finding.evidence and "twin" not in finding.evidence


def test_a_checkpoint_without_its_optimizer_is_judged_by_every_rule(workshop):
    """`judge` fails where a rule breaks."""
    subject = workshop.open(workshop.checkpoint(lambda content: content.pop("optimizer")))
    findings = [finding for code in RULES if code.startswith("K") for finding in judge(code, subject)]
    assert "without an optimizer's state" in " ".join(finding.evidence for finding in findings)
