"""A stranger's code runs in a process of its own: whatever it does there becomes a finding or one clear error, and
nothing of it reaches us.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from dittool.audit.isolation.watched import Ending, Limits, run_watched
from dittool.audit.runner import audit
from dittool.errors import UsageError
from dittool.families.family import specimen_of

STRANGE = Path(__file__).with_name("strange_models.py")
WITHIN = Limits(seconds=1.5, memory=300_000_000)
MARK = f"STRANGERS_OF={os.getpid()}".encode()


@pytest.fixture(autouse=True)
def _marked(monkeypatch):
    monkeypatch.setenv("STRANGERS_OF", str(os.getpid()))


def ending_of(behaviour: str, limits: Limits = WITHIN) -> tuple[Ending, list[str], list[str]]:
    lines: list[str] = []
    prints: list[str] = []

    def on_line(line: str) -> bool:
        lines.append(line)
        return line == "end"

    return run_watched("tests.audit.strange_process", behaviour, limits, on_line, prints.append), lines, prints


def processes_of_strangers() -> list[str]:
    commands = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if MARK in (folder / "environ").read_bytes().split(b"\0"):  # not of another worker of these tests
                    commands.append((folder / "cmdline").read_text())
            except OSError:
                continue
    return [command for command in commands if "strange_process" in command]


def test_an_answer_ends_the_process_that_gave_it():
    began = time.monotonic()
    ending, lines, _ = ending_of("answers", Limits(seconds=30))
    assert ending.how == "answered" and lines == ["begun", "end"] and time.monotonic() - began < 20
    assert processes_of_strangers() == []


@pytest.mark.parametrize(
    ("behaviour", "how", "words"),
    [
        ("leaves", "died", "ended the process with exit code 0"),
        ("crashes", "died", "ended the process by SIGSEGV (strange_process.py:"),
        ("hangs", "time", "did not come to an end within 1.5 s (strange_process.py:"),
        ("forks_and_hangs", "time", "did not come to an end"),
        ("forks_without_end", "processes", "processes"),
        ("takes_memory", "memory", "of 300.0 MB that it may have"),
        ("starts_a_program_that_takes_memory", "memory", "of 300.0 MB that it may have"),
    ],
)
def test_a_process_that_misbehaves_is_ended_with_all_that_it_started(behaviour, how, words):
    limits = Limits(20, WITHIN.memory) if how in ("memory", "processes") else WITHIN
    ending, lines, _ = ending_of(behaviour, limits)
    assert ending.how == how and words in ending.words
    assert lines == ["begun"] and processes_of_strangers() == []


def test_of_what_is_printed_the_first_lines_are_shown_and_the_rest_is_counted():
    ending, _, prints = ending_of("prints", Limits(seconds=30))
    assert ending.how == "answered"
    assert prints[:2] == ["line 0", "line 1"] and len(prints) == 21 and "more lines" in prints[-1]


# With models


def judged(name: str, codes: str = "E5,C4", seconds: float = 60.0) -> dict[str, tuple[str, str]]:
    (result,) = audit([f"{STRANGE}:{name}"], specimen_of, select=codes.split(","), limits=Limits(seconds))
    assert not result.crashes
    return {each.rule.code: (each.finding.status, each.finding.evidence) for each in result.findings}


@pytest.mark.slow
def test_a_model_that_replaces_torch_does_so_in_its_own_process(listener):
    sum_of_ours, write_of_ours, seed = torch.Tensor.sum, os.write, torch.random.get_rng_state()
    (result,) = audit([f"{STRANGE}:Replaces"], specimen_of, select=["E1", "C4"], talk=listener, limits=Limits(60))
    assert torch.Tensor.sum is sum_of_ours and os.write is write_of_ours
    assert torch.equal(torch.random.get_rng_state(), seed)
    assert any("replaces torch.Tensor.sum" in warning for warning in listener.warnings)
    assert not result.crashes and {each.rule.code for each in result.findings} == {"E1", "C4"}


@pytest.mark.slow
def test_a_rule_at_which_the_process_ends_fails_and_the_others_still_judge():
    found = judged("Leaves")
    status, evidence = found["E5"]
    assert status == "fail" and "ended the process with exit code 3 while this was judged" in evidence
    assert found["C4"][0] == "pass"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("Crashes", "pass"), ("Hangs", "skip"), ("ForksWithoutEnd", "skip")])
def test_what_ends_the_process_is_said_at_the_rule_and_of_the_rules_behind_it(name, status):
    found = judged(name, seconds=20.0)
    assert found["E5"][0] == "fail" and "the model's own code" in found["E5"][1]
    assert found["C4"][0] == status


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Forks", "Prints", "Seeds", "WritesIntoEveryPipe"])
def test_what_does_no_harm_is_judged_as_if_nothing_happened(name):
    assert judged(name, "E1,C4") == judged("_Wrapped", "E1,C4")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), [("Exits", r"exit\(0\)"), ("LeavesAtOnce", "exit code 0")])
def test_a_model_that_exits_where_it_is_called_is_one_error_of_usage(name, words):
    with pytest.raises(UsageError, match=words):
        judged(name)


@pytest.mark.slow
def test_a_model_that_takes_memory_is_ended():
    (result,) = audit([f"{STRANGE}:Eats"], specimen_of, select=["E5", "C4"], limits=Limits(60, memory=1_500_000_000))
    assert (
        result.findings[0].finding.status == "fail" and "1.5 GB that it may have" in result.findings[0].finding.evidence
    )


@pytest.mark.slow
def test_the_limits_are_options_of_the_command(dit):
    outcome = dit("audit", f"{STRANGE}:Hangs", "--select", "E5", "--time-limit", 5, "--json")
    assert outcome.code == 1 and "within 5 s" in json.loads(outcome.out)["findings"][0]["evidence"]
