"""A stranger's model judged in another process, from here: what it found, and what became of it.

Rules that had judged before the process died stay, the rule at which it died fails with how, and the rest is judged in
a new process. When its time or memory is used up, the rest is skipped with that reason.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from dittool.audit.isolation.messages import Request, error_from_data, finding_from_data
from dittool.audit.isolation.watched import Ending, Limits, run_watched
from dittool.audit.report import Audit, Crash, Judged
from dittool.audit.rule import FAIL, Finding, Rule, skipped
from dittool.audit.subject import FOREIGN
from dittool.console import Talk, Task
from dittool.errors import UsageError

_INSIDE = "dittool.audit.isolation.inside"
_MOST_DEATHS = 3
_MORE = {  # what to do where a limit was met
    "time": "name a smaller model with --kwargs, or give it more time with --time-limit SECONDS",
    "memory": "name a smaller model with --kwargs, or let it take more with --memory-limit GIGABYTES",
    "processes": "let it start no processes without end where it is built or called",
}
_FIX_OF_DEATH = "let it raise an error instead, or keep this code from running where the model is called"


def judge_elsewhere(request: Request, rules: Sequence[Rule], limits: Limits, talk: Talk) -> Audit:
    """What the rules say about the factory that a request names.

    Raises `UsageError` for a factory that cannot be opened, or whose code dies or exceeds a limit before the first
    rule.
    """
    left = limits.seconds
    with talk.progress(f"audit {request.target}", len(rules), "rule") as task:
        hearing = _Hearing(request.target, rules, talk, task)
        for death in range(_MOST_DEATHS):
            asked = replace(request, codes=[rule.code for rule in hearing.waiting])
            within = replace(limits, seconds=left)
            ending = run_watched(_INSIDE, asked.line(), within, hearing.on_line, hearing.on_print)
            left -= ending.seconds
            if ending.how == "answered":
                break
            hearing.ended(ending, last=death == _MOST_DEATHS - 1)
            if not hearing.waiting:
                break
    return Audit(request.target, FOREIGN, hearing.findings, hearing.crashes, request.profile or "any")


class _Hearing:
    """Takes the lines that the other process sends."""

    def __init__(self, target: str, rules: Sequence[Rule], talk: Talk, task: Task) -> None:
        self._target, self._talk, self._task = target, talk, task
        self.waiting = list(rules)
        self.findings: list[Judged] = []
        self.crashes: list[Crash] = []
        self._judging: Rule | None = None
        self._forks = 0

    def on_line(self, line: str) -> bool:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):  # of the model's own code, which found the pipe
            return False
        if "error" in message:
            raise error_from_data(message["error"])
        if "broke" in message:
            raise RuntimeError(message["broke"])
        if "rule" in message:
            begun = [rule for rule in self.waiting if rule.code == message["rule"]]
            if not begun:
                return False
            self._judging = begun[0]
            self.waiting.remove(self._judging)
            self._task.advance()
        elif "warn" in message:
            self._talk.warn(message["warn"])
        elif "forks" in message:
            self._forks = message["forks"]
        elif self._judging is not None and "finding" in message:
            finding = finding_from_data(message["finding"])
            kept = [] if finding.ends else self.findings
            self.findings = [*kept, Judged(self._judging, finding)]
        elif self._judging is not None and "crash" in message:
            self.crashes.append(Crash(self._judging, message["crash"], message["counts"]))
        return "end" in message

    def on_print(self, line: str) -> None:
        self._talk.note(f"{self._target} prints: {line}")

    def ended(self, ending: Ending, last: bool) -> None:
        """The process is gone: the rule that was judging fails with it."""
        if self._forks:
            ending = Ending("processes", f"forked {self._forks} processes")
        fix, what = _MORE.get(ending.how, _FIX_OF_DEATH), f"the model's own code {ending.words}"
        if self._judging is None:
            raise UsageError(f"{self._target}: {what}, before it could be judged", fix)
        self.findings.append(Judged(self._judging, Finding(FAIL, f"{what} while this was judged", fix)))
        if ending.how != "died" or last:
            reason = f"the model's own code {ending.words}, while {self._judging.code} was judged"
            self.findings += [Judged(rule, finding) for rule in self.waiting for finding in skipped(reason)]
            self.waiting.clear()
        self._judging = None
