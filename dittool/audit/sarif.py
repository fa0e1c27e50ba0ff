"""An audit as SARIF 2.1.0, which code hosts show beside the source, and as JUnit XML, which every CI shows as tests.

SARIF: https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/sarif-v2.1.0-os.html, sections in brackets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote
from xml.etree import ElementTree

from dittool import __version__
from dittool.audit.report import Audit, Judged
from dittool.audit.rule import FAIL, PASS, SKIP, WARN, Rule
from dittool.audit.subject import FOREIGN, PRESET

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0-rtm.5.json"
_KIND = {PASS: "pass", WARN: "fail", FAIL: "fail", SKIP: "notApplicable"}  # [3.27.9]
_LEVEL = {PASS: "none", WARN: "warning", FAIL: "error", SKIP: "none"}  # [3.27.10]
_FIX = "\nFix: "
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_sarif(audits: Sequence[Audit]) -> dict[str, object]:
    """One run for each target."""
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [_run(audit) for audit in audits]}


def _run(audit: Audit) -> dict[str, object]:
    rules = list(dict.fromkeys([judged.rule for judged in audit.findings] + [crash.rule for crash in audit.crashes]))
    broken = [
        {
            "level": "error" if crash.counts else "warning",
            "message": {"text": f"rule {crash.rule.code} broke: {crash.error}"},
        }
        for crash in audit.crashes
    ]
    return {
        "tool": {
            "driver": {
                "name": "dit",
                "semanticVersion": __version__.replace(".dev", "-dev"),  # 0.2.0.dev0 is no semantic version
                "rules": [_rule(rule) for rule in rules],
            }
        },
        "invocations": [
            {
                "executionSuccessful": not any(crash.counts for crash in audit.crashes),
                "exitCode": audit.exit_code,
                "toolExecutionNotifications": broken,
            }
        ],
        "results": [_result(audit, judged, rules.index(judged.rule)) for judged in audit.findings],
    }


def _rule(rule: Rule) -> dict[str, object]:
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.promise},
        "help": {"text": rule.page, "markdown": rule.page},
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(audit: Audit, judged: Judged, index: int) -> dict[str, object]:
    return {
        "ruleId": judged.rule.code,
        "ruleIndex": index,
        "kind": _KIND[judged.finding.status],
        "level": _LEVEL[judged.finding.status],
        "message": {"text": judged.finding.with_fix(_FIX)},
        "locations": [_line(judged.finding.where) or _location(audit)],
    }


def _line(where: str) -> dict[str, object] | None:
    """Of `models.py:31`, where the file lies in the folder that is checked out."""
    path, _, line = where.rpartition(":")
    if not path or path.startswith("/") or not line.isdigit():
        return None
    place = {"artifactLocation": {"uri": quote(path)}, "region": {"startLine": int(line)}}
    return {"physicalLocation": place}


def _location(audit: Audit) -> dict[str, object]:
    """A file or folder; a preset is none unless its name is a file's."""
    path = audit.target.rpartition(":")[0] if audit.kind == FOREIGN else audit.target
    if (audit.kind == PRESET and not path.lower().endswith(".toml")) or (
        audit.kind == FOREIGN and not path.endswith(".py")
    ):
        return {"logicalLocations": [{"name": audit.target, "kind": "module" if audit.kind == FOREIGN else "resource"}]}
    return {"physicalLocation": {"artifactLocation": {"uri": quote(path)}}}


def as_junit(audits: Sequence[Audit]) -> str:
    """One suite for each target, one case for each finding. A warning passes, with its text as the case's output."""
    root = ElementTree.Element("testsuites", name="dit audit")
    for audit in audits:
        counts = {
            "tests": len(audit.findings) + len(audit.crashes),
            "failures": audit.counts[FAIL],
            "skipped": audit.counts[SKIP] + sum(not crash.counts for crash in audit.crashes),
            "errors": sum(crash.counts for crash in audit.crashes),
        }
        figures = {name: str(count) for name, count in counts.items()}
        suite = ElementTree.SubElement(root, "testsuite", {"name": _text(audit.target), **figures})
        for judged in audit.findings:
            finding, case = judged.finding, _case(suite, audit, judged.rule)
            evidence, text = _text(finding.evidence), _text(finding.with_fix(_FIX))
            if finding.status == FAIL:
                ElementTree.SubElement(case, "failure", message=evidence).text = text
            elif finding.status == SKIP:
                ElementTree.SubElement(case, "skipped", message=evidence)
            else:
                ElementTree.SubElement(case, "system-out").text = text
        for crash in audit.crashes:
            kind = "error" if crash.counts else "skipped"
            ElementTree.SubElement(_case(suite, audit, crash.rule), kind, message=_text(crash.error))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, audit: Audit, rule: Rule) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", classname=_text(f"dit.audit.{audit.kind}.{audit.target}"), name=rule.title
    )


def _text(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return _NOT_XML.sub("�", text)
