"""C1 on a foreign factory: which other values are guessed for an argument, and what follows from trying them."""

from __future__ import annotations

import pytest

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from dittool.audit.specimens.foreign import keywords
from dittool.audit.specimens.foreign.factory import load_attribute
from dittool.audit.specimens.settings import compared_texts, guess_values
from tests.audit.opened import open_subject

SOURCE = """
from __future__ import annotations
from typing import Literal
import torch
from torch import nn

ACTIVATIONS = {"gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Block(nn.Module):
    def __init__(self, width, norm, act):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=norm == "affine")
        self.mix, self.act, self.gate = nn.Linear(width, width), ACTIVATIONS[act](), nn.Linear(width, width)
        nn.init.zeros_(self.gate.weight), nn.init.zeros_(self.gate.bias)

    def forward(self, x, c):
        y = self.norm(x)
        return x + self.gate(c)[:, None] * self.act(self.mix(y + y.mean(dim=1, keepdim=True)))


class Model(nn.Module):
    def __init__(self, depth: int = 4, in_channels=4, norm="plain", act="gelu", attention: str = "flash",
                 rope: Literal["one", "two"] = "one", order="time",
                 widths=(8, 8), spare=[1, 2], extra: int | None = None, unsure: float | None = None,
                 mystery=None, table={}):
        super().__init__()
        self.attention = attention
        self.blocks = nn.ModuleList(Block(8, norm, act) for _ in range(depth))
        self.inward, self.time, self.out = nn.Linear(in_channels, 8), nn.Linear(1, 8), nn.Linear(8, in_channels)
        self.head = nn.Sequential(nn.Linear(8, widths[0]), nn.Linear(widths[0], widths[1]), nn.Linear(widths[1], 8))
        self.more = nn.Linear(8, extra or 3)

    def forward(self, x, t):
        if self.attention in ("flash", "plain"):
            tokens = self.inward(x.flatten(2).transpose(1, 2))
        c = self.time(t[:, None])
        for block in self.blocks:
            tokens = block(tokens, c)
        return self.out(self.head(tokens)).transpose(1, 2).unflatten(2, x.shape[2:])
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "theirs.py").write_text(SOURCE)
    return tmp_path / "theirs.py"


def judged(file):
    result = audit_subject(open_subject(f"{file}:Model"), [rule for rule in built_in_rules() if rule.code == "C1"])
    assert not result.crashes
    return {judged.finding.status: [] for judged in result.findings} | {
        status: [judged.finding.evidence for judged in result.findings if judged.finding.status == status]
        for status in ("fail", "skip")
    }


def test_texts_are_guessed_from_what_the_file_compares_them_with(file):
    make = load_attribute(f"{file}:Model")
    assert compared_texts(make, "norm") == ["affine"]
    assert compared_texts(make, "attention") == ["flash", "plain"]
    assert compared_texts(make, "act") == ["gelu", "silu", "tanh"]  # of a table that is looked up
    assert guess_values(make, "rope", "one").values == ["two"]  # of its annotation
    assert guess_values(make, "order", "time").values == []


def test_a_match_statement_and_an_attribute_count_too(tmp_path):
    (tmp_path / "other.py").write_text(
        "def make(mode='a'):\n    match mode:\n        case 'b' | 'c':\n            return 1\n"
        "def look(self):\n    return 'x' if self.config.mode.lower() != 'd' else 'y'\n"
    )
    assert compared_texts(load_attribute(f"{tmp_path}/other.py:make"), "mode") == ["b", "c", "d"]


def test_a_list_is_guessed_with_one_element_changed_or_turned_round(file):
    make = load_attribute(f"{file}:Model")
    assert (4, 3) in guess_values(make, "widths", (2, 3)).values and (3, 2) in guess_values(
        make, "widths", (2, 3)
    ).values
    assert [8, True] in guess_values(make, "widths", [8, False]).values
    assert guess_values(make, "widths", ()).values == guess_values(make, "table", {}).values == []


def test_arguments_that_act_pass_and_those_that_do_not_fail_or_say_why_not(file):
    found = judged(file)
    dead = {evidence.split(":")[0] for evidence in found["fail"]}
    assert dead == {"attention", "rope", "spare"}
    (unseen,) = found["skip"]
    assert "order (a text that its file compares with no other)" in unseen
    assert "unsure (None → 0.5, 2.0 changes nothing, and whether" in unseen
    assert "mystery (None, without an annotation" in unseen and "table (a dict, for which" in unseen
    for acting in ("norm", "act", "widths", "extra", "depth"):
        assert f"{acting} (" not in unseen


def test_a_very_large_model_is_judged_with_fewer_blocks_and_says_so(file, monkeypatch):
    monkeypatch.setattr(keywords, "_LARGEST", 850)
    assert open_subject(f"{file}:Model").specimen.parameters > 850
    found = judged(file)
    assert {evidence.split(":")[0] for evidence in found["fail"]} == {"attention", "rope", "spare"}
    assert all("tried with depth=2; the real one has" in evidence for evidence in found["fail"])
    monkeypatch.setattr(keywords, "_LARGEST", 10)
    assert "too many to build" in judged(file)["skip"][0]


def test_memory_that_nobody_wrote_does_not_make_an_argument_act(tmp_path):
    (tmp_path / "unwritten.py").write_text("""
from itertools import count
import torch
from torch import nn

builds = count()


class Model(nn.Module):
    def __init__(self, depth: int = 2, unused: int = 3):
        super().__init__()
        left = [torch.full((64,), float(next(builds))) for _ in range(50)]
        del left  # what memory that is taken next still holds
        self.token = nn.Parameter(torch.empty(64))
        self.inward, self.time = nn.Conv2d(4, 8, 1), nn.Linear(1, 8)
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(depth))
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x, t):
        y = self.inward(x) + self.time(t[:, None])[..., None, None]
        for layer in self.layers:
            y = y + layer(y)
        return self.out(y)
""")
    subject = open_subject(f"{tmp_path}/unwritten.py:Model")
    result = audit_subject(subject, [rule for rule in built_in_rules() if rule.code == "C1"])
    assert [each.finding.status for each in result.findings] == ["fail"]
    assert result.findings[0].finding.evidence.startswith("unused")
