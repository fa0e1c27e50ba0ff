"""Old weights in a new architecture: every tensor is accounted for, and what is said to be copied is copied."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dittool.ckpt.warmstart import FRESH, Features, Meaning, old_feature_widths, warmstart, write_init
from dittool.ckpt.weights import load_weights
from dittool.config.load import load_config
from dittool.errors import BadDataError
from dittool.models.build import build_model
from dittool.models.dit import DiT


def block_stack(depth: int, width: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights of a toy transformer whose new blocks are the identity: `gate` is zero."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(width, width) for _ in range(depth))})
    return {
        "embed.weight": torch.randn(width, 3),
        **model.state_dict(),
        **{f"blocks.{i}.gate": torch.zeros(width) for i in range(depth)},
    }


def statuses(result) -> dict[str, str]:
    return {row.name: row.status for row in result.report}


def test_the_same_architecture_is_copied_whole_and_independently():
    old, fresh = block_stack(2, 4, seed=1), block_stack(2, 4, seed=2)
    result = warmstart(old, fresh)
    assert set(statuses(result).values()) == {"copied"}
    assert all(torch.equal(result.weights[name], tensor) for name, tensor in old.items())
    result.weights["embed.weight"].zero_()
    assert old["embed.weight"].abs().sum() > 0


def test_a_deeper_model_starts_as_the_old_one_with_new_blocks_as_they_were_initialised():
    old, fresh = block_stack(2, 4, seed=1), block_stack(3, 4, seed=2)
    result = warmstart(old, fresh)
    assert {name: status for name, status in statuses(result).items() if status != "copied"} == {
        "blocks.2.weight": "re-initialised",
        "blocks.2.bias": "re-initialised",
        "blocks.2.gate": "re-initialised",
    }
    assert torch.equal(result.weights["blocks.2.weight"], fresh["blocks.2.weight"])
    assert torch.equal(result.weights["blocks.1.weight"], old["blocks.1.weight"])


def test_a_shallower_model_leaves_the_surplus_blocks_out_and_says_so():
    result = warmstart(block_stack(3, 4), block_stack(2, 4))
    assert "blocks.2.weight" not in result.weights
    assert statuses(result)["blocks.2.weight"] == "skipped"
    assert result.counts == {"copied": 7, "resized": 0, "re-initialised": 0, "skipped": 3}


def test_a_wider_tensor_takes_the_old_one_as_its_corner_and_keeps_its_own_rest():
    old, fresh = {"w": torch.full((2, 3), 7.0)}, {"w": torch.arange(20.0).view(4, 5)}
    result = warmstart(old, fresh)
    expected = torch.arange(20.0).view(4, 5)
    expected[:2, :3] = 7
    assert torch.equal(result.weights["w"], expected)
    [row] = result.report
    assert (row.status, row.old, row.new, row.axes) == ("resized", (2, 3), (4, 5), (0, 1))
    assert torch.equal(fresh["w"], torch.arange(20.0).view(4, 5))


def test_a_narrower_tensor_takes_the_part_that_fits():
    result = warmstart({"w": torch.arange(6.0).view(2, 3)}, {"w": torch.zeros(2, 2)})
    assert result.weights["w"].tolist() == [[0, 1], [3, 4]]
    assert result.report[0].axes == (1,)


def test_stacked_matrices_are_resized_one_by_one_so_that_each_keeps_its_role():
    old = {"a.qkv.weight": torch.cat([torch.full((2, 2), float(part)) for part in (1, 2, 3)])}
    fresh = {"a.qkv.weight": torch.zeros(9, 3)}
    parts = warmstart(old, fresh).weights["a.qkv.weight"].chunk(3)
    for value, part in zip((1, 2, 3), parts, strict=True):
        assert part.tolist() == [[value, value, 0], [value, value, 0], [0, 0, 0]]
    bias = {"b.modulation.bias": torch.arange(9.0).repeat_interleave(2)}
    widened = warmstart(bias, {"b.modulation.bias": torch.full((27,), -1.0)}).weights["b.modulation.bias"]
    assert widened.view(9, 3).tolist() == [[gate, gate, -1] for gate in range(9)]


def test_another_rank_is_no_counterpart():
    result = warmstart({"w": torch.ones(4), "x": torch.ones(1)}, {"w": torch.zeros(2, 2), "x": torch.zeros(1)})
    assert statuses(result) == {"w": "re-initialised", "x": "copied"}
    assert (result.report[0].old, result.report[0].new) == ((4,), (2, 2))
    assert result.weights["w"].sum() == 0


def test_the_new_model_decides_the_dtype():
    assert warmstart({"w": torch.ones(2).bfloat16()}, {"w": torch.zeros(2)}).weights["w"].dtype == torch.float32


def test_a_scalar_is_copied():
    assert warmstart({"w": torch.tensor(3.0)}, {"w": torch.tensor(0.0)}).weights["w"] == 3


@pytest.mark.row(59)
def test_weights_with_nan_are_no_start():
    with pytest.raises(BadDataError, match=r"1 tensors hold NaN or infinity: w"):
        warmstart({"w": torch.tensor([float("nan")])}, {"w": torch.zeros(1)})


def test_weights_of_which_nothing_fits_are_refused_with_names_from_both_sides():
    with pytest.raises(BadDataError, match=r"none of the old model's 1 tensors \(a .* new model's 1 \(b"):
        warmstart({"a": torch.ones(1)}, {"b": torch.ones(1)})


def test_the_written_weights_are_complete_and_say_where_they_come_from(tmp_path):
    result = warmstart(block_stack(1, 4), block_stack(2, 4))
    write_init(tmp_path / "init.safetensors", result, "old.pt", load_config("demo"))
    loaded = load_weights(tmp_path / "init.safetensors")
    assert loaded.keys() == result.weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in result.weights.items())


def test_the_widths_of_the_features_come_from_the_checkpoints_data_before_its_shapes(tmp_path, state):
    shapes = {
        "conditioning.text_proj.weight": torch.zeros(8, 5),
        "conditioning.dino_proj.weight": torch.zeros(8, 6),
        "patch_embedding.weight": torch.zeros(8, 64),
    }
    torch.save({**state(1), "model": shapes}, tmp_path / "ours.pt")
    assert old_feature_widths(tmp_path / "ours.pt", shapes, 2) == {"text": 4, "image": 4, "latent_channels": 16}
    torch.save(shapes, tmp_path / "foreign.pt")
    assert old_feature_widths(tmp_path / "foreign.pt", shapes, 2) == {"text": 5, "image": 6, "latent_channels": 16}
    assert old_feature_widths(tmp_path / "foreign.pt", {}, 2) == {}


# What the numbers stand for


def tiny(*overrides: str, widths: tuple[int, int, int] = (64, 64, 16)) -> DiT:
    """A demo model of 16 channels whose every tensor has values, as after training."""
    torch.manual_seed(3)
    size = ["model.depth=1", "model.width=16", "model.heads=2"]
    model = build_model(load_config("demo", [*size, *overrides]), *widths).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_a_coarser_patch_sees_and_predicts_as_the_old_model_would_at_the_old_resolution():
    p, q = 2, 4
    old, target = tiny("model.patch_size=2"), tiny("model.patch_size=4").state_dict()
    result = warmstart(old.state_dict(), target, Meaning(2, p), Meaning(2, q))
    assert statuses(result)["patch_embedding.weight"] == statuses(result)["output.weight"] == "resized"
    constant = torch.randn(16).repeat_interleave(q * q)  # one value a channel over the patch of 4×4 cells
    seen = result.weights["patch_embedding.weight"] @ constant
    torch.testing.assert_close(seen, old.patch_embedding.weight @ constant.view(16, q * q)[:, : p * p].flatten())
    token = torch.randn(16)
    new = (result.weights["output.weight"] @ token + result.weights["output.bias"]).view(16, q, q)
    before = old.output(token).view(16, p, p)
    torch.testing.assert_close(new.mean((1, 2)), before.mean((1, 2)))
    finer = warmstart(tiny("model.patch_size=4").state_dict(), old.state_dict(), Meaning(2, 4), Meaning(2, 2))
    sums = finer.weights["patch_embedding.weight"].view(16, 16, 4).sum(-1)  # all cells of a channel at one
    torch.testing.assert_close(sums, tiny("model.patch_size=4").patch_embedding.weight.view(16, 16, 16).sum(-1))


def test_another_number_of_heads_is_no_copy():
    old = tiny("model.qk_norm=false").state_dict()
    target = tiny("model.heads=4", "model.qk_norm=false").state_dict()
    result = warmstart(old, target, Meaning(2, 2), Meaning(4, 2))
    resized = {row.name.rpartition(".weight")[0].rpartition(".")[2] for row in result.report if row.status == "resized"}
    assert resized == {"qkv", "q", "kv", "out"}
    assert all("2 heads become 4" in row.why for row in result.report if row.status == "resized")
    assert torch.equal(result.weights["blocks.0.attention.qkv.weight"], old["blocks.0.attention.qkv.weight"])


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("text", {"text_proj", "null_text"}),
        ("image", {"dino_proj", "dino_patch_proj", "null_dino", "null_dino_patch_token"}),
        ("vae", {"patch_embedding", "output"}),
    ],
)
def test_columns_of_another_encoder_start_fresh(kind, layers):
    before = {name: Features("hub/old", 64) for name in ("text", "image", "vae")}
    after = before | {kind: Features("hub/new", 64)}
    size = ["model.depth=1", "model.width=16", "model.heads=2"]
    old, target = tiny().state_dict(), build_model(load_config("demo", size), 64, 64, 16)
    result = warmstart(old, target.state_dict(), Meaning(2, 2, before), Meaning(2, 2, after))
    fresh = {row.name.replace("conditioning.", "").split(".")[0] for row in result.report if row.status != "copied"}
    assert fresh == layers
    same = before | {kind: Features("/models/OLD", 64)}  # the same encoder in a folder
    assert set(statuses(warmstart(old, old, Meaning(2, 2, before), Meaning(2, 2, same))).values()) == {"copied"}


def test_a_modulation_of_another_number_of_parts_starts_fresh():
    result = warmstart(
        {"b.modulation.weight": torch.ones(12, 2), "b.modulation.bias": torch.ones(12), "w": torch.ones(1)},
        {"b.modulation.weight": torch.zeros(18, 2), "b.modulation.bias": torch.zeros(18), "w": torch.zeros(1)},
    )
    assert statuses(result) == {"b.modulation.weight": FRESH, "b.modulation.bias": FRESH, "w": "copied"}
    assert result.report[0].why == "6 matrices in the old model, 9 in the new one"


def test_a_shared_modulation_is_handed_out_to_blocks_as_exactly_what_it_was():
    old = tiny("model.shared_modulation=true", "model.depth=2")
    target = tiny("model.depth=2")
    result = warmstart(old.state_dict(), target.state_dict())
    assert {row.name for row in result.report if row.status == "resized"} == {
        f"blocks.{index}.modulation.{kind}" for index in range(2) for kind in ("weight", "bias")
    }
    target.load_state_dict(result.weights)
    c = torch.randn(3, 16)
    for block, before in zip(target.blocks, old.blocks, strict=True):
        torch.testing.assert_close(block.modulation(c), before.modulation(old.modulation(c)))


def test_modulations_of_blocks_become_their_mean_and_offsets():
    old, target = tiny("model.depth=2").state_dict(), tiny("model.shared_modulation=true", "model.depth=2").state_dict()
    weights = warmstart(old, target).weights
    biases = [old[f"blocks.{index}.modulation.bias"] for index in range(2)]
    torch.testing.assert_close(weights["modulation.bias"], (biases[0] + biases[1]) / 2)
    for index, bias in enumerate(biases):
        torch.testing.assert_close(weights["modulation.bias"] + weights[f"blocks.{index}.modulation.offset"], bias)
    mean = (old["blocks.0.modulation.weight"] + old["blocks.1.modulation.weight"]) / 2
    torch.testing.assert_close(weights["modulation.weight"], mean)


def test_numbers_that_are_read_otherwise_are_no_copies():
    old = tiny("model.qk_norm=false").state_dict()
    before, after = Meaning(positions="sincos", norm="layer"), Meaning(positions="rope", norm="rms")
    rows = [row for row in warmstart(old, old, before, after).report if row.status == "resized"]
    why = {row.name.removeprefix("blocks.0."): row.why for row in rows}
    read = {"attention.qkv.weight", "cross_attention.q.weight", "mlp.up.weight", "output.weight", "output.bias"}
    assert why.keys() == read | {"attention.out.weight"}
    assert "sincos become rope" in why["attention.qkv.weight"] and "layer becomes rms" in why["attention.qkv.weight"]


def test_another_kind_of_mlp_starts_fresh_and_one_of_another_width_keeps_gates_gates():
    gelu, swiglu = tiny("model.mlp=gelu").state_dict(), tiny("model.mlp=swiglu").state_dict()
    result = warmstart(gelu, swiglu)
    fresh = {row.name: row.why for row in result.report if row.status != "copied"}
    reason = "an MLP of GELU in the old model, of SwiGLU in the new one"
    assert fresh == {f"blocks.0.mlp.{layer}.weight": reason for layer in ("up", "down")}
    wider = warmstart(swiglu, tiny("model.mlp=swiglu", "model.mlp_ratio=8.0").state_dict()).weights
    for old, new in zip(
        swiglu["blocks.0.mlp.up.weight"].chunk(2), wider["blocks.0.mlp.up.weight"].chunk(2), strict=True
    ):
        assert torch.equal(new[: len(old)], old)


# The command


SMALL = ("-s", "model.width=16", "-s", "model.heads=2")


def test_the_command_asks_for_the_widths_that_it_cannot_know(dit, tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt")
    unknown = ("-s", "encoders.image=mine/image", "-s", "encoders.vae=mine/vae")
    ended = dit("warmstart", tmp_path / "old.pt", "--preset", "demo", "--out", tmp_path / "i.safetensors", *unknown)
    assert ended.code == 2 and "--image-dim N --latent-channels N" in ended.err and "--text-dim" not in ended.err


def test_the_command_carries_a_checkpoint_over_to_a_deeper_preset(dit, tmp_path):
    old = tiny().state_dict()
    torch.save({"model": old}, tmp_path / "old.pt")
    out, again = tmp_path / "init.safetensors", tmp_path / "a b.safetensors"
    deeper = (*SMALL, "-s", "model.depth=2")
    ended = dit("warmstart", tmp_path / "old.pt", "--preset", "demo", "--out", out, *deeper, "--json")
    answer = json.loads(ended.out)
    assert ended.code == 0 and answer["widths"] == {"text": 64, "image": 64, "latent_channels": 16}
    assert answer["counts"] == {"copied": len(old), "resized": 0, "re-initialised": 13, "skipped": 0}
    loaded = load_weights(out)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in old.items())
    ended = dit("warmstart", tmp_path / "old.pt", "--preset", "demo", "--out", again, *deeper)
    assert torch.equal(load_weights(again)["blocks.1.mlp.up.weight"], loaded["blocks.1.mlp.up.weight"])
    settings = "-s model.width=16 -s model.heads=2 -s model.depth=2"
    assert f"dit train --preset demo {settings} --init '{again}'" in ended.err  # what trains this model, as it is typed


def test_the_widths_are_those_of_the_presets_encoders_not_the_old_models(dit, tmp_path):
    """nano reads T5 and DINOv3, the demo's model read the built-in stand-ins."""
    torch.save({"model": tiny().state_dict()}, tmp_path / "old.pt")
    out = tmp_path / "init.safetensors"
    ended = dit("warmstart", tmp_path / "old.pt", "--preset", "nano", "--out", out, "-s", "model.depth=1", "--json")
    assert json.loads(ended.out)["widths"] == {"text": 1024, "image": 1024, "latent_channels": 16}
    assert load_weights(out)["conditioning.text_proj.weight"].shape == (384, 1024)
    assert "other text features, whose layers start fresh" in ended.err


def test_a_file_is_never_written_over_its_input_or_over_a_strangers_file(dit, tmp_path):
    old = tmp_path / "old.safetensors"
    save_file(tiny().state_dict(), old)
    before = old.read_bytes()
    ended = dit("warmstart", old, "--preset", "demo", "--out", old, *SMALL, "-s", "model.depth=1", "--force")
    assert ended.code == 2 and "it is the input" in ended.err and old.read_bytes() == before
    theirs = tmp_path / "theirs.safetensors"
    save_file({"x": torch.ones(1)}, theirs)
    command = ("warmstart", old, "--preset", "demo", "--out", theirs, *SMALL, "-s", "model.depth=1")
    ended = dit(*command)
    assert ended.code == 2 and "another origin" in ended.err and "--force" in ended.err
    assert dit(*command, "--force").code == 0 and "patch_embedding.weight" in load_weights(theirs)
    assert dit(*command).code == 0  # its own earlier result
