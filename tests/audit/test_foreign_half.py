"""Models in half precision are judged cast to float32 and run once as they were built; that they are half is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from tests.audit import foreign_half
from tests.audit.opened import open_subject

FILE = Path(foreign_half.__file__)


def found(target, *codes, example=None, **kwargs):
    rules = [rule for rule in built_in_rules() if rule.code in codes]
    result = audit_subject(open_subject(target, kwargs=json.dumps(kwargs), example=example), rules)
    assert not result.crashes, result.crashes
    return {each.rule.code: each.finding for each in result.findings}


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("Net", {"E1": "pass", "E2": "pass"}),
        pytest.param("Turning", {"E1": "pass", "E2": "pass"}, marks=pytest.mark.slow),
        pytest.param("ScaleWithoutOne", {"E1": "fail", "E2": "pass"}, marks=pytest.mark.slow),
        ("ExchangedWhenTall", {"E1": "pass", "E2": "fail"}),
        ("ConvolutionsFirst", {"E1": "pass"}),
    ],
)
def test_what_rules_say_of_a_half_model_is_what_they_say_of_its_twin(kind, wanted):
    verdicts = found(f"{FILE}:half", "R1", "C4", "E1", "E2", kind=kind)
    assert {code: verdicts[code].status for code in wanted} == wanted
    assert verdicts["R1"].status == "pass" and "judged cast to float32" in verdicts["R1"].evidence
    assert verdicts["C4"].status == "warn" and "bfloat16" in verdicts["C4"].evidence


def test_a_wrong_turn_in_half_is_found():
    assert "no rotation" in found(f"{FILE}:turned", "E2", block="WithoutMinus")["E2"].evidence


@pytest.mark.parametrize("kind", ["CastAtItsBlocks", "KeepsItsKind"])
def test_mixed_kinds_and_a_kind_that_the_model_keeps_run_in_float32(kind):
    verdicts = found(f"{FILE}:{kind}", "R1", "C4", "E1", "E2")
    assert [verdicts[code].status for code in ("R1", "E1", "E2")] == ["pass", "pass", "pass"]
    assert "as it was built it runs given" in verdicts["R1"].evidence and "bfloat16" in verdicts["C4"].evidence


def test_an_example_in_half_is_cast():
    verdicts = found(f"{FILE}:half", "R1", "E1", "E2", example=f"{FILE}:example_in_half", kind="Net", dtype="float16")
    assert [verdicts[code].status for code in ("R1", "E1", "E2")] == ["pass", "pass", "pass"]


def test_a_model_that_casts_itself_to_half_is_judged_in_half():
    verdicts = found(f"{FILE}:CastsItself", "R1", "E1")
    assert verdicts["R1"].status == "pass" and "judged cast" not in verdicts["R1"].evidence
    assert verdicts["E1"].status == "pass"


def test_values_beyond_float16_are_said_and_nothing_else():
    verdicts = found(f"{FILE}:Overflows", "R1", "E1", "C4")
    assert verdicts["R1"].status == "fail" and "weights are float16" in verdicts["R1"].evidence
    assert "E1" not in verdicts or verdicts["E1"].status == "skip"


def test_a_model_that_does_not_run_as_it_was_built_is_warned_of():
    verdicts = found(f"{FILE}:Misfit", "R1", "E1")
    assert verdicts["R1"].status == "warn" and "expected Float, found BFloat16" in verdicts["R1"].evidence
    assert verdicts["E1"].status == "pass"
