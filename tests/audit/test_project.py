"""Settings of a repository that audits its own models, and what makes the answer no."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dittool.audit.project import Project, read_project
from dittool.audit.registry import load_rules
from dittool.audit.report import Audit, Judged, require_fail_on
from dittool.audit.rule import HEADINGS, Finding, Rule
from dittool.errors import UsageError

ROOT = Path(__file__).parents[2]
PAGE = "It holds.\n" + "".join(f"\n## {heading}\nText.\n" for heading in HEADINGS)


def test_both_files_say_the_same_and_ones_own_goes_before(tmp_path):
    body = 'targets = ["m.py:F"]\nfail-on = "warn"\nkwargs = { depth = 2 }\ntime-limit = 300\n'
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "x"\n[tool.dit-audit]\n{body}')
    shared = read_project(tmp_path)
    assert (shared.targets, shared.fail_on, shared.kwargs, shared.time_limit) == (
        ["m.py:F"],
        ["warn"],
        '{"depth": 2}',
        300,
    )
    (tmp_path / "dit-audit.toml").write_text('ignore = ["E3"]\n')
    assert read_project(tmp_path) == Project("dit-audit.toml", ignore=["E3"])


def test_a_folder_without_either_has_no_settings(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert read_project(tmp_path) == Project()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("target = 'm.py:F'", "there is no key target"),
        ("targets = 'm.py:F'", "targets is 'm.py:F', not a list of texts"),
        ("targets = [3]", "not a list of texts"),
        ("time-limit = true", "time-limit is True"),
        ("profile = 'strict'", "profile is 'strict'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(tmp_path, line, message):
    (tmp_path / "dit-audit.toml").write_text(line)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        read_project(tmp_path)
    assert caught.value.message.startswith("dit-audit.toml: ") and caught.value.hint


def rule(code: str) -> Rule:
    return Rule(code, "named", "error", ("preset",), "0.1", PAGE, lambda subject: [])


@pytest.mark.parametrize(
    ("fail_on", "code"),
    [(["fail"], 1), (["warn"], 1), (["never"], 0), (["E3"], 0), (["E"], 1), (["E3", "warn"], 1), (["C6", "E1"], 1)],
)
def test_what_makes_the_exit_code_one(fail_on, code):
    findings = [Judged(rule("E1"), Finding("fail", "open")), Judged(rule("E3"), Finding("warn", "biases"))]
    audit = Audit("m.py:F", "foreign model", findings, [], fail_on=fail_on)
    assert audit.exit_code == code and audit.ok == (code == 0)


def test_warnings_alone_fail_only_where_that_is_asked_for():
    findings = [Judged(rule("E3"), Finding("warn", "biases"))]
    assert [Audit("m", "preset", findings, [], fail_on=[word]).exit_code for word in ("fail", "warn")] == [0, 1]


def test_an_unknown_word_of_fail_on_is_refused():
    with pytest.raises(UsageError, match="'SOMETIMES'"):
        require_fail_on(["SOMETIMES"], load_rules())


def test_the_command_reads_the_settings_of_the_folder_in_which_it_runs(dit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dit-audit.toml").write_text('targets = ["demo"]\nselect = ["E3"]\n')
    outcome = dit("audit", "--json")
    assert outcome.code == 0 and [each["code"] for each in json.loads(outcome.out)["findings"]] == ["E3"]
    assert "settings of dit-audit.toml" in outcome.err
    assert [each["code"] for each in json.loads(dit("audit", "--json", "--select", "C5").out)["findings"]] == ["C5"]


def test_settings_of_a_model_are_not_those_of_another_target(dit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dit-audit.toml").write_text('targets = ["m.py:F"]\nkwargs = { depth = 2 }\n')
    assert dit("audit", "demo", "--select", "E3").code == 0


def test_the_pages_settings_can_be_read(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "audit-ci.md").read_text(), re.DOTALL)
    (tmp_path / "pyproject.toml").write_text(example)
    assert read_project(tmp_path).targets == ["models/dit.py:DiT"]


def test_the_page_names_the_hook_that_there_is_and_that_code_runs():
    page, hooks = ((ROOT / name).read_text() for name in ("docs/audit-ci.md", ".pre-commit-hooks.yaml"))
    assert "id: dit-audit" in page and "- id: dit-audit\n" in hooks and "runs its file" in page
