"""Blocks over tokens in rows and columns are found in every layout, and one open gate among closed ones in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dittool.audit import report
from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from tests.audit import foreign_layouts
from tests.audit.foreign_layouts import LAYOUTS
from tests.audit.opened import open_subject

FILE = Path(foreign_layouts.__file__)
ZERO_PROJECTIONS = {"WideningStages", "OnlyWidening"}  # choices: no gates, and biases
QUICK = {"ConvolutionsLast", "OnlyWidening", "LastLayers"}
NAMES = [layout.__name__ for layout in LAYOUTS]
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def judged(name, codes=("R1", "E1", "E2", "E3", "C6", "C8"), **kwargs):
    subject = open_subject(f"{FILE}:{name}", kwargs=json.dumps(kwargs))
    return audit_subject(subject, [rule for rule in built_in_rules() if rule.code in codes])


def statuses(result):
    return {each.rule.code: each.finding.status for each in result.findings}


@pytest.mark.parametrize("name", CASES)
def test_blocks_of_every_layout_are_found_and_nothing_fails(name):
    found = statuses(judged(name))
    choices = {"E1", "E3"} if name in ZERO_PROJECTIONS else set()
    choices |= {"E2"} if name == "MixerOfPlaces" else set()
    assert {code for code, status in found.items() if status != "pass"} == choices
    assert "fail" not in found.values()


@pytest.mark.parametrize("name", NAMES)
def test_one_open_gate_among_closed_ones_is_found_in_every_layout(name):
    assert statuses(judged(name, ("E1",), opened=True)) == {"E1": "fail"}


def test_what_is_no_block_is_named_with_its_share_of_the_parameters():
    (r1,) = judged("MergedBetween", ("R1",)).findings
    assert "5 in blocks" in r1.finding.evidence
    assert "blocks.1 " in r1.finding.evidence and "blocks.5 " in r1.finding.evidence


def test_a_model_without_blocks_does_not_read_as_fine(tmp_path):
    (tmp_path / "loose.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Loose(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b, self.time = nn.Conv2d(4, 64, 3, 1, 1), nn.Conv2d(64, 4, 3, 1, 1), nn.Linear(1, 64)\n"
        "    def forward(self, x, t):\n"
        "        return self.b((self.a(x) + self.time(t[:, None] / 1000)[:, :, None, None]).tanh())\n"
    )
    result = audit_subject(open_subject(f"{tmp_path}/loose.py:Loose"), built_in_rules())
    assert report.verdict(result).startswith("judged in small part: ")
    assert "could not judge (E1, " in report.verdict(result)
    (r1,) = [each.finding for each in result.findings if each.rule.code == "R1"]
    assert r1.status == "warn" and "no blocks were found" in r1.evidence and "a 49%" in r1.evidence


def test_layers_between_blocks_that_read_no_condition_are_no_blocks():
    subject = open_subject(f"{FILE}:MergedBetween")
    assert set(subject.specimen.anatomy.blocks) == {f"blocks.{number}" for number in (0, 2, 3, 4, 6)}
