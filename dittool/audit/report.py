"""What an audit found and how it is said: rows of a table, the JSON object of the contract, a compliance review in
Markdown, and the page of all rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dittool.audit.registry import built_in_rules
from dittool.audit.rule import FAIL, PASS, SKIP, WARN, Finding, Profile, Rule
from dittool.errors import ANSWER_IS_NO, BUG, DONE

_MARKS = {PASS: "✔ pass", WARN: "! warn", FAIL: "✘ fail", SKIP: "– skip"}
_IN_A_REVIEW = {PASS: "Right", FAIL: "Missing", WARN: "Doubtful", SKIP: "Not judged"}
_FROM_BEST_TO_WORST = (SKIP, PASS, WARN, FAIL)
_EXIT = {
    DONE: "no rule failed",
    ANSWER_IS_NO: "a rule failed",
    BUG: "a rule is broken itself, so not everything was judged",
}
COLUMNS = ("rule", "", "evidence")


@dataclass(frozen=True)
class Judged:
    """A finding and the rule that made it."""

    rule: Rule
    finding: Finding


@dataclass(frozen=True)
class Crash:
    """A rule that could not judge because it is broken itself. `counts`: a plugin's only where it was named."""

    rule: Rule
    error: str
    counts: bool = True


@dataclass(frozen=True)
class Audit:
    """What the rules say about one target."""

    target: str
    kind: str
    findings: list[Judged]
    crashes: list[Crash]
    profile: Profile = "scratch"

    @property
    def counts(self) -> dict[str, int]:
        counts = Counter(judged.finding.status for judged in self.findings)
        return {status: counts[status] for status in _MARKS}

    @property
    def ok(self) -> bool:
        """No rule failed, and none that counts broke."""
        return self.exit_code == DONE

    @property
    def exit_code(self) -> int:
        broke = any(crash.counts for crash in self.crashes)
        return ANSWER_IS_NO if self.counts[FAIL] else BUG if broke else DONE


def table_rows(audit: Audit) -> list[tuple[str, str, str]]:
    """For `COLUMNS`: code and name, status, evidence; the fix of what is not right stands under it."""
    rows = [
        (judged.rule.title, _MARKS[judged.finding.status], judged.finding.with_fix("\n→ ")) for judged in audit.findings
    ]
    return rows + [
        (crash.rule.title, "✘ broke", f"the rule itself is broken: {crash.error}") for crash in audit.crashes
    ]


def summary_line(audit: Audit) -> str:
    """`demo (preset): 11 pass, 1 warn, 0 fail, 2 skip`; a profile that is not our own is named."""
    counts = ", ".join(f"{count} {status}" for status, count in audit.counts.items())
    broken = f", {len(audit.crashes)} rules broke" if audit.crashes else ""
    profile = f", profile {audit.profile}" if audit.profile != "scratch" else ""
    return f"{audit.target} ({audit.kind}{profile}): {counts}{broken}"


def as_json(audit: Audit) -> dict[str, object]:
    """The object of contracts.md; `errors` lists rules that broke."""
    return {
        "target": audit.target,
        "kind": audit.kind,
        "profile": audit.profile,
        "findings": [_finding_as_json(judged.rule, judged.finding) for judged in audit.findings],
        "counts": audit.counts,
        "ok": audit.ok,
        "errors": [
            {"code": crash.rule.code, "name": crash.rule.name, "package": crash.rule.package, "error": crash.error}
            for crash in audit.crashes
        ],
    }


def _finding_as_json(rule: Rule, finding: Finding) -> dict[str, str]:
    said = {"status": finding.status, "evidence": finding.evidence, "fix": finding.fix}
    return {"code": rule.code, "name": rule.name, **said}


def as_markdown(audit: Audit) -> str:
    """A compliance review to paste: a summary table, then each rule with its evidence, what is right, what is
    missing, and the fix.
    """
    ends = f"Exit code {audit.exit_code}: {_EXIT[audit.exit_code]}."
    summary = ["| rule | status | evidence |", "| --- | --- | --- |"]
    by_rule: dict[Rule, list[Finding]] = {}
    for rule, finding in ((judged.rule, judged.finding) for judged in audit.findings):
        summary.append(f"| {_cell(rule.title)} | {finding.status} | {_cell(finding.evidence)} |")
        by_rule.setdefault(rule, []).append(finding)
    paragraphs = [f"# Audit of `{audit.target}`", f"{summary_line(audit)}. {ends}", "\n".join(summary)]
    for rule, findings in by_rule.items():
        worst = max((finding.status for finding in findings), key=_FROM_BEST_TO_WORST.index)
        paragraphs += [f"## {rule.title}: {worst}", f"**Must hold:** {rule.promise}"]
        for status, title in _IN_A_REVIEW.items():
            alike = [finding for finding in findings if finding.status == status]
            paragraphs += [f"**{title}:** {finding.evidence}" for finding in alike]
            paragraphs += [f"**Fix:** {finding.fix}" for finding in alike if finding.fix]
    for crash in audit.crashes:
        paragraphs += [f"## {crash.rule.title}: not judged", f"The rule itself broke: {crash.error}"]
    return "\n\n".join(paragraphs) + "\n"


def rule_page(rule: Rule) -> str:
    """A rule's page in Markdown."""
    facts = f"*Judges: {' or '.join(rule.scopes)}. Severity: {rule.severity}. Since {rule.since}.*"
    return f"# {rule.title}\n\n{facts}\n\n{rule.page}\n"


def rules_page(rules: Sequence[Rule] | None = None) -> str:
    """docs/rules.md: all rules, generated. To make it again: dit audit --explain all > docs/rules.md"""
    rules = built_in_rules() if rules is None else rules
    lines = ["| rule | name | judges | must hold |", "| --- | --- | --- | --- |"]
    for rule in rules:
        anchor = rule.title.lower().replace(" ", "-")
        scopes = ", ".join(rule.scopes)
        lines.append(f"| [{rule.code}](#{anchor}) | {rule.name} | {scopes} | {_cell(rule.promise)} |")
    pages = "\n".join(rule_page(rule).replace("\n## ", "\n### ").replace("# ", "## ", 1) for rule in rules)
    how = (
        "Generated from the rules' own pages; do not edit. To make it again: `dit audit --explain all > docs/rules.md`."
    )
    return "\n\n".join(["# The rules of `dit audit`", how, "\n".join(lines), pages])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
