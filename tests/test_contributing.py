"""CONTRIBUTING.md shows how to add something with a new file and an entry in a table. Here each is added to a copy of
the source as the page says, and runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.quick import others_slow

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = {  # title → text
    title: text
    for title, _, text in (
        part.partition("\n") for part in re.split(r"^### ", PAGE.partition("## Adding something")[2], flags=re.M)[1:]
    )
}


def blocks(section: str, language: str) -> list[tuple[str, str]]:
    """(file, text) of each fenced block of a language; the file stands behind the language."""
    return re.findall(rf"^```{language} ?(\S*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def apply(diff: str, text: str) -> str:
    """Replaces the lines of the old side, which must stand in the text once, by those of the new side."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -")
    new = "".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(old) == 1, f"CONTRIBUTING.md names lines that are not there once:\n{old}"
    return text.replace(old, new)


def sessions(section: str) -> list[tuple[str, list[str]]]:
    """(command line, the lines that it must print) of each `$ dit …` of a section."""
    return [
        (command, expected.splitlines())
        for _, session in blocks(section, "console")
        for command, expected in re.findall(r"^\$ (dit .+)\n((?:(?!\$ ).+\n)*)", session, re.MULTILINE)
    ]


RUN_EACH = """
import contextlib, io, json, sys
from dittool.cli import run
ended = {}
for line in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = run(line.split()[1:])
    ended[line] = code, out.getvalue()
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, tuple[int, str]]:
    """Command line → exit code and what it prints, run beside two pictures with captions, by a copy of the source to
    which all sections were applied one after the other.
    """
    root = tmp_path_factory.mktemp("contributing")
    copy, images = root / "checkout", root / "images"
    for name in ("dittool", "commands", "presets"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    images.mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (128, 128), colour).save(images / f"{colour}.png")
        (images / f"{colour}.txt").write_text(f"a {colour} square")
    (images / "list.lst").write_text("red.png\ta red square\nblue.png\ta blue square\nno tab here\n")
    (images / "list.xyz").write_text("red.png")
    for section in SECTIONS.values():
        for file, text in blocks(section, "python"):
            assert not (copy / file).exists()
            (copy / file).write_text(text)
        for file, text in blocks(section, "toml"):
            (root / file).write_text(text)
        for file, diff in blocks(section, "diff"):
            (copy / file).write_text(apply(diff, (copy / file).read_text()))
    lines = [line for section in SECTIONS.values() for line, _ in sessions(section)]
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH],
        input=json.dumps(lines),
        cwd=root,
        env=dict(os.environ, PYTHONPATH=str(copy)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_page_shows_how_to_add_each_kind_of_thing():
    assert list(SECTIONS) == ["A command", "An encoder", "A source of images", "A rule of the audit", "A family"]


@pytest.mark.parametrize("title", SECTIONS)
def test_what_the_page_adds_is_a_new_file_and_an_entry_in_a_table(title):
    assert len(blocks(SECTIONS[title], "python")) == (2 if title == "A family" else 1), "a family's keys are a file"
    assert len({file for file, _ in blocks(SECTIONS[title], "diff")}) == 1, "one table, in one file"


@pytest.mark.xdist_group("contributing")
@pytest.mark.parametrize("title", others_slow(SECTIONS, ("A command",)))
def test_what_the_page_adds_runs(title, ended):
    assert sessions(SECTIONS[title])
    for line, expected in sessions(SECTIONS[title]):
        code, printed = ended[line]
        assert code in (0, 1, 2, 3), printed  # of the contract, and no bug
        assert [text for text in expected if text not in printed] == [], f"{line}\n{printed}"


@pytest.mark.parametrize("title", SECTIONS)
def test_what_the_page_adds_is_formatted_as_the_house_is(title, tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "dittool").mkdir()  # so that imports of ours are sorted as ours
    for file, text in blocks(SECTIONS[title], "python"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
        for check in (("check",), ("format", "--check", "--diff")):
            done = subprocess.run(["ruff", *check, file], cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


def test_a_diff_that_does_not_fit_is_noticed():
    assert apply(" a\n+b\n c\n", "a\nc\n") == "a\nb\nc\n"
    with pytest.raises(AssertionError, match="not there once"):
        apply(" a\n+b\n", "a\na\n")
