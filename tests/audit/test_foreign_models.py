"""Foreign models in different styles: each planted fault is found by the rules that it breaks, and by no other;
clean twins are clean.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from dittool.audit.specimens import gradients, trial
from dittool.audit.specimens.foreign import example, model
from dittool.audit.specimens.foreign.factory import Factory, load_factory
from dittool.audit.specimens.foreign.model import ForeignModel
from dittool.audit.specimens.watching import counted_runs
from dittool.errors import UsageError
from tests.audit.foreign_habits import HABITS, STYLES
from tests.audit.foreign_matrix import (
    CLEAN,
    FAULTS,
    MODELS,
    STREAMS,
    alarms,
    alarms_of_habit,
    matrix_page,
    models_of,
)
from tests.audit.opened import open_subject
from tests.quick import every_third, others_slow

QUICK_FAULTS = (
    "fused_deaf_to_class",
    "fused_transposed_positions",
    "fused_open_modulation",
    "parallel_checkpointing_ignored",
    "text_mask_ignored",
)
QUICK = ("nested_output", "last_block_open")  # of the habits
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("factory", every_third(CLEAN))
def test_a_clean_model_alarms_no_rule(factory):
    assert alarms(factory) == set()


@pytest.mark.parametrize("factory", others_slow(FAULTS, QUICK_FAULTS))
def test_a_planted_fault_is_found_by_its_rules_and_by_no_other(factory):
    assert alarms(factory) == FAULTS[factory][0]


@pytest.mark.parametrize("style", others_slow(STYLES, ("fused",)))
@pytest.mark.parametrize("habit", others_slow(HABITS, QUICK))
def test_a_habit_alarms_the_rules_that_it_breaks_and_no_other(habit, style):
    assert alarms_of_habit(style, habit) == HABITS[habit]


@pytest.mark.slow
def test_the_matrix_in_the_docs_is_what_is_found():
    assert (DOCS / "audit-matrix.md").read_text() == matrix_page(), (
        "python -m tests.audit.foreign_matrix > docs/audit-matrix.md"
    )


# Large models


@pytest.fixture
def everything_is_large(monkeypatch):
    for module in (model, trial, example):
        monkeypatch.setattr(module, "LARGEST_BUILT", 0)


@pytest.mark.parametrize("factory", others_slow([*CLEAN, *FAULTS], ("fused", "staged_open_second_stage")))
def test_a_large_model_is_judged_alike_from_copies_that_share_its_weights(factory, everything_is_large):
    assert alarms.__wrapped__(factory) == FAULTS.get(factory, (set(), ""))[0]


def test_a_large_model_is_built_once_and_left_as_it_was(everything_is_large, monkeypatch):
    built = []
    original = Factory.build
    monkeypatch.setattr(
        Factory, "build", lambda *given, **changes: built.append(original(*given, **changes)) or built[-1]
    )
    subject = open_subject(f"{STREAMS}:streams")
    before = {name: tensor.clone() for name, tensor in built[0].state_dict().items()}
    audit_subject(subject, [rule for rule in built_in_rules() if rule.code in ("E1", "E2", "E3", "C4", "C6")])
    assert len(built) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in built[0].state_dict().items())
    assert all(parameter.grad is None for parameter in built[0].parameters())


def test_a_large_model_that_cannot_be_copied_is_built_again(everything_is_large, tmp_path):
    (tmp_path / "locked.py").write_text(
        f"import sys, threading\nsys.path.insert(0, {str(MODELS.parent)!r})\nimport foreign_models\n"
        "def locked():\n    model = foreign_models.fused()\n    model.lock = threading.Lock()\n    return model\n"
    )
    result = audit_subject(
        open_subject(f"{tmp_path}/locked.py:locked"),
        [rule for rule in built_in_rules() if rule.code in ("E1", "E2", "C6")],
    )
    assert not result.crashes and result.counts["pass"] == 3


def test_every_entry_of_a_small_networks_gradients_is_compared(monkeypatch):
    monkeypatch.setattr(gradients, "_KEPT_ENTRIES", 50)
    foreign = open_subject(f"{STREAMS}:streams").specimen
    network = foreign.awake()
    kept = foreign.training_pass(network).gradients
    assert kept
    assert all(gradient.shape == network.get_parameter(name).shape for name, gradient in kept.items())


def test_of_a_large_networks_gradients_some_entries_and_their_size_are_compared(monkeypatch, everything_is_large):
    monkeypatch.setattr(gradients, "_KEPT_ENTRIES", 50)
    foreign = open_subject(f"{STREAMS}:streams").specimen
    first, second = (foreign.training_pass(foreign.awake()) for _ in range(2))
    assert max(len(gradient.flatten()) for gradient in first.gradients.values()) < 100
    assert gradients.largest_gradient_difference(first, second)[1] == 0
    moved = {name: gradient * 1.1 for name, gradient in second.gradients.items()}
    assert gradients.largest_gradient_difference(first, replace(second, gradients=moved))[1] > 0.05


RUN_TWICE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mix, self.gate = nn.LayerNorm(8), nn.Linear(8, 8, bias=False), nn.Linear(8, 8)

    def forward(self, x, c):
        y = self.norm(x)
        return x + self.gate(c)[:, None] * self.mix(y + y.mean(dim=1, keepdim=True))


class Model(nn.Module):
    def __init__(self, use_checkpoint=False, in_channels=4):
        super().__init__()
        self.twice = use_checkpoint
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.inward, self.time, self.out = nn.Linear(in_channels, 8), nn.Linear(1, 8), nn.Linear(8, in_channels)

    def forward(self, x, t):
        tokens, c = self.inward(x.flatten(2).transpose(1, 2)), self.time(t[:, None])
        for block in self.blocks:
            if self.twice:
                with torch.no_grad():
                    block(tokens, c)
            tokens = block(tokens, c)
        return self.out(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
"""


