"""Reports for machines and for people: SARIF against the published schema, JUnit, the review, the width of the
table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dittool.audit import report, sarif
from dittool.audit.report import Audit, Crash, Judged
from dittool.audit.rule import HEADINGS, Finding, Rule
from dittool.audit.specimens.foreign.factory import Factory
from dittool.audit.specimens.foreign.sources import line_of
from tests.audit import foreign_models

HERE, DOCS = Path(__file__).parent, Path(__file__).parents[2] / "docs"
PAGE = "It holds.\n" + "".join(f"\n## {heading}\nText.\n" for heading in HEADINGS)


def rule(code: str, severity: str = "error") -> Rule:
    return Rule(code, f"name-of-{code}", severity, ("preset",), "0.1", PAGE, lambda subject: [])


@pytest.fixture
def every_status() -> Audit:
    """All statuses, a rule that broke, and text that XML and JSON must escape."""
    findings = [
        Judged(rule("X1"), Finding("pass", "0 < 1 & 2 > 1")),
        Judged(rule("X2"), Finding("fail", 'the file "a|b.pt" \x1b[31m says 3', "remove <it>")),
        Judged(rule("X3", "warning"), Finding("warn", "4 of 5", "look at it")),
        Judged(rule("X4"), Finding("skip", "no data")),
    ]
    return Audit("runs/a b/c#1.pt", "checkpoint", findings, [Crash(rule("X5"), "ValueError: \x00")])


@pytest.fixture(scope="module")
def validate():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((HERE / "sarif-2.1.0-rtm.5.json").read_text())
    return jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker()).validate


def test_sarif_keeps_to_the_published_schema(every_status, validate):
    document = sarif.as_sarif(
        [every_status, Audit("demo", "preset", every_status.findings, []), Audit("m.py:F", "foreign model", [], [])]
    )
    validate(json.loads(json.dumps(document)))


def test_sarif_has_a_result_a_finding_with_its_level_and_fix(every_status):
    (run,) = sarif.as_sarif([every_status])["runs"]
    assert [(result["ruleId"], result["kind"], result["level"]) for result in run["results"]] == [
        ("X1", "pass", "none"),
        ("X2", "fail", "error"),
        ("X3", "fail", "warning"),
        ("X4", "notApplicable", "none"),
    ]
    assert run["results"][1]["message"]["text"].endswith("Fix: remove <it>")
    assert run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "runs/a%20b/c%231.pt"
    assert [run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] for result in run["results"]] == [
        "X1",
        "X2",
        "X3",
        "X4",
    ]
    assert run["invocations"][0]["executionSuccessful"] is False and run["invocations"][0]["exitCode"] == 1


def test_junit_counts_failures_skips_and_broken_rules(every_status):
    root = ElementTree.fromstring(sarif.as_junit([every_status]))
    (suite,) = root
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "1",
        "errors": "1",
        "skipped": "1",
    }
    cases = {case.get("name").split()[0]: case for case in suite}
    assert "says 3" in cases["X2"].find("failure").get("message") and "remove <it>" in cases["X2"].find("failure").text
    assert (
        cases["X4"].find("skipped") is not None
        and cases["X5"].find("error") is not None
        and cases["X1"].find("failure") is None
    )


def test_the_command_prints_both_whole_for_several_targets(dit, clean, validate):
    targets = ("demo", clean / "shards", "--select", "E3,D4")
    validate(document := json.loads(dit("audit", *targets, "--format", "sarif").out))
    assert [len(run["results"]) for run in document["runs"]] == [2, 2]
    suites = ElementTree.fromstring(dit("audit", *targets, "--format", "junit").out.encode())
    assert [suite.get("name") for suite in suites] == ["demo", str(clean / "shards")]


def test_the_table_is_at_most_100_columns_wide(dit):
    lines = dit("audit", "demo", "--select", "C2,E4,K1", "--quiet").out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("✔ pass" in line for line in lines) and any("– skip" in line for line in lines)


# The example in the docs


def without_figures(text: str) -> str:
    """Measured figures differ in their last digits from machine to machine."""
    return re.sub(r"[-+]?\d[\d,.]*(e-?\d+)?", "0", text)


@pytest.mark.slow
def test_the_example_review_in_the_docs_is_current(dit):
    review = dit("audit", "demo", "--format", "markdown", "--quiet").out
    example = (DOCS / "audit-example.md").read_text()
    assert without_figures(example) == without_figures(review), (
        "make it again: dit audit demo --format markdown > docs/audit-example.md"
    )
    assert review.startswith("# Audit of `demo`\n\n**No rule fails.** demo (preset)")
    assert "Exit code 0: no rule failed." in review and review.count("\n| ") == 2 + 15  # a line a rule, under a head


# For a person: the verdict, what to change and where, what was not judged


def test_the_page_begins_with_what_is_to_be_changed_and_says_a_reason_once(every_status):
    findings = [*every_status.findings, Judged(rule("X6"), Finding("skip", "no data"))]
    audit = Audit("m.py:F", "foreign model", findings, [])
    assert [(title, mark[2:]) for title, mark, _ in report.table_rows(audit)] == [
        ("X2 name-of-X2", "fail"),
        ("X3 name-of-X3", "warn"),
        ("X1 name-of-X1", "pass"),
        ("X4, X6", "skip"),
    ]
    assert report.verdict(audit) == "1 rule fails (X2), 1 rule warns (X3), 2 rules could not judge (X4, X6)"
    assert report.as_markdown(audit).count("no data") == 1


def test_a_review_names_the_line_and_sarif_shows_it_there(validate):
    finding = Finding("fail", "blocks.0 is open", "close it", where="models/dit.py:31")
    audit = Audit("models/dit.py:DiT", "foreign model", [Judged(rule("X1"), finding)], [])
    review = report.as_markdown(audit)
    assert "**1 rule fails (X1).**" in review and "blocks.0 is open. At `models/dit.py:31`." in review
    validate(document := sarif.as_sarif([audit]))
    (location,) = document["runs"][0]["results"][0]["locations"]
    assert location["physicalLocation"]["artifactLocation"]["uri"] == "models/dit.py"
    assert location["physicalLocation"]["region"]["startLine"] == 31


def test_a_review_names_a_rule_and_a_way_to_mend_it_once():
    findings = [Judged(rule("X1"), Finding("fail", f"{name} is dead", "feed it")) for name in ("y", "text")]
    review = report.as_markdown(Audit("m.py:F", "foreign model", findings, []))
    assert review.count("### X1") == review.count("**Fix:** feed it.") == review.count("*Must hold:") == 1
    assert "- y is dead.\n- text is dead." in review


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        ("max |block(x) − x| is 2 in blocks.1, first blocks.1.mlp.0.weight (up to 1)", "self.mlp ="),
        ("qk_norm: False → True changes none of 7 things", "qk_norm"),
        ("y: the prediction does not change", "zeros_like(y)"),
    ],
)
def test_the_line_is_that_of_the_class_which_makes_what_the_evidence_names(evidence, text, monkeypatch):
    monkeypatch.chdir(HERE)
    model = foreign_models.fused_deaf_to_class()
    make = foreign_models.fused_ignored_qk_norm if evidence.startswith("qk") else foreign_models.fused_deaf_to_class
    file, _, line = line_of(model, Factory("foreign_models.py:made", make, {}), evidence).rpartition(":")
    assert file == "foreign_models.py" and text in (HERE / file).read_text().splitlines()[int(line) - 1]
