"""Somebody else's state dicts: the layout is known by its names, weight-only rules judge it, the others say why
they do not.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from dittool.audit.specimens.layouts import WeightsAlone, find_layout
from tests.audit.foreign_weights import DIFFUSERS, ORIGINAL, diffusers_weights, original
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
    assert statuses["E3"] == "fail"  # all of them have biases in attention
    assert statuses["E2"] == ("skip" if layout in NOT_STORED else "fail")
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


def test_unknown_names_are_no_layout_and_the_rules_name_the_known_ones(tmp_path):
    torch.save({"layers.0.weight": torch.ones(2, 2)}, tmp_path / "weights.pt")
    found = audit(tmp_path / "weights.pt")
    assert found["E2"].status == found["E3"].status == found["K4"].status == "skip"
    assert "none of the known layouts" in found["E3"].evidence and "Flux" in found["E3"].evidence