def test_a_block_that_runs_twice_before_backward_is_not_recomputed(tmp_path):
    (tmp_path / "twice.py").write_text(RUN_TWICE)
    rules = [rule for rule in built_in_rules() if rule.code == "E5"]
    result = audit_subject(open_subject(f"{tmp_path}/twice.py:Model"), rules)
    faults = " ".join(judged.finding.evidence for judged in result.findings if judged.finding.status == "fail")
    assert "blocks.0 runs 2 times before backward, not once" in faults
    assert "blocks.0 does not run again in backward; 2 of 2 blocks are not recomputed" in faults


def test_counting_a_blocks_runs_leaves_a_forward_that_somebody_set():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2))
    replaced = network[0].forward = lambda x: x + 1
    with counted_runs(network) as runs:
        network(torch.zeros(2))
    assert runs["0"] == 1 and network[0].forward is replaced


# What is found without names


@pytest.mark.parametrize(
    ("factory", "blocks", "last"),
    [
        ("fused", ("blocks.0", "blocks.1"), "blocks.0.adaLN_modulation.1"),
        ("rotary", ("trunk.layers.0", "trunk.layers.1"), "trunk.layers.0.adaLN"),
        # not the first layer of the two
        ("streams", ("joint_blocks.0", "low_rank_blocks.0"), "low_rank_blocks.0.mod.2"),
    ],
)
def test_blocks_and_modulation_are_found_by_what_they_do(factory, blocks, last):
    anatomy = open_subject(f"{models_of(factory)}:{factory}").specimen.anatomy
    assert anatomy.blocks == blocks
    assert last in {layer for layers in anatomy.modulation.values() for layer in layers}


def test_tokens_in_front_of_the_latents_are_told_apart():
    foreign = open_subject(f"{STREAMS}:sequence").specimen  # one of time and seven of text in front
    assert foreign.patch_and_grid == (2, (8, 8))


def test_a_shared_modulation_is_found_outside_of_the_blocks():
    assert open_subject(f"{MODELS}:single").specimen.anatomy.shared == ("t_block.1",)


# The command


def test_a_foreign_model_is_audited_from_the_command_line(dit):
    target = ("audit", f"{MODELS}:fused_open_modulation", "--kwargs", '{"depth": 1}', "--json")
    outcome = dit(*target, "--profile", "scratch")
    answer = json.loads(outcome.out)
    found = {finding["code"]: finding for finding in answer["findings"]}
    assert outcome.code == 1 and answer["kind"] == "foreign model" and answer["profile"] == "scratch"
    assert found["E1"]["status"] == "fail" and "1 in blocks" in found["E1"]["evidence"] and found["E1"]["fix"]
    for code in ("E4", "C2", "C3", "C5", "C7"):
        assert found[code]["status"] == "skip" and "model alone" in found[code]["evidence"]
    assert not any(code[0] in "DK" for code in found)


def test_a_factory_may_stand_in_a_package(monkeypatch):
    monkeypatch.syspath_prepend(MODELS.parent)
    assert open_subject("foreign_streams:rotary", kwargs='{"n_layers": 1}').specimen.anatomy.blocks == (
        "trunk.layers.0",
    )


