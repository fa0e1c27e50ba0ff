"""Parity with a specification: every component of a shipped preset holds, and each way to differ is found and named."""

from __future__ import annotations

import json

import pytest
import torch

from dittool.audit import spec
from dittool.audit.measures import MEASURES
from dittool.config.load import load_config, read_toml
from dittool.objective import drift
from tests.audit.opened import open_subject, preset_subject
from tests.quick import every_third

PRESETS = ("drift-b2", "drift-l2", "drift-b2-paper", "drift-l2-paper")


def parity(*overrides: str, preset: str = "drift-b2") -> spec.Parity:
    return spec.parity(preset_subject(preset, load_config(preset, overrides)), "drifting")


def failing(found: spec.Parity) -> set[str]:
    return {row.component for row in found.rows if row.result == "fail"}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_component_of_a_shipped_preset_holds(preset):
    found = parity(preset=preset)
    assert failing(found) == set()
    assert {row.status for row in found.rows} == set(spec.STATUSES)


def test_the_documented_presets_and_the_papers_take_different_forms():
    for preset, form in (("drift-b2", "as documented"), ("drift-b2-paper", "as authors'")):
        assert sum(row.measured.startswith(form) for row in parity(preset=preset).rows) >= 7


@pytest.mark.parametrize(
    ("override", "component"),
    every_third(
        [
            ("model.mlp_width=2185", "size"),
            ("model.classes=999", "class embedding"),
            ("model.registers=15", "registers"),
            ("model.style_tokens=31", "style tokens"),
            ("model.qk_norm=l2", "q/k norm"),
            ("model.rope=none", "rotary positions"),
            ("model.heads=6", "attention"),
            ("model.norm=layer", "block norms"),
            ("model.embedding_std=1.0", "initial embeddings"),
            ("model.zero_output=true", "output"),
            ("drift.temperatures=[0.05]", "normalisation"),
            ("drift.normalise_distances=false", "normalisation"),
            ("drift.alpha_max=2.0", "guidance"),
            ("drift.pushed=32", "queues"),
            ("drift.class_queue=256", "queues"),
            ("drift.alpha_exponent=4.0", "guidance"),
            ("drift.unguided=0.25", "guidance"),
            ("drift.unconditional=32", "groups"),
            ("train.batch_size=2048", "groups"),
            ("train.weight_decay=0.1", "updates"),
            ("train.min_lr=1e-5", "updates"),
            ("ema.target=0.9999", "updates"),
            ('drift.features=["raw"]', "features"),
            ("drift.maps_weight=0.5", "features"),
        ]
    ),
)
def test_a_deviation_fails_its_component(override, component):
    assert component in failing(parity(override))


@pytest.mark.parametrize(("preset", "size"), [("drift-b2-paper", "B"), ("drift-l2-paper", "L")])
def test_a_paper_preset_is_trained_as_in_the_authors_repository(preset, size):
    rows = {row.component: row.measured for row in parity(preset=preset).rows}
    expected = {"rotary positions": "authors'", "groups": "authors'"}
    expected |= {"guidance": f"authors' {size}", "updates": f"authors' {size}"}
    expected["queues"] = {"B": "authors' B", "L": "stated"}[size]
    for component, form in expected.items():
        assert rows[component].startswith(f"as {form}"), rows[component]


def test_a_tensor_that_no_component_names_fails():
    stray = failing(parity("model.output_modulation=true"))
    assert "nothing else" in stray


def test_a_field_that_is_not_antisymmetric_fails(monkeypatch):
    original = drift.field_at
    monkeypatch.setattr(
        "dittool.audit.measures.field_at", lambda *given, **named: original(*given, **{**named, "repulsion": 1.5})
    )
    assert "field" in failing(parity())


def test_a_loss_that_is_not_its_drift_fails(monkeypatch):
    monkeypatch.setattr("dittool.audit.measures.drift_loss", lambda x, *_: x.square().mean(dim=(1, 2)))
    assert "loss" in failing(parity())


def test_blocks_that_are_open_at_the_start_fail_the_modulation(monkeypatch):
    from dittool.models import drift_dit

    original = drift_dit.DriftDiT.initialize_weights

    def initialize(self):
        original(self)
        for block in self.blocks:
            torch.nn.init.normal_(block.modulation.weight)

    monkeypatch.setattr(drift_dit.DriftDiT, "initialize_weights", initialize)
    assert "modulation" in failing(parity())


def test_every_specification_is_well_formed_and_names_measures_that_exist():
    for name in spec.spec_names():
        components = read_toml(spec._FOLDER / f"{name}.toml")["component"]
        assert len({component["name"] for component in components}) == len(components)
        assert all(
            component["status"] in spec.STATUSES and component["evidence"] and component["forms"]
            for component in components
        )
        asked = {
            measure for component in components for form in component["forms"] for measure in form.get("measures", ())
        }
        assert asked == {*MEASURES, "total"}


def test_the_code_places_exist():
    from pathlib import Path

    import dittool

    root = Path(dittool.__file__).parent
    for row in parity().rows:
        path, _, names = row.code.partition(": ")
        text = (root / path).read_text()
        assert all(name.split(".")[-1] in text for name in names.split(", ") if name), row.code


# The command


def test_the_command_prints_a_table_markdown_and_json(dit):
    shown = dit("audit", "drift-b2", "--spec", "drifting")
    assert shown.code == 0 and "PAPER-BACKED" in shown.out and "133,088,720 parameters in 160 tensors" in shown.out
    assert "| queues | PAPER-BACKED |" in dit("audit", "drift-b2", "--spec", "drifting", "--format", "markdown").out
    answer = json.loads(dit("audit", "drift-b2", "--spec", "drifting", "--json").out)
    assert answer["ok"] and answer["parameters"] == 133_088_720
    assert answer["components"][0].keys() == {
        "component",
        "status",
        "statement",
        "evidence",
        "code",
        "result",
        "measured",
    }


def test_a_deviation_exits_with_1(dit, tmp_path):
    (tmp_path / "mine.toml").write_text('base = "drift-b2"\n[model]\nqk_norm = "l2"\n')
    outcome = dit("audit", tmp_path / "mine.toml", "--spec", "drifting")
    assert outcome.code == 1 and "G1" in outcome.out


@pytest.mark.parametrize(
    ("preset", "name", "message"), [("drift-b2", "dritfing", "no such specification"), ("nano", "drifting", "one-step")]
)
def test_a_wrong_call_exits_with_2(preset, name, message, dit):
    outcome = dit("audit", preset, "--spec", name)
    assert outcome.code == 2 and message in outcome.err


def test_an_unknown_target_is_told_as_usual():
    from dittool.errors import UsageError

    with pytest.raises(UsageError):
        open_subject("drift-b3")
