"""The frame around the rules: pages, registry, plugins, selection, reports and the command."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest

import dittool.audit.rules
from dittool.audit import registry, report
from dittool.audit.registry import BUILT_IN, RuleSet, built_in_rules, load_rules
from dittool.audit.rule import HEADINGS, BrokenRule, Finding, Rule, rule_from_module
from dittool.audit.runner import audit_subject
from dittool.audit.subject import Subject
from dittool.errors import UsageError
from tests.audit.opened import audit, open_subject

DOCS = Path(__file__).parents[2] / "docs"
RULES = built_in_rules()


def make_rule(check, code="X1", severity="error", scopes=("preset",)) -> Rule:
    page = "Something holds.\n" + "".join(f"\n## {heading}\nText.\n" for heading in HEADINGS)
    return Rule(code, "made-up", severity, scopes, "0.1", page, check)


@pytest.fixture
def preset() -> Subject:
    return open_subject("demo")


# Rules and their pages


def test_the_table_and_the_folder_hold_the_same_rules():
    files = {path.stem for path in Path(dittool.audit.rules.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(BUILT_IN.values())
    assert [rule.code for rule in RULES] == list(BUILT_IN)
    assert all(module.startswith(f"{code}_") for code, module in BUILT_IN.items())


def test_codes_and_names_are_unique():
    assert len({rule.code for rule in RULES}) == len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_each_page_has_a_promise_and_all_headings_filled(rule):
    assert rule.promise.endswith(".")
    sections = dict(part.split("\n", 1) for part in rule.page.split("\n## ")[1:])
    assert list(sections) == list(HEADINGS)
    assert all(len(text.strip()) > 20 for text in sections.values())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_explain_prints_the_page(rule, dit):
    outcome = dit("audit", "--explain", rule.code)
    assert outcome.code == 0
    assert rule.page in outcome.out


def test_docs_hold_the_generated_page_of_all_rules(dit):
    outcome = dit("audit", "--explain", "all")
    assert (DOCS / "rules.md").read_text() == report.rules_page() == outcome.out, (
        "make it again: dit audit --explain all > docs/rules.md"
    )


def test_a_module_that_is_no_rule_is_refused_with_everything_it_lacks():
    module = ModuleType("half_a_rule", "One line.\n\n## What it checks\nThings.\n")
    module.CODE, module.SEVERITY = "one", "fatal"
    with pytest.raises(BrokenRule) as caught:
        rule_from_module(module)
    for missing in ("NAME is missing", "check is missing", "'## Fix'", "CODE 'one'", "SEVERITY 'fatal'"):
        assert missing in str(caught.value)


# Plugins


def plugin(name: str, source: str, tmp_path, monkeypatch) -> EntryPoint:
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return EntryPoint(name, name, registry.PLUGIN_GROUP)


GOOD_PLUGIN = '''"""It holds.

## What it checks
A thing.

## Why it matters
It does.

## Example
Such.

## Fix
So.
"""
from dittool.audit.rule import passed
CODE, NAME, SEVERITY, SCOPE, SINCE = "{code}", "mine", "error", ("preset",), "1"
def check(subject):
    return passed("1 of 1")
'''


def test_a_plugins_rule_runs_beside_ours(tmp_path, monkeypatch, preset):
    rules = load_rules([plugin("my_rule", GOOD_PLUGIN.format(code="M1"), tmp_path, monkeypatch)])
    assert rules.refused == ()
    (judged,) = audit_subject(preset, rules.selected(["M"])).findings
    assert (judged.rule.code, judged.finding.evidence) == ("M1", "1 of 1")


ASKING = """
from dittool.audit.subject import Preset
def check(subject: Preset):
    {question}
    zero = subject.specimen.zero_at_start()
    return passed(f"{{subject.config.train.steps}} steps; {{len(zero)}} tensors begin at zero")
