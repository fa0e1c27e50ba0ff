"""Habits of other people's models: each variant is judged as it deserves; what their code raises is said as theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from dittool.audit.specimens.leaves import leaves, with_leaves
from dittool.errors import UsageError
from tests.audit import foreign_answers, foreign_branches, foreign_inputs, foreign_kinds
from tests.audit.foreign_inputs import Given
from tests.audit.foreign_kinds import Net
from tests.audit.opened import open_subject
from tests.quick import others_slow

FILE = Path(foreign_kinds.__file__)
FAMILIES = (foreign_kinds, foreign_inputs, foreign_answers, foreign_branches)
KINDS = {kind: wanted for family in FAMILIES for kind, wanted in family.KINDS.items()}
EXAMPLES = {kind: example for family in FAMILIES for kind, example in family.EXAMPLES.items()}
RULES = built_in_rules()
QUICK = ("UShapedWithAnOpenMiddle", "ExchangedWhenTall", "PooledOfADataclassUnread", "NoiseOnItsInputExchanged")


def opened(kind, **options):
    file = next(
        family.__file__
        for family in FAMILIES
        if family.__name__ == getattr(getattr(family, kind, None), "__module__", None)
    )
    example = f"{file}:{EXAMPLES[kind]}" if kind in EXAMPLES else None
    return open_subject(f"{file}:{kind}", example=example, **options)


def judged(subject, codes=(), profile=None):
    result = audit_subject(subject, [rule for rule in RULES if not codes or rule.code in codes], profile=profile)
    assert not result.crashes, result.crashes
    return result


def alarms(result):
    worst: dict[str, str] = {}
    for each in result.findings:
        if each.finding.status in ("fail", "warn"):
            worst[each.rule.code] = max(
                each.finding.status, worst.get(each.rule.code, ""), key=("", "warn", "fail").index
            )
    return worst


@pytest.mark.parametrize("kind", others_slow(KINDS, QUICK))
def test_a_variant_is_judged_as_it_deserves(kind):
    assert alarms(judged(opened(kind))) == KINDS[kind]


def test_a_choice_warns_under_any_and_fails_under_scratch_with_what_it_costs():
    subject = opened("OpenTableOfVectors")
    (mild,), (strict,) = (judged(subject, ["E1"], profile).findings for profile in ("any", "scratch"))
    assert mild.finding.status == "warn" and "A choice" in mild.finding.evidence and "SD3" in mild.finding.evidence
    assert strict.finding.status == "fail" and "A choice" not in strict.finding.evidence


def test_what_the_models_own_code_raises_is_told_with_its_line_and_skips_what_depends_on_it():
    result = judged(opened("DeviceInTraining"), ["R1", "E5", "C6"])
    found = {each.rule.code: each.finding for each in result.findings}
    assert found["R1"].status == "warn" and "foreign_inputs.py:" in found["R1"].evidence
    assert "in condition" in found["R1"].evidence and found["C6"].status == "pass"


def test_weights_that_nothing_wrote_are_told(monkeypatch):
    result = judged(opened("NeverWritten"), ["R1"])
    assert any("1 tensors" in each.finding.evidence and "gain" in each.finding.evidence for each in result.findings)
    assert alarms(result)["R1"] in ("warn", "fail")  # what their memory holds may be finite


def test_on_an_answer_that_is_not_finite_nothing_else_is_judged(tmp_path):
    (tmp_path / "nan.py").write_text(
        f"import sys; sys.path.insert(0, {str(FILE.parents[2])!r})\nfrom tests.audit.foreign_kinds import Net\n"
        "class Nan(Net):\n    def forward(self, x, t, y): return super().forward(x, t, y).log()\n"
    )
    result = judged(open_subject(f"{tmp_path}/nan.py:Nan"))
    (only,) = result.findings
    assert (
        only.rule.code == "R1" and only.finding.status == "fail" and "so a computation is not" in only.finding.evidence
    )
    assert result.exit_code == 1


def test_a_model_that_is_said_to_be_trained_is_not_judged_as_a_beginning():
    (only,) = judged(open_subject(f"{FILE}:Net", trained=True), ["E1"]).findings
    assert only.finding.status == "skip" and "--trained says so" in only.finding.evidence


def test_a_factory_that_loads_weights_is_found_out(tmp_path):
    (tmp_path / "trained.py").write_text(
        f"import sys; sys.path.insert(0, {str(FILE.parents[2])!r})\nimport torch\n"
        "from tests.audit.foreign_kinds import Net\n"
        f"def trained():\n    net, path = Net(), {str(tmp_path / 'w.pt')!r}\n"
        "    net.load_state_dict(torch.load(path))\n    return net\n"
    )
    torch.save(Net().state_dict(), tmp_path / "w.pt")
    (only,) = judged(open_subject(f"{tmp_path}/trained.py:trained"), ["E1"]).findings
    assert only.finding.status == "skip" and "its factory calls load" in only.finding.evidence


def test_a_model_without_values_is_an_error_of_usage(tmp_path):
    (tmp_path / "meta.py").write_text(
        f"import sys; sys.path.insert(0, {str(FILE.parents[2])!r})\nimport torch\n"
        "from tests.audit.foreign_kinds import Net\n"
        "def meta():\n    with torch.device('meta'): return Net()\n"
    )
    with pytest.raises(UsageError, match="on the meta device"):
        open_subject(f"{tmp_path}/meta.py:meta")


def test_an_option_that_belongs_to_a_model_is_refused_elsewhere(dit):
    outcome = dit("audit", "demo", "--trained")
    assert outcome.code == 2 and "--trained belong to a model factory" in outcome.err


@pytest.mark.slow
def test_the_command_says_its_profile(dit):
    answer = json.loads(dit("audit", f"{FILE}:OpenTableOfVectors", "--select", "E1,R1", "--json").out)
    assert answer["profile"] == "any" and answer["ok"]
    assert {finding["code"]: finding["status"] for finding in answer["findings"]} == {"R1": "pass", "E1": "warn"}


def test_tensors_of_nested_inputs_have_names_and_can_be_exchanged():
    inputs = {
        "x": torch.zeros(2),
        "given": Given(torch.zeros(1), torch.ones(1), torch.zeros(1)),
        "more": [{"a": torch.ones(3)}],
    }
    assert set(leaves(inputs)) == {"x", "given.text", "given.pooled", "given.mask", "more[0].a"}
    other = with_leaves(inputs, {"given.text": torch.full((1,), 5.0)})
    assert other["given"].text == 5 and inputs["given"].text == 0 and other["more"] is inputs["more"]
