"""The same weights under an original repository's names and under those of diffusers are paired by their values."""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from torch import Tensor

from dittool.ckpt.difference import diff
from dittool.ckpt.pairing import Pair, names_of_pairs, pair_by_content

D = 8


def original(zero_biases: bool = False) -> dict[str, Tensor]:
    """Two blocks as the original repositories of DiT and Flux have them."""
    torch.manual_seed(0)
    state = {"x_embedder.proj.weight": torch.randn(D, 4, 2, 2), "final.adaLN.weight": torch.randn(2 * D, D)}
    for index in range(2):
        block = f"blocks.{index}."
        state[f"{block}attn.qkv.weight"] = torch.randn(3 * D, D)
        state[f"{block}attn.qkv.bias"] = torch.zeros(3 * D) if zero_biases else torch.randn(3 * D)
        state[f"{block}linear1.weight"] = torch.randn(7 * D, D)
        state[f"{block}norm.weight"] = torch.ones(D)
    return state


def as_diffusers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    made = {
        "pos_embed.proj.weight": state["x_embedder.proj.weight"].flatten(1),
        "norm_out.linear.weight": torch.cat(state["final.adaLN.weight"].chunk(2)[::-1]),
    }
    for index in range(2):
        block, target = f"blocks.{index}.", f"transformer_blocks.{index}."
        for kind in ("weight", "bias"):
            for name, part in zip("qkv", state[f"{block}attn.qkv.{kind}"].chunk(3), strict=True):
                made[f"{target}attn1.to_{name}.{kind}"] = part
        sizes = [D, D, D, 4 * D]
        for name, part in zip(("q", "k", "v", "mlp"), state[f"{block}linear1.weight"].split(sizes), strict=True):
            made[f"{target}single.{name}.weight"] = part
        made[f"{target}norm1.weight"] = state[f"{block}norm.weight"]
    return {name: tensor.contiguous() for name, tensor in made.items()}


def as_told(pairs: list[Pair]) -> dict[tuple[str, ...], tuple[tuple[str, ...], str]]:
    return {pair.old: (pair.new, pair.how) for pair in pairs}


def test_every_tensor_finds_its_partner_in_the_other_layout():
    old = original()
    pairs = as_told(pair_by_content(old, as_diffusers(old)))
    assert {name for names in pairs for name in names} == old.keys()
    fused = tuple(f"transformer_blocks.1.attn1.to_{name}.weight" for name in "qkv")
    assert pairs[("blocks.1.attn.qkv.weight",)] == (fused, "fused")
    assert pairs[("blocks.1.linear1.weight",)][0][3] == "transformer_blocks.1.single.mlp.weight"
    assert pairs[("final.adaLN.weight",)] == (("norm_out.linear.weight",), "halves exchanged")
    assert pairs[("x_embedder.proj.weight",)] == (("pos_embed.proj.weight",), "reshaped")


def test_it_works_in_both_directions_and_in_another_precision():
    old = original()
    new = {name: tensor.bfloat16() for name, tensor in as_diffusers(old).items()}
    there, back = pair_by_content(old, new), pair_by_content(new, old)
    assert sorted((pair.old, pair.new) for pair in there) == sorted((pair.new, pair.old) for pair in back)
    assert {name for pair in there for name in pair.new} == new.keys()


def test_biases_of_zero_go_with_the_weights_beside_them():
    old = original(zero_biases=True)
    pairs = as_told(pair_by_content(old, as_diffusers(old)))
    for index in range(2):
        parts = tuple(f"transformer_blocks.{index}.attn1.to_{name}.bias" for name in "qkv")
        assert pairs[(f"blocks.{index}.attn.qkv.bias",)] == (parts, "fused")


def test_the_names_of_all_blocks_are_one_row_and_fused_layers_come_first():
    rows = names_of_pairs(pair_by_content(original(), as_diffusers(original())))
    parts = " + ".join(f"transformer_blocks.#.attn1.to_{name}.{{weight,bias}}" for name in "qkv")
    assert ("blocks.#.attn.qkv.{weight,bias}", f"{parts} (fused, 2 alike)") in rows[:4]
    assert ("x_embedder.proj.weight", "pos_embed.proj.weight (reshaped)") in rows[:4]
    assert rows[-1] == ("blocks.#.norm.weight", "transformer_blocks.#.norm1.weight (2 alike)")


def test_a_number_that_is_the_same_in_all_pairs_is_shown():
    pairs = [Pair(("t.mlp.0.weight",), (f"blocks.{index}.time.weight",), "a further copy") for index in (1, 2)]
    assert names_of_pairs(pairs) == [("t.mlp.0.weight", "blocks.#.time.weight (a further copy, 2 alike)")]


def test_other_values_find_no_partner():
    old, new = original(), as_diffusers(original())
    new["transformer_blocks.0.attn1.to_k.weight"] = torch.randn(D, D)
    unpaired = old.keys() - {name for pair in pair_by_content(old, new) for name in pair.old}
    assert unpaired == {"blocks.0.attn.qkv.weight"}
    assert pair_by_content({"a": torch.ones(2), "b": torch.empty(0)}, {"c": torch.zeros(2), "d": torch.empty(0)}) == []


def test_a_diff_of_two_layouts_says_so(tmp_path, dit):
    old = original()
    torch.save({"ema": old, "args": {"lr": 1}}, tmp_path / "old.ckpt")
    save_file(as_diffusers(old), tmp_path / "new.safetensors")
    change = diff(tmp_path / "old.ckpt", tmp_path / "new.safetensors")
    assert (change.missing, change.unexpected, change.equal) == ((), (), 0)
    ended = dit("inspect-ckpt", tmp_path / "old.ckpt", "--diff", tmp_path / "new.safetensors")
    assert ended.code == 0 and "10 were paired by equal values, 6 of them fused layers" in " ".join(ended.out.split())
