"""What an audit says: rows of a table, the JSON object of the contract, a compliance review in Markdown, and the
page of all rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dittool.audit.registry import built_in_rules
from dittool.audit.rule import FAIL, PASS, SKIP, WARN, Rule
from dittool.audit.runner import Audit, Judged
from dittool.errors import ANSWER_IS_NO, BUG, DONE

_MARKS = {PASS: "✔ pass", WARN: "! warn", FAIL: "✘ fail", SKIP: "– skip"}
_EXIT = {
    DONE: "no rule failed",
    ANSWER_IS_NO: "a rule failed",
    BUG: "a rule is broken itself, so not everything was judged",
}
COLUMNS = ("rule", "", "evidence")


def table_rows(audit: Audit) -> list[tuple[str, str, str]]:
    """For `COLUMNS`: code and name, status, evidence; the fix of what is not right stands under it."""
    rows = []
    for judged in audit.findings:
        finding = judged.finding
        fix = f"\n→ {finding.fix}" if finding.fix and finding.status in (WARN, FAIL) else ""
        rows.append((f"{judged.rule.code} {judged.rule.name}", _MARKS[finding.status], finding.evidence + fix))
    rows += [
        (f"{crash.rule.code} {crash.rule.name}", "✘ broke", f"the rule itself is broken: {crash.error}")
        for crash in audit.crashes
    ]
    return rows


def summary_line(audit: Audit) -> str:
    """`presets demo: 11 pass, 1 warn, 0 fail, 2 skip`."""
    counts = ", ".join(f"{count} {status}" for status, count in audit.counts.items())
    broken = f", {len(audit.crashes)} rules broke" if audit.crashes else ""
    return f"{audit.target} ({audit.kind}): {counts}{broken}"


def as_json(audit: Audit) -> dict[str, Any]:
    """The object of contracts.md; `errors` lists rules that broke."""
    return {
        "target": audit.target,
        "kind": audit.kind,
        "findings": [_finding_json(judged) for judged in audit.findings],
        "counts": audit.counts,
        "ok": audit.ok,
        "errors": [{"code": crash.rule.code, "name": crash.rule.name, "error": crash.error} for crash in audit.crashes],
    }


def as_markdown(audit: Audit) -> str:
    """A compliance review to paste: a summary table, then each rule with its evidence, what is right, what is
    missing, and the fix.
    """
    ends = f"Exit code {audit.exit_code}: {_EXIT[audit.exit_code]}."
    lines = [
        f"# Audit of `{audit.target}`",
        "",
        f"{summary_line(audit)}. {ends}",
        "",
        "| rule | status | evidence |",
        "| --- | --- | --- |",
    ]
    lines += [
        f"| {_cell(rule)} | {_MARKS[status].split()[1]} | {_cell(evidence)} |"
        for rule, status, evidence in _summary(audit)
    ]
    for rule in dict.fromkeys(judged.rule for judged in audit.findings):
        findings = [judged.finding for judged in audit.findings if judged.rule is rule]
        lines += [
            "",
            f"## {rule.code} {rule.name}: {_worst(finding.status for finding in findings)}",
            "",
            f"**Must hold:** {rule.promise}",
        ]
        for title, statuses in (
            ("Right", (PASS,)),
            ("Missing", (FAIL,)),
            ("Doubtful", (WARN,)),
            ("Not judged", (SKIP,)),
        ):
            texts = [finding for finding in findings if finding.status in statuses]
            lines += [line for finding in texts for line in ("", f"**{title}:** {finding.evidence}")]
            lines += [line for finding in texts if finding.fix for line in ("", f"**Fix:** {finding.fix}")]
    for crash in audit.crashes:
        lines += [
            "",
            f"## {crash.rule.code} {crash.rule.name}: not judged",
            "",
            f"The rule itself broke: {crash.error}",
        ]
    return "\n".join(lines) + "\n"


def rule_page(rule: Rule) -> str:
    """One rule's page in Markdown."""
    needs = " or ".join(rule.scopes)
    return (
        f"# {rule.code} {rule.name}\n\n*Judges: {needs}. Severity: {rule.severity}. Since"
        f" {rule.since}.*\n\n{rule.page}\n"
    )


def rules_page(rules: Sequence[Rule] | None = None) -> str:
    """docs/rules.md: all rules, generated. To make it again: dit audit --explain all > docs/rules.md"""
    rules = built_in_rules() if rules is None else rules
    lines = [
        "# The rules of `dit audit`",
        "",
        (
            "Generated from the rules' own pages; do not edit. To make it again: `dit audit --explain all >"
            " docs/rules.md`."
        ),
        "",
        "| rule | name | judges | must hold |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| [{rule.code}](#{_anchor(rule)}) | {rule.name} | {', '.join(rule.scopes)} | {_cell(rule.promise)} |"
        for rule in rules
    ]
    pages = (rule_page(rule).replace("\n## ", "\n### ").replace("# ", "## ", 1) for rule in rules)
    return "\n".join(lines) + "\n\n" + "\n".join(pages)


def _finding_json(judged: Judged) -> dict[str, str]:
    finding = judged.finding
    return {
        "code": judged.rule.code,
        "name": judged.rule.name,
        "status": finding.status,
        "evidence": finding.evidence,
        "fix": finding.fix,
    }


def _summary(audit: Audit) -> list[tuple[str, str, str]]:
    return [
        (f"{judged.rule.code} {judged.rule.name}", judged.finding.status, judged.finding.evidence)
        for judged in audit.findings
    ]


def _worst(statuses: Any) -> str:
    return max(statuses, key=(SKIP, PASS, WARN, FAIL).index)


def _anchor(rule: Rule) -> str:
    return f"{rule.code} {rule.name}".lower().replace(" ", "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