def test_an_example_function_may_take_a_size(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def example(model, height, width):\n"
        "    height, width = height or 8, width or 4\n"
        "    return torch.randn(2, 4, height, width), torch.tensor([0.1, 0.9]), torch.tensor([3, 5])\n"
    )
    foreign = open_subject(f"{MODELS}:fused", example=f"{tmp_path}/mine.py:example").specimen
    assert foreign.example.size == (8, 4) and foreign.example.inputs(size=(6, 10))["x"].shape == (2, 4, 6, 10)


@pytest.mark.parametrize(
    ("target", "kwargs", "message"),
    [
        ("nowhere.py:Model", None, "no such file"),
        (f"{MODELS}:missing", None, "no class or function missing; it has"),
        ("no_such_package:Model", None, "ModuleNotFoundError"),
        (f"{MODELS}:fused", "{depth: 1}", "--kwargs is not JSON"),
        (f"{MODELS}:fused", "[1]", "not a JSON object"),
        (f"{MODELS}:fused", '{"width": 1}', "unexpected keyword argument 'width'"),
        (f"{MODELS}:sincos", '{"rows": 2, "columns": 2}', "returns a Tensor, not a torch.nn.Module"),
        ("demo", '{"depth": 1}', "belong to a model factory"),
    ],
)
def test_a_wrong_target_is_told_with_its_reason(target, kwargs, message):
    with pytest.raises(UsageError) as caught:
        open_subject(target, kwargs=kwargs)
    assert message in caught.value.message and caught.value.hint


def test_a_forward_that_cannot_be_guessed_asks_for_an_example(tmp_path):
    (tmp_path / "odd.py").write_text(
        "from torch import nn\nclass Odd(nn.Linear):\n    def forward(self, quux): return quux.corge\n"
    )
    with pytest.raises(UsageError, match=r"runs with none of the guesses.*'corge'") as caught:
        open_subject(f"{tmp_path}/odd.py:Odd", kwargs='{"in_features": 2, "out_features": 2}')
    assert "--example" in caught.value.hint


def test_a_model_without_blocks_is_skipped_and_never_passed(tmp_path):
    (tmp_path / "flat.py").write_text(
        "from torch import nn\n"
        "class Flat(nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.a = nn.Conv2d(4, 4, 1)\n"
        "    def forward(self, x, t): return self.a(x) * t[:, None, None, None]\n"
    )
    subject = open_subject(f"{tmp_path}/flat.py:Flat")
    found = {judged.rule.code: judged.finding for judged in audit_subject(subject, built_in_rules()).findings}
    for code in ("E1", "E2", "E3"):
        assert found[code].status == "skip" and "no list of modules" in found[code].evidence
    assert found["E5"].status == "skip" and "no switch was found" in found["E5"].evidence


def test_a_model_without_a_time_fails_and_breaks_nothing(tmp_path):
    (tmp_path / "timeless.py").write_text(
        "from torch import nn\n"
        "class Timeless(nn.Module):\n"
        "    def __init__(self):\n        super().__init__(); self.a = nn.Conv2d(4, 4, 1)\n"
        "    def forward(self, x): return self.a(x)\n"
    )
    result = audit_subject(
        open_subject(f"{tmp_path}/timeless.py:Timeless"), [rule for rule in built_in_rules() if rule.code == "C6"]
    )
    assert not result.crashes and "no input is a timestep" in result.findings[0].finding.evidence


def test_what_a_factory_prints_does_not_spoil_a_report(tmp_path, capsys):
    (tmp_path / "loud.py").write_text(
        f"import sys\nsys.path.insert(0, {str(MODELS.parent)!r})\nfrom foreign_models import fused\nprint('hello')\n"
    )
    ForeignModel(load_factory(f"{tmp_path}/loud.py:fused"))
    captured = capsys.readouterr()
    assert captured.out == "" and "hello" in captured.err


def test_what_another_size_is_run_without_is_not_filled():
    """diffusers' OmniGen: its mask over all tokens fits one size, and at another it is left out."""
    specimen = open_subject(f"{MODELS}:fused").specimen
    inputs = specimen.inputs()
    assert specimen.feed.filled(inputs, "attention_mask", 1) is inputs


def test_branches_whose_residual_stands_outside_are_blocks_of_their_own():
    anatomy = open_subject(f"{STREAMS}:outside").specimen.anatomy
    assert anatomy.blocks == ("layers.0.0", "layers.0.1", "layers.1.0", "layers.1.1")
    assert set(anatomy.branches) == set(anatomy.blocks)
