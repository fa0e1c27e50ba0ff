"""docs/mistakes.md: twenty mistakes, and every test and planted fault that the page names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dittool.audit.registry import built_in_rules

TESTS = Path(__file__).parent
ROWS = [line for line in (TESTS.parent / "docs" / "mistakes.md").read_text().splitlines() if re.match(r"\| \d", line)]


def test_the_page_has_all_twenty():
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, 21))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[2].strip()[:40])
def test_what_a_row_names_exists(row):
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 5
    known = {rule.code for rule in built_in_rules()}
    assert set(re.findall(r"\b[A-Z]\d\b", cells[3])) <= known
    named = re.findall(r"`([^`]+)`", cells[4])
    assert named
    for one in named:
        if "::" in one:
            file, name = one.split("::")
            tree = ast.parse((TESTS / file).read_text())
            assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body), one
        else:
            file, fault = one.split(": ", 1)
            assert re.search(rf'@plants\("[A-Z]\d", "{re.escape(fault)}"', (TESTS / file).read_text()), one
