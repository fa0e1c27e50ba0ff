"""What a rule of the audit is: a module with a page, five constants and one pure function.

The module's docstring is the page: one line that says what must hold, then the four `HEADINGS`, each as `## Heading`.
Then

    CODE, NAME, SEVERITY, SCOPE, SINCE = "E1", "zero-init", "error", ("preset",), "0.1"

    def check(subject: Subject) -> list[Finding]: ...

SEVERITY "error" may fail a subject; "warning" never does. SCOPE names the parts of a subject that the rule needs, any
one of them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

from dittool.audit.specimens.specimen import NotAnswered, Scope

if TYPE_CHECKING:
    from dittool.audit.subject import Subject

PASS, WARN, FAIL, SKIP = "pass", "warn", "fail", "skip"
ERROR, WARNING = "error", "warning"
HEADINGS = ("What it checks", "Why it matters", "Example", "Fix")

# How severe rules are: under "scratch" every rule of the recipe for training from scratch holds; under "any" what is
# broken fails, and what is a choice of that recipe is a warning with its cost and who chooses otherwise.
Profile = Literal["scratch", "any"]

_CODE = re.compile(r"[A-Z]+[0-9]+")


@dataclass(frozen=True)
class Finding:
    """What a rule saw: evidence with numbers, and for anything but a pass what to do next."""

    status: str  # pass, warn, fail or skip
    evidence: str
    fix: str = ""
    choice: str = ""  # of a failure that is one by the recipe alone: what it costs, and which models do so
    ends: bool = False  # nothing else of the subject can be judged
    where: str = ""  # of a stranger's source, `models.py:31`

    def under(self, profile: Profile) -> Finding:
        """As severe as a profile has it."""
        if profile == "any" and self.choice and self.status == FAIL:
            return Finding(WARN, f"{self.evidence}. {self.choice}", self.fix)
        return self

    def with_fix(self, sign: str) -> str:
        """The evidence, and behind a sign what to do when something is not right."""
        at = f" ({self.where})" if self.where else ""
        return self.evidence + (f"{sign}{self.fix}{at}" if self.fix and self.status in (WARN, FAIL) else at)


def passed(evidence: str) -> list[Finding]:
    return [Finding(PASS, evidence)]


def warned(evidence: str, fix: str) -> list[Finding]:
    return [Finding(WARN, evidence, fix)]


def failed(evidence: str, fix: str) -> list[Finding]:
    return [Finding(FAIL, evidence, fix)]


def chosen(evidence: str, fix: str, choice: str) -> list[Finding]:
    """What breaks the recipe for training from scratch and nothing else; `choice` is what it costs, and which models do
    so.
    """
    return [Finding(FAIL, evidence, fix, choice)]


def judged(faults: Sequence[str], fix: str, otherwise: str) -> list[Finding]:
    """A failure for each fault, or a pass with this evidence."""
    return [Finding(FAIL, fault, fix) for fault in faults] or passed(otherwise)


def skipped(why: str) -> list[Finding]:
    """For a subject that the rule cannot judge; it never passes by default."""
    return [Finding(SKIP, why)]


def or_skipped(judge: Callable[[], list[Finding]]) -> list[Finding]:
    """What is judged, or the reason why the specimen cannot be asked."""
    try:
        return judge()
    except NotAnswered as unanswered:
        return skipped(unanswered.reason)


class BrokenRule(Exception):
    """A rule's module that lacks something that every rule has."""


@dataclass(frozen=True)
class Rule:
    """A loaded rule."""

    code: str
    name: str
    severity: str
    scopes: tuple[Scope, ...]
    since: str
    page: str  # the docstring, as Markdown
    check: Callable[[Subject], list[Finding]]
    package: str = ""  # whose it is, "dit-mine 1.2"; "": our own

    @property
    def title(self) -> str:
        """`E1 zero-init`."""
        return f"{self.code} {self.name}"

    @property
    def promise(self) -> str:
        """The page's first line: what must hold."""
        return " ".join(self.page.split("\n\n")[0].split())


def rule_from_module(module: ModuleType) -> Rule:
    """The rule in a module. Raises `BrokenRule` naming everything that it lacks."""
    page, names = inspect.cleandoc(module.__doc__ or ""), ("CODE", "NAME", "SEVERITY", "SCOPE", "SINCE", "check")
    found: dict[str, Any] = {name: getattr(module, name, None) for name in names}  # of a plugin, it may be anything
    problems = [f"{name} is missing" for name, value in found.items() if value is None]
    problems += [
        f"the docstring has no heading '## {heading}'" for heading in HEADINGS if f"\n## {heading}\n" not in page
    ]
    if found["CODE"] and not _CODE.fullmatch(found["CODE"]):
        problems.append(f"CODE {found['CODE']!r} is not letters and a number, as E1")
    if found["SEVERITY"] not in (None, ERROR, WARNING):
        problems.append(f"SEVERITY {found['SEVERITY']!r} is neither {ERROR} nor {WARNING}")
    if unknown := set(found["SCOPE"] or ()) - set(get_args(Scope)):
        problems.append(f"SCOPE {', '.join(sorted(unknown))} is none of {', '.join(get_args(Scope))}")
    if problems:
        raise BrokenRule(f"{module.__name__}: {'; '.join(problems)}")
    code, name, severity, scopes, since, check = (found[name] for name in names)
    return Rule(code, name, severity, tuple(scopes), since, page, check)
