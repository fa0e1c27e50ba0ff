"""Commands that are suggested do what they say, whatever a folder is called."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from dittool.shell import command_line, quoted
from tests.test_architecture import ROOT

NASTY = [
    "plain",
    "a b",
    "it's",
    'say "x"',
    "$HOME",
    "`id`",
    "a;b",
    "*",
    "~",
    "new\nline",
    "\x1b[2J",
    "é日本",
    "a\\b",
    "!x",
    "#x",
]


@pytest.mark.parametrize("name", NASTY)
def test_a_shell_reads_the_name_as_it_is(name):
    command = command_line("printf", "%s", Path(name))
    assert "\n" not in command and "\x1b" not in command, "it is one line, and moves no cursor"
    assert subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout.decode() == name


def test_a_name_of_bytes_that_are_no_text():
    command = command_line("printf", "%s", Path("caf\udce9"))
    assert subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout == b"caf\xe9"


def test_a_folder_that_begins_with_a_dash_is_no_option(tmp_path):
    (tmp_path / "-rf a").mkdir()
    (tmp_path / "a").mkdir()
    subprocess.run(["bash", "-c", command_line("rm", "-r", Path("-rf a"))], cwd=tmp_path, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_options_and_placeholders_stay():
    assert command_line("dit", "train", "--resume", "--out", Path("runs/nano")) == "dit train --resume --out runs/nano"
    assert quoted("-s") == "-s" and quoted("SOURCE") == "SOURCE" and quoted(5) == "5"


COMMAND = re.compile(r"(\bdit [a-z-]+|\brm -r|\bmv|\bdf -h|\bhf download|\bpip install)\b[^;:,.]*$")
OURS = {"stages", "stage", "feature.stage", "parts", "option", "package", "FORMAT_VERSION", "options"}  # words of ours


def test_every_suggested_command_quotes_what_it_is_given():
    bare = []
    for path in [*(ROOT / "dittool").rglob("*.py"), *(ROOT / "commands").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            before = ""
            for part in node.values:
                if isinstance(part, ast.Constant):
                    before += part.value
                    continue
                word = ast.unparse(part.value)
                if COMMAND.search(before) and not word.startswith(("quoted(", "' '.join(")) and word not in OURS:
                    bare.append(f"{path.relative_to(ROOT)}:{node.lineno}: {before[-40:]}{{{word}}}")
                before += "WORD"
    assert bare == []


def test_the_advice_about_a_folder_in_use_names_that_folder(dit, tiny_shards, tmp_path):
    out = tmp_path / "a b" / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "checkpoint_step0000001.pt").write_bytes(b"x")
    arguments = [word for override in tiny_shards.overrides for word in ("-s", override)]
    outcome = dit("train", "--preset", "demo", "--data", tiny_shards.folder, "--out", out, "--no-audit", *arguments)
    assert outcome.code != 0 and f"mv '{out}' '{out}.old'" in outcome.err, "advice never loses a run"