"""


def test_a_plugins_rule_asks_a_subject_for_its_configuration_and_its_specimen(tmp_path, monkeypatch, preset):
    source = GOOD_PLUGIN.format(code="M2") + ASKING.format(question="pass")
    rules = load_rules([plugin("asking_rule", source, tmp_path, monkeypatch)])
    (judged,) = audit_subject(preset, rules.selected(["M2"])).findings
    assert judged.finding.status == "pass"
    assert re.fullmatch(r"[1-9]\d* steps; [1-9]\d* tensors begin at zero", judged.finding.evidence)


def test_a_question_that_a_specimen_cannot_answer_is_a_skip_with_its_reason(tmp_path, monkeypatch, preset):
    source = GOOD_PLUGIN.format(code="M3") + ASKING.format(question="subject.specimen.attention()")
    rules = load_rules([plugin("unanswered_rule", source, tmp_path, monkeypatch)])
    (judged,) = audit_subject(preset, rules.selected(["M3"])).findings
    assert judged.finding.status == "skip" and "not of its family" in judged.finding.evidence


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("x = 1", "NAME is missing"),
        (GOOD_PLUGIN.format(code="E1"), "the code E1 is taken"),
    ],
)
def test_a_broken_plugin_is_named_in_one_line_and_harms_nothing(source, reason, tmp_path, monkeypatch):
    rules = load_rules([plugin("bad_rule", source, tmp_path, monkeypatch)])
    assert [rule.code for rule in rules.rules] == list(BUILT_IN)
    (line,) = rules.refused
    assert "bad_rule" in line and reason in line


# Running


def test_rules_are_chosen_by_prefixes_of_their_codes():
    rules = RuleSet(tuple(RULES), ())
    assert [rule.code for rule in rules.selected(["E"], ["E1", "E5"])] == ["E2", "E3", "E4"]
    with pytest.raises(UsageError, match="no rule's code begins with 'Q'"):
        rules.selected(["Q"])
    assert [rule.code for rule in rules.selected(["D1"])] == ["D1"]  # and not D10 too
    assert {"D1", "D10"} <= {rule.code for rule in rules.selected(["D"], ["D2"])}


def test_a_rule_of_another_scope_is_left_out_unless_it_was_named(preset):
    cheap = [replace(rule, check=lambda _: [Finding("pass", "1")]) for rule in RULES]
    assert {judged.rule.code[0] for judged in audit_subject(preset, cheap, named=False).findings} == {"R", "E", "C"}
    (judged,) = audit_subject(preset, [rule for rule in RULES if rule.code == "K1"], named=True).findings
    assert judged.finding.status == "skip" and "judges a checkpoint" in judged.finding.evidence


def broken(subject):
    raise KeyError("oops")


def test_a_rule_that_breaks_is_named_and_the_others_still_judge(preset):
    result = audit_subject(preset, [make_rule(broken), make_rule(lambda subject: [Finding("pass", "1")], code="X2")])
    assert [crash.rule.code for crash in result.crashes] == ["X1"] and "oops" in result.crashes[0].error
    assert result.counts["pass"] == 1 and not result.ok and result.exit_code == 70


@pytest.mark.parametrize(
    "finds", [[], [Finding("fail", "1", "x")], [Finding("maybe", "1")]], ids=["nothing", "a failure", "another word"]
)
def test_a_warning_rule_that_does_not_keep_to_the_statuses_is_broken(finds, preset):
    assert audit_subject(preset, [make_rule(lambda subject: finds, severity="warning")]).crashes


def test_a_failure_makes_the_answer_no_and_a_warning_does_not(preset):
    for status, code in (("fail", 1), ("warn", 0), ("skip", 0), ("pass", 0)):
        result = audit_subject(preset, [make_rule(lambda subject, status=status: [Finding(status, "1", "x")])])
        assert (result.exit_code, result.ok) == (code, code == 0)


# Subjects


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("shards", "shards"),
        ("derived", "derived"),
        ("run", "run"),
        ("run/checkpoints/checkpoint_final.pt", "checkpoint"),
    ],
)
def test_a_target_is_known_by_what_it_holds(clean, target, kind):
    assert open_subject(str(clean / target)).kind == kind


def test_a_preset_file_is_a_preset(clean):
    assert open_subject(str(clean / "run/resolved.toml")).kind == "preset"


def test_a_run_before_its_first_checkpoint_is_its_configuration(clean, tmp_path):
    (tmp_path / "resolved.toml").write_text((clean / "run/resolved.toml").read_text())
    subject = open_subject(str(tmp_path))
    assert subject.kind == "run" and subject.parts == {"preset", "model"}


# The command


def test_a_clean_preset_exits_with_0_and_shows_a_row_a_rule(dit):
    outcome = dit("audit", "demo", "--select", "E3,c2", "--quiet")
    assert outcome.code == 0
    assert "E3 bias" in outcome.out and "C2 dropout" in outcome.out and "E1" not in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 100


def test_a_failing_rule_exits_with_1_and_says_what_to_do(dit, workshop):
    path = workshop.checkpoint(lambda content: content["ema"]["output.weight"].fill_(float("nan")))
    outcome = dit("audit", path, "--select", "K2")
    assert outcome.code == 1
    assert "ema.output.weight" in outcome.out and "→ go back to an earlier checkpoint" in outcome.out


def test_json_is_the_object_of_the_contract(dit):
    outcome = dit("audit", "demo", "--select", "E3", "--json")
    answer = json.loads(outcome.out)
    assert {"target", "kind", "findings", "counts", "ok"} <= answer.keys()
    assert (answer["target"], answer["kind"], answer["ok"], answer["counts"]["pass"]) == ("demo", "preset", True, 1)
    assert answer["findings"][0].keys() == {"code", "name", "status", "evidence", "fix"}
    assert json.loads(dit("audit", "demo", "--select", "E3", "--format", "json").out) == answer


def test_several_targets_give_one_object(dit, clean):
    answer = json.loads(dit("audit", "demo", clean / "shards", "--select", "E3,D4", "--json").out)
    assert [result["kind"] for result in answer["audits"]] == ["preset", "shards"] and answer["ok"]


def test_markdown_is_a_review_with_a_section_for_what_is_to_change(dit, workshop):
    path = workshop.checkpoint(lambda content: content["ema"]["output.weight"].fill_(float("nan")))
    review = dit("audit", path, "--select", "K2,K3", "--format", "markdown").out
    assert "## To change\n\n### K2 finite: fail" in review and "**Fix:** go back" in review
    assert review.index("## Right") < review.index("| K3 architecture |")


def test_data_are_compared_with_the_preset_that_is_named(dit, clean):
    outcome = dit("audit", clean / "shards", "--preset", "nano", "--select", "D4")
    assert outcome.code == 1
    assert "builtin:dinov3" in outcome.out and "facebook/dinov3" in outcome.out


def test_a_hostile_file_is_refused_with_4_in_one_line(dit, tmp_path):
    import torch

    class Canary:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "canary",))

    torch.save({"model": Canary()}, tmp_path / "hostile.pt")
    outcome = dit("audit", tmp_path / "hostile.pt")
    assert outcome.code == 4 and outcome.err.count("error:") == 1
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "nothing to audit"), (("dmeo",), "did you mean 'demo'"), (("demo", "--preset", "nano"), "itself a preset")],
)
def test_a_wrong_call_exits_with_2_and_a_next_step(arguments, message, dit):
    outcome = dit("audit", *arguments)
    assert outcome.code == 2 and message in outcome.err


@pytest.mark.parametrize(
    ("arguments", "vain"),
    [
        (("X", "--explain", "E1"), "TARGET...: no effect with --explain"),
        (("--explain", "E1", "--select", "E"), "--select: no effect with --explain"),
        (("--explain", "E1", "--format", "sarif"), "--format: no effect with --explain"),
        (("drift-b2", "--spec", "drifting", "--preset", "demo"), "--preset: no effect with --spec"),
        (("drift-b2", "--spec", "drifting", "--format", "sarif"), "--format: no effect with --spec"),
    ],
)
def test_what_would_be_ignored_is_an_error_of_usage(arguments, vain, dit):
    outcome = dit("audit", *arguments)
    assert outcome.code == 2 and vain in outcome.err and not outcome.out


def test_a_file_that_is_not_there_is_an_error_of_usage_with_names_near(tmp_path, dit):
    (tmp_path / "checkpoint_final.pt").touch()
    outcome = dit("audit", tmp_path / "checkpoint_finale.pt")
    assert outcome.code == 2 and "no such file" in outcome.err
    assert f"did you mean {tmp_path}/checkpoint_final.pt" in outcome.err
    outcome = dit("audit", tmp_path / "nope.safetensors")
    assert outcome.code == 2 and "did you mean" not in outcome.err and "file.py:Name" in outcome.err


def test_audit_of_a_name_returns_the_same_as_the_command(dit):
    assert report.as_json(audit("demo", select=["E3"])) == json.loads(
        dit("audit", "demo", "--select", "E3", "--json").out
    )


def test_all_targets_are_looked_at_before_the_first_is_audited(dit, tmp_path):
    outcome = dit("audit", "demo", tmp_path / "missing.pt")
    assert outcome.code == 2 and "missing.pt: no such file" in outcome.err and "audit demo" not in outcome.err


def test_a_preset_is_audited_with_its_changes_and_nothing_else_takes_them(dit, clean):
    changed = dit("audit", "drift-toy", "--select", "E4", "-s", "train.steps=-1")
    assert changed.code == 2 and "train.steps" in changed.err
    vain = dit("audit", clean / "run", "--select", "E4", "-s", "train.steps=9")
    assert vain.code == 2 and "-s: no effect on" in vain.err
