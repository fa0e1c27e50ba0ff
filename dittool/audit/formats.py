"""Audits as one text: SARIF, JUnit XML, or reviews in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from dittool.audit.report import Audit, as_markdown
from dittool.audit.sarif import as_junit, as_sarif


def as_text(audits: Sequence[Audit], form: Literal["markdown", "sarif", "junit"]) -> str:
    """What a file would hold, without the last line's end."""
    if form == "sarif":
        return json.dumps(as_sarif(audits), indent=2)
    if form == "junit":
        return as_junit(audits).rstrip("\n")
    return "\n".join(as_markdown(audit).rstrip("\n") for audit in audits)
