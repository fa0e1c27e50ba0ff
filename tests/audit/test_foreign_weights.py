"""Somebody else's state dicts: the layout is known by its names, weight-only rules judge it, the others say why
they do not.
"""

from __future__ import annotations

import re
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from dittool.audit.specimens.known_layouts import LAYOUTS, find_layout
from dittool.audit.specimens.layouts import WeightsAlone
from tests.audit.foreign_weights import (
    DIFFUSERS,
    ORIGINAL,
    OTHERS,
    D,
    diffusers_weights,
    original,
    other_weights,
)
from tests.audit.opened import open_subject

# positions are made, not stored
NOT_STORED = {"Flux, original", "Flux, diffusers", "DiT, diffusers", "PixArt, diffusers"}


@pytest.fixture(scope="module")
def weights_of():
    known = {}

    def get(layout):
        if layout not in known:
            known[layout] = original(layout) if layout in ORIGINAL else diffusers_weights(layout)
        return {name: tensor.clone() for name, tensor in known[layout].items()}

    return get


def audit(path):
    result = audit_subject(open_subject(str(path)), built_in_rules())
    assert not result.crashes
    return {judged.rule.code: judged.finding for judged in result.findings}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("layout", [*ORIGINAL, *DIFFUSERS])
def test_weight_only_rules_judge_each_layout_and_the_rest_says_why_not(layout, suffix, weights_of, tmp_path):
    weights, path = weights_of(layout), tmp_path / f"weights{suffix}"
    torch.save(weights, path) if suffix == ".pt" else save_file(weights, path)
    found = audit(path)
    statuses = {code: finding.status for code, finding in found.items()}
    assert statuses["K1"] == statuses["K2"] == statuses["K3"] == statuses["K4"] == "pass"
    # Biases in attention and stored positions are their authors' choice: the profile of foreign weights warns.
    assert statuses["E3"] == "warn"
    assert statuses["E2"] == ("skip" if layout in NOT_STORED else "warn")
    assert {statuses[code] for code in ("E1", "E4", "E5", "C1", "C2", "C3", "C4", "C5", "C6", "C7", "K5", "K6")} == {
        "skip"
    }
    assert all(layout in found[code].evidence for code in ("K3", "K4", "E2", "E3", "E1"))
    assert all(finding.evidence for finding in found.values())


@pytest.mark.parametrize("layout", [*ORIGINAL, *DIFFUSERS])
def test_a_gate_that_never_left_zero_is_found(layout, weights_of, tmp_path):
    weights = weights_of(layout)
    found = find_layout(weights)
    layer = next(iter(WeightsAlone(weights, found).open_gates())).split(" ")[0]
    width = weights[layer].shape[1] if layer in weights else weights[f"{layer}.weight"].shape[1]
    for name, tensor in weights.items():
        shared = name.startswith(("t_block.1.", "adaln_single.linear."))
        if name.startswith(layer) or shared:
            rows = tensor if name == layer else tensor.unflatten(0, (-1, width))
            rows[2] = 0
    torch.save(weights, tmp_path / "weights.pt")
    finding = audit(tmp_path / "weights.pt")["K4"]
    assert finding.status == "fail" and f"{layer} vector 2" in finding.evidence


@pytest.mark.parametrize("layout", [*ORIGINAL, *DIFFUSERS])
def test_a_block_that_lacks_a_tensor_is_found(layout, weights_of, tmp_path):
    weights = weights_of(layout)
    lost = next(
        name for name in weights if ".0." in name and "attn" in name and name.endswith("weight") and "norm" not in name
    )
    torch.save({name: tensor for name, tensor in weights.items() if name != lost}, tmp_path / "weights.pt")
    finding = audit(tmp_path / "weights.pt")["K3"]
    assert finding.status == "fail" and lost in finding.evidence


def test_weights_without_biases_pass_the_bias_rule(weights_of, tmp_path):
    weights = {name: tensor for name, tensor in weights_of("DiT or SiT, original").items()}
    bare = {
        name: tensor
        for name, tensor in weights.items()
        if not (name.endswith("bias") and (".attn." in name or ".mlp.fc" in name))
    }
    torch.save(bare, tmp_path / "weights.pt")
    assert audit(tmp_path / "weights.pt")["E3"].status == "pass"


@pytest.mark.parametrize(("averaged", "status"), [(0.9, "pass"), (1.0, "fail")])
def test_a_file_with_both_kinds_of_weights_must_hold_two(averaged, status, weights_of, tmp_path):
    raw = weights_of("DiT or SiT, original")
    torch.save(
        {"model": raw, "ema": {name: tensor * averaged for name, tensor in raw.items()}, "args": {"lr": 1e-4}},
        tmp_path / "0400000.pt",
    )
    assert audit(tmp_path / "0400000.pt")["K6"].status == status


