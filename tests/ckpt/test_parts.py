"""Which part of a checkpoint is its network, and what stands before its names."""

from __future__ import annotations

import itertools

import pytest
import torch

from dittool.ckpt.parts import find_part, state_dicts
from dittool.ckpt.weights import choose_part, load_weights
from dittool.errors import BadDataError

NAMES = ("blocks.0.attn.qkv.weight", "blocks.1.attn.qkv.weight", "x_embedder.proj.weight")
PREFIXES = ("module.", "_orig_mod.", "model.", "ema_model.", "_fsdp_wrapped_module.", "net.", "transformer.", "ema.")
PREFIXES += ("model_ema.", "diffusion_model.", "state_dict.", "denoiser.", "network.")


def weights(prefix: str = "", value: float = 1.0) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": torch.full((2, 2), value) for name in NAMES}


def taken(content: dict) -> tuple[list[str], float]:
    part = choose_part(content, None)
    state = content
    for key in part.keys:
        state = state[key]
    return list(part.bare.values()), float(state[next(iter(part.bare))][0, 0])


@pytest.mark.parametrize("prefix", [*PREFIXES, *map("".join, itertools.permutations(PREFIXES[:6], 2))])
def test_wrappers_are_seen_through_in_any_order(prefix):
    assert taken(weights(prefix)) == (list(NAMES), 1)
    assert taken({"state_dict": weights(prefix), "epoch": 1}) == (list(NAMES), 1)


def test_wrappers_in_the_middle_of_names_are_seen_through():
    wrapped = {
        "_fsdp_wrapped_module.blocks.0._fsdp_wrapped_module.attn._checkpoint_wrapped_module.qkv.weight": torch.ones(1),
        "_fsdp_wrapped_module.x_embedder._orig_mod.proj.weight": torch.ones(1),
    }
    assert list(find_part(wrapped, ()).bare.values()) == ["blocks.0.attn.qkv.weight", "x_embedder.proj.weight"]


@pytest.mark.parametrize(
    "content",
    [
        {"model": weights(), "ema": weights(value=7.0), "opt": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        {"state_dict": weights("model.") | weights("ema_model.", 7.0)},
        {"state_dict": weights("net.") | weights("net_ema.", 7.0) | {"loss.lpips.w": torch.ones(1)}},
        weights("online_model.")
        | weights("ema_model.", 7.0)
        | {"initted": torch.tensor(True), "step": torch.tensor(1)},
        weights("ema_model.", 7.0) | {"initted": torch.tensor(True), "step": torch.tensor(1)},
        {"model": weights(), "model_ema": {"decay": 0.999, "module": {"state_dict": weights("module.", 7.0)}}},
        {"module": weights(), "ema": {"shadow": weights(value=7.0), "num_updates": 3}},
        {"checkpoint": 1, "model": {"net": weights(), "ema": weights("_orig_mod.", 7.0)}},
    ],
)
def test_the_average_is_taken_wherever_it_lies(content):
    assert taken(content) == (list(NAMES), 7)


def test_the_network_of_a_pipelines_file_is_taken_and_the_others_are_named():
    content = weights("model.diffusion_model.") | {
        "first_stage_model.encoder.conv.weight": torch.ones(1),
        "cond_stage_model.transformer.x.weight": torch.ones(1),
        "betas": torch.ones(10),
    }
    part = choose_part(content, None)
    assert (part.prefix, list(part.bare.values())) == ("model.diffusion_model.", list(NAMES))
    assert "first_stage_model" in str(part) and "cond_stage_model" in str(part)


@pytest.mark.parametrize("beside", ["pos_embed", "proj_out.weight", "text_proj.weight", "time_embed.0.weight"])
def test_a_prefix_that_is_a_part_of_the_network_stays(beside):
    content = weights("transformer.") | {beside: torch.ones(4, 4)}
    assert choose_part(content, None).prefix == ""


def test_what_was_taken_is_said(tmp_path, listener):
    content = {"model": weights("module."), "ema": weights("module.", 7.0), "args": {"lr": 1}, "opt": {"state": {}}}
    torch.save(content, tmp_path / "a.pt")
    assert load_weights(tmp_path / "a.pt", talk=listener)[NAMES[0]][0, 0] == 7
    assert listener.notes == [
        f"{tmp_path / 'a.pt'}: taking the averaged weights under 'ema', without the prefix 'module.'; beside them the"
        " file holds model, args, opt"
    ]


def test_weights_under_an_unusual_key_are_found_and_an_optimizers_state_is_not():
    assert state_dicts({"student": weights(), "optimizer": {"w": torch.ones(2)}, "epoch": 3}) == [("student",)]
    with pytest.raises(BadDataError, match="no state dict"):
        choose_part({"optimizer": {"w": torch.ones(2)}, "epoch": 3}, None)
