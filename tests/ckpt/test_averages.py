"""Averages without names, or without the dots in them, are taken under the names of the model beside them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dittool.ckpt.averages import pair_by_order
from dittool.ckpt.inspect import inspect
from dittool.ckpt.weights import load_weights
from dittool.errors import BadDataError


class Network(nn.Module):
    """Parameters, a frozen one, buffers between them, and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.ones(1, 4, 8), requires_grad=False)
        self.embed = nn.Linear(3, 8)
        self.norm = nn.BatchNorm1d(8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 3, bias=False)
        self.register_buffer("frequencies", torch.ones(5))


def averages(parameters) -> list[Tensor]:
    return [parameter.detach() + 7 for parameter in parameters]


def saved(tmp_path, network: nn.Module, ema: object, **others: object):
    torch.save({"model": network.state_dict(), "ema": ema, **others}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


@pytest.mark.parametrize("frozen", [True, False], ids=["of all", "of what is trained"])
@pytest.mark.parametrize("legacy", [True, False])
def test_a_list_is_named_by_the_order_of_the_models_parameters(tmp_path, frozen, legacy, listener):
    """diffusers' EMAModel keeps all parameters, torch_ema those that are trained."""
    network = Network()
    kept = {name: one for name, one in network.named_parameters() if frozen or one.requires_grad}
    state = {"decay": 0.999, "optimization_step": 3, "shadow_params": averages(kept.values())}
    torch.save(
        {"model": network.state_dict(), "ema": state},
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    weights = load_weights(tmp_path / "a.pt", talk=listener)
    assert weights.keys() == network.state_dict().keys()
    for name, one in network.state_dict().items():
        assert torch.equal(weights[name], one + 7 if name in kept else one), name
    assert "under 'ema.shadow_params', a list that is named by the order of the model's" in listener.notes[0]
    assert "raw tensors that are not averaged" in listener.notes[0] and not listener.warnings
    assert inspect(tmp_path / "a.pt").parameters == sum(one.numel() for one in network.state_dict().values())


def test_wrappers_before_the_models_names_are_seen_through(tmp_path):
    network = Network()
    state = {f"module._orig_mod.{name}": one for name, one in network.state_dict().items()}
    torch.save({"state_dict": state, "ema": {"shadow_params": averages(network.parameters())}}, tmp_path / "a.pt")
    assert torch.equal(load_weights(tmp_path / "a.pt")["embed.weight"], network.embed.weight + 7)


def test_a_tied_weight_is_counted_once(tmp_path):
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    weights = load_weights(saved(tmp_path, network, {"shadow_params": averages(network.parameters())}))
    assert torch.equal(weights["1.weight"], network[1].weight + 7)
    assert torch.equal(weights["2.bias"], network[2].bias + 7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda shadows: [*shadows[:-1], torch.ones(9)], "of shape (9,) should be"),
        (lambda shadows: [*shadows, torch.ones(1)], "of shape (1,) should be"),
        (lambda shadows: shadows[::-1], "of shape"),
        (lambda shadows: shadows[:4], "shapes alone do not tell which tensor is embed.bias"),
    ],
)
def test_a_list_that_does_not_fit_is_not_taken_and_why_is_said(tmp_path, change, said, listener, dit):
    network = Network()
    path = saved(tmp_path, network, {"shadow_params": change(averages(network.parameters())[1:])})
    weights = load_weights(path, talk=listener)
    assert torch.equal(weights["embed.weight"], network.embed.weight)
    assert said in listener.warnings[0] and "'ema.shadow_params' is a list of" in listener.warnings[0]
    shown = dit("inspect-ckpt", path)
    assert shown.code == 0 and "the average is not taken" in " ".join(shown.out.split())


def test_a_list_alone_has_no_names(tmp_path, dit):
    torch.save({"decay": 0.9, "shadow_params": averages(Network().parameters())}, tmp_path / "a.pt")
    with pytest.raises(BadDataError, match="a list of 10 tensors, and the file has no model to name them"):
        load_weights(tmp_path / "a.pt")
    assert dit("inspect-ckpt", tmp_path / "a.pt").code == 0


def test_names_that_lost_their_dots_find_them_in_the_raw_ones(tmp_path, listener):
    """LitEma: of what is trained, beside the raw weights and a pipeline's autoencoder."""
    network = Network()
    state = {f"model.diffusion_model.{name}": one for name, one in network.state_dict().items()}
    for name, one in network.named_parameters():
        if one.requires_grad:
            state[f"model_ema.{f'diffusion_model.{name}'.replace('.', '')}"] = one.detach() + 7
    state |= {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
    state |= {"first_stage_model.encoder.conv.weight": torch.ones(2)}
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "a.ckpt")
    weights = load_weights(tmp_path / "a.ckpt", talk=listener)
    assert weights.keys() == network.state_dict().keys()
    assert torch.equal(weights["blocks.1.weight"], network.blocks[1].weight + 7)
    assert torch.equal(weights["pos_embed"], network.pos_embed)
    assert (
        "the averaged weights under 'state_dict', without the prefix 'model_ema.diffusion_model.'" in listener.notes[0]
    )


def test_dots_that_could_stand_in_two_places_are_not_guessed(tmp_path):
    raw = {"model.a.b1.weight": torch.zeros(2), "model.a.b.1weight": torch.zeros(2), "model.c.weight": torch.zeros(2)}
    kept = {"model_ema.ab1weight": torch.ones(2), "model_ema.cweight": torch.ones(2)}
    torch.save(raw | kept, tmp_path / "a.pt")
    assert torch.equal(load_weights(tmp_path / "a.pt")["c.weight"], torch.zeros(2))


def test_a_long_list_is_paired_in_no_time():
    model = {f"blocks.{index}.{part}": torch.empty(4, 4) for index in range(5_000) for part in "qkv"}
    model |= {f"blocks.{index}.table": torch.empty(index + 5) for index in range(500)}
    names, why = pair_by_order(list(model.values()), model)
    assert names == list(model) and not why


def test_the_audit_judges_the_average_and_says_so(tmp_path, dit):
    network = Network()
    shown = dit("audit", saved(tmp_path, network, {"shadow_params": averages(network.parameters())}), "--select", "K1")
    text = " ".join(shown.out.split())
    assert shown.code == 0 and "judged are the averaged weights under 'ema.shadow_params', a list that is named" in text