def test_a_pipelines_prefix_does_not_hide_the_layout(weights_of):
    weights = {f"model.diffusion_model.{name}": tensor for name, tensor in weights_of("SD3, original").items()}
    assert find_layout({**weights, "first_stage_model.encoder.conv.weight": torch.ones(1)}).name.startswith(
        "SD3, original"
    )


def test_an_unknown_layout_is_described_by_its_structure(tmp_path):
    weights = {f"trunk.{index}.{part}": torch.ones(12, 4) for index in range(5) for part in ("mix", "out")}
    torch.save(weights | {"trunk.5.mix": torch.ones(2, 4), "table": torch.ones(100, 4)}, tmp_path / "weights.pt")
    found = audit(tmp_path / "weights.pt")
    assert found["E2"].status == found["E3"].status == found["K3"].status == found["K4"].status == "skip"
    for code in ("E3", "K3"):
        assert "5 × trunk of 2 tensors, 1 of other shapes, 12 tensors, width 4" in found[code].evidence
        assert "widest table 100×4" in found[code].evidence


@pytest.mark.parametrize("vectors", [1, 2, 4, 6, 9])
def test_which_vectors_of_a_modulation_are_gates(vectors, tmp_path):
    """Two are shift and scale alone; four are scale and gate twice."""
    modulation = torch.ones(vectors * D, 4)
    gates = {1: [], 2: [], 4: [1, 3], 6: [2, 5], 9: [2, 5, 8]}[vectors]
    for gate in gates:
        modulation[gate * D : (gate + 1) * D] = 0
    block = {"adaLN_modulation.1.weight": modulation, "attn.qkv.weight": torch.ones(3 * D, D)}
    weights = {f"blocks.{index}.{name}": tensor for index in range(2) for name, tensor in block.items()}
    torch.save(weights | {"t_embedder.mlp.0.weight": torch.ones(D, 4)}, tmp_path / "weights.pt")
    finding = audit(tmp_path / "weights.pt")["K4"]
    assert finding.status == ("fail" if gates else "skip")
    assert not gates or f"{2 * len(gates)} of {2 * len(gates)} gates are zero throughout" in finding.evidence


@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.diffusion_model.", "ema_model.transformer.", "some.where.else."]
)
@pytest.mark.parametrize("layout", OTHERS)
def test_other_published_layouts_are_known_by_their_names(layout, prefix):
    weights = {f"{prefix}{name}": tensor for name, tensor in other_weights(layout).items()}
    assert find_layout(weights).name == layout


@pytest.mark.parametrize("layout", OTHERS)
def test_other_published_layouts_are_judged(layout, tmp_path):
    torch.save(other_weights(layout), tmp_path / "weights.pt")
    statuses = {code: finding.status for code, finding in audit(tmp_path / "weights.pt").items()}
    gates = not layout.startswith(("U-ViT", "Hunyuan-DiT"))
    assert statuses["K3"] == "pass" and statuses["K4"] == ("pass" if gates else "skip")
    assert statuses["E3"] in ("pass", "fail", "warn")


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "in a trainer's file"])
@pytest.mark.parametrize("layout", [name for name in OTHERS if not name.startswith(("U-ViT", "Hunyuan-DiT"))])
def test_one_gate_that_is_zero_is_found_in_other_published_layouts(layout, wrapped, tmp_path):
    """The last gate of the last block, and it alone; of a modulation that blocks share, also its own part."""
    weights = other_weights(layout)
    found = find_layout(weights)
    gates = WeightsAlone(weights, found).open_gates()
    assert all(gates.values())
    layer, _, vector = list(gates)[-1].partition(" vector ")
    for name, tensor in weights.items():
        if name.removesuffix(".weight").removesuffix(".bias") == layer or (
            found.shared and re.search(found.shared, name)
        ):
            rows = tensor if name == layer else tensor.unflatten(0, (int(vector) + 1, -1))  # a gate is the last
            rows[int(vector)] = 0
    raw = {f"module.{name}": tensor for name, tensor in weights.items()}
    torch.save({"model": raw, "args": Namespace(lr=1e-4)} if wrapped else weights, tmp_path / "weights.pt")
    finding = audit(tmp_path / "weights.pt")["K4"]
    assert finding.status == "fail" and f"1 of {len(gates)} gates" in finding.evidence
    assert f"{layer} vector {vector}" in finding.evidence


def test_every_layout_has_a_state_dict_in_the_tests():
    tried = {found.name for found in map(find_layout, map(original, ORIGINAL))}
    tried |= {find_layout(diffusers_weights(layout)).name for layout in DIFFUSERS}
    assert tried | set(OTHERS) == {layout.name for layout in LAYOUTS}
