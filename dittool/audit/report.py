"""What an audit found and how it is said: rows of a table, the JSON object of the contract, a compliance review in
Markdown, and the page of all rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from dittool.audit.registry import RuleSet, built_in_rules
from dittool.audit.rule import FAIL, PASS, SKIP, WARN, Finding, Profile, Rule
from dittool.errors import ANSWER_IS_NO, BUG, DONE

_MARKS = {PASS: "✔ pass", WARN: "! warn", FAIL: "✘ fail", SKIP: "– skip"}
_FROM_BEST_TO_WORST = (SKIP, PASS, WARN, FAIL)
_EXIT = {
    DONE: "no rule failed",
    ANSWER_IS_NO: "a rule failed",
    BUG: "a rule is broken itself, so not everything was judged",
}
_OF_STRUCTURE = {"E1", "E3", "E5"}  # rules that look at blocks, and say nothing where none were found
NEVER = "never"
FAIL_ON = (FAIL, WARN, NEVER)  # words of --fail-on; the others are codes
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
    fail_on: Sequence[str] = (FAIL,)  # what makes the answer no: fail, warn, never, or codes of rules

    @property
    def counts(self) -> dict[str, int]:
        counts = Counter(judged.finding.status for judged in self.findings)
        return {status: counts[status] for status in _MARKS}

    @property
    def ok(self) -> bool:
        """Nothing failed that the answer hangs on, and no rule that counts broke."""
        return self.exit_code == DONE

    @property
    def exit_code(self) -> int:
        broke = any(crash.counts for crash in self.crashes)
        return ANSWER_IS_NO if any(map(self._counts_against, self.findings)) else BUG if broke else DONE

    def _counts_against(self, judged: Judged) -> bool:
        codes = tuple(word for word in self.fail_on if word not in FAIL_ON)
        statuses = (FAIL, WARN) if WARN in self.fail_on else (FAIL,)
        of_those = not codes or judged.rule.code in codes or judged.rule.code.startswith(codes)
        return NEVER not in self.fail_on and judged.finding.status in statuses and of_those


def require_fail_on(words: Sequence[str], rules: RuleSet) -> Sequence[str]:
    """What --fail-on names: `FAIL` by default, statuses, or codes. Raises `UsageError` for what is none of them."""
    known = [word.lower() if word.lower() in FAIL_ON else word for word in words]
    rules.selected([word for word in known if word not in FAIL_ON])
    return known or (FAIL,)


def table_rows(audit: Audit) -> list[tuple[str, str, str]]:
    """For `COLUMNS`: what is to be changed first, with the fix under it, then what is right, then what was not judged,
    each reason once.
    """
    judged = sorted(
        (judged for judged in audit.findings if judged.finding.status != SKIP),
        key=lambda judged: -_FROM_BEST_TO_WORST.index(judged.finding.status),
    )
    rows = [(each.rule.title, _MARKS[each.finding.status], each.finding.with_fix("\n→ ")) for each in judged]
    broke = [(crash.rule.title, "✘ broke", f"the rule itself is broken: {crash.error}") for crash in audit.crashes]
    return broke + rows + [(_titles(rules), _MARKS[SKIP], reason) for reason, rules in _unjudged(audit).items()]


def _unjudged(audit: Audit) -> dict[str, list[Rule]]:
    """The rules that were skipped, by the reason."""
    reasons: dict[str, list[Rule]] = {}
    for judged in audit.findings:
        if judged.finding.status == SKIP:
            reasons.setdefault(judged.finding.evidence, []).append(judged.rule)
    return reasons


def _titles(rules: Sequence[Rule]) -> str:
    """`E1 zero-init` of one rule, the codes of several."""
    return rules[0].title if len(rules) == 1 else ", ".join(rule.code for rule in rules)


def verdict(audit: Audit) -> str:
    """`2 rules fail (E1, C6), 1 rule warns (E3), 1 rule could not judge (E5)`; that no blocks were found goes first."""
    parts = []
    for status, one, many in ((FAIL, "fails", "fail"), (WARN, "warns", "warn")):
        codes = list(dict.fromkeys(each.rule.code for each in audit.findings if each.finding.status == status))
        rules = "1 rule" if len(codes) == 1 else f"{len(codes)} rules"
        if codes:
            parts.append(f"{rules} {one if len(codes) == 1 else many} ({', '.join(codes)})")
        elif status == FAIL:
            parts.append("no rule fails")
    judged = {each.rule.code for each in audit.findings if each.finding.status != SKIP}
    unjudged = list(dict.fromkeys(each.rule.code for each in audit.findings if each.rule.code not in judged))
    if unjudged:
        rules = "1 rule" if len(unjudged) == 1 else f"{len(unjudged)} rules"
        parts.append(f"{rules} could not judge ({', '.join(unjudged)})")
    if audit.crashes:
        parts.append(f"{len(audit.crashes)} broke")
    hardly = "judged in small part: " if set(unjudged) >= _OF_STRUCTURE else ""
    return hardly + ", ".join(parts)


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
    said |= {"where": finding.where} if finding.where else {}
    return {"code": rule.code, "name": rule.name, **said}


def as_markdown(audit: Audit) -> str:
    """A review to paste into a pull request: the verdict, what to change and where, what is right, and what was not
    judged, each reason once.
    """
    judged = {status: [each for each in audit.findings if each.finding.status == status] for status in _MARKS}
    why = _EXIT[audit.exit_code] if tuple(audit.fail_on) == (FAIL,) else f"--fail-on {','.join(audit.fail_on)}"
    ends = f"Exit code {audit.exit_code}: {why}."
    paragraphs = [f"# Audit of `{audit.target}`", f"**{_capital(verdict(audit))}.** {summary_line(audit)}. {ends}"]
    if judged[FAIL] or judged[WARN]:
        paragraphs.append("## To change")
    for status in (FAIL, WARN):
        for title, group in groupby(judged[status], key=lambda each: each.rule.title):
            findings = list(group)
            paragraphs += [f"### {title}: {status}", *_to_change([each.finding for each in findings])]
            paragraphs.append(f"*Must hold: {findings[0].rule.promise}*")
    if judged[PASS]:
        rows = [f"| {_cell(each.rule.title)} | {_cell(each.finding.evidence)} |" for each in judged[PASS]]
        paragraphs += ["## Right", "\n".join(["| rule | evidence |", "| --- | --- |", *rows])]
    if audit.crashes or judged[SKIP]:
        lines = [f"- {crash.rule.title}: the rule itself broke, {crash.error}" for crash in audit.crashes]
        lines += [f"- {_titles(rules)}: {reason}" for reason, rules in _unjudged(audit).items()]
        paragraphs += ["## Not judged", "\n".join(lines)]
    return "\n\n".join(paragraphs) + "\n"


def _to_change(findings: Sequence[Finding]) -> list[str]:
    """What a rule found, several in a list, and each way to mend it once."""
    found = [f"{_sentence(each.evidence)}" + (f" At `{each.where}`." if each.where else "") for each in findings]
    fixes = dict.fromkeys(each.fix for each in findings if each.fix)
    listed = found if len(found) == 1 else ["\n".join(f"- {each}" for each in found)]
    return [*listed, *(f"**Fix:** {_sentence(fix)}" for fix in fixes)]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


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
