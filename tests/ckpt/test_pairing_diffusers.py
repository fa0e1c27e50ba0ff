"""Models of diffusers beside the original repositories' names of the same weights, written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dittool.ckpt.difference import diff

Names = Mapping[str, str]  # the original name → those of diffusers; "a + b": fused, "~a": halves exchanged

DIT_BLOCK = {
    "attn.qkv": "attn1.to_q + attn1.to_k + attn1.to_v",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
DIT = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "transformer_blocks.0.norm1.emb.class_embedder.embedding_table",
    "final_layer.linear": "proj_out_2",
    "final_layer.adaLN_modulation.1": "proj_out_1",
}
SD3_BLOCK = {
    "x_block.attn.qkv": "attn.to_q + attn.to_k + attn.to_v",
    "context_block.attn.qkv": "attn.add_q_proj + attn.add_k_proj + attn.add_v_proj",
    "x_block.attn.proj": "attn.to_out.0",
    "context_block.attn.proj": "attn.to_add_out",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
SD3 = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "~norm_out.linear",
}
FLUX_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.qkv": "attn.to_q + attn.to_k + attn.to_v",
    "txt_attn.qkv": "attn.add_q_proj + attn.add_k_proj + attn.add_v_proj",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "img_attn.norm.query_norm": "attn.norm_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}
FLUX_SINGLE = {
    "linear1": "attn.to_q + attn.to_k + attn.to_v + proj_mlp",
    "linear2": "proj_out",
    "modulation.lin": "norm.linear",
}
FLUX = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "~norm_out.linear",
}


def in_blocks(names: Names, ours: str, theirs: str, count: int) -> dict[str, str]:
    """The names of one block in each of several."""
    return {
        f"{ours}.{index}.{old}": " + ".join(f"{theirs}.{index}.{one}" for one in new.split(" + "))
        for index in range(count)
        for old, new in names.items()
    }


def original(names: Names, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model of diffusers under the original names; what it does not have is left out."""
    made = {}
    for old, new in names.items():
        for kind in ("weight", "bias"):
            parts = [f"{one.removeprefix('~')}.{kind}" for one in new.split(" + ")]
            if all(part in state for part in parts):
                tensor = torch.cat([state[part] for part in parts])
                made[f"{old}.{kind}"] = torch.cat(tensor.chunk(2)[::-1]) if new.startswith("~") else tensor
    return made


def models() -> dict[str, tuple[str, dict[str, object], dict[str, str], int]]:
    """Class, configuration, names, and how many layers are fused."""
    text = {"joint_attention_dim": 12, "pooled_projection_dim": 10, "num_layers": 2}
    return {
        "DiT": (
            "DiTTransformer2DModel",
            {"in_channels": 4, "out_channels": 8, "num_layers": 2, "sample_size": 8, "num_embeds_ada_norm": 10},
            DIT | in_blocks(DIT_BLOCK, "blocks", "transformer_blocks", 2),
            4,
        ),
        "SD3": (
            "SD3Transformer2DModel",
            {"in_channels": 4, "out_channels": 4, "sample_size": 8, "caption_projection_dim": 16} | text,
            SD3 | in_blocks(SD3_BLOCK, "joint_blocks", "transformer_blocks", 2),
            8,
        ),
        "Flux": (
            "FluxTransformer2DModel",
            {"patch_size": 1, "in_channels": 4, "num_single_layers": 2, "axes_dims_rope": (2, 2, 4)} | text,
            FLUX
            | in_blocks(FLUX_DOUBLE, "double_blocks", "transformer_blocks", 2)
            | in_blocks(FLUX_SINGLE, "single_blocks", "single_transformer_blocks", 2),
            12,
        ),
    }


@pytest.fixture(params=["DiT", "SD3", "Flux"])
def layouts(request, tmp_path) -> tuple[Path, Path, int]:
    """A file of each layout, the original one in half precision and behind a prefix, and the fused layers in it."""
    import diffusers

    from dittool.encoders.torchvision_remedy import ensure_torchvision

    ensure_torchvision()
    torch.manual_seed(0)
    name, options, names, fused = models()[request.param]
    kind: Callable[..., torch.nn.Module] = getattr(diffusers, name)
    made = kind(num_attention_heads=2, attention_head_dim=8, **options).state_dict()
    state = {name: torch.randn_like(tensor) for name, tensor in made.items()}
    for name in state:  # diffusers' DiT embeds time and class in every block, by equal weights
        if ".norm1.emb." in name:
            state[name] = state[name.replace("blocks.1.", "blocks.0.")].clone()
    bare = original(names, state)
    torch.save({"ema": {f"module.{name}": one.half() for name, one in bare.items()}, "args": 1}, tmp_path / "old.pt")
    save_file(state, tmp_path / "new.safetensors")
    return tmp_path / "old.pt", tmp_path / "new.safetensors", fused


def test_every_tensor_of_an_original_layout_is_found_in_diffusers(layouts, dit):
    old, new, fused = layouts
    change = diff(old, new)
    assert (change.missing, change.changed, change.reshaped) == ((), (), {})
    assert sum(pair.how == "fused" for pair in change.paired) == fused
    assert change.rounded == change.equal  # context_embedder of SD3 has one name in both
    shown = " ".join(dit("inspect-ckpt", old, "--diff", new).out.split())
    assert f"{fused} of them fused layers with their parts" in shown and "2 alike" in shown


def test_copies_of_one_tensor_are_told_from_what_is_only_there(layouts):
    old, new, _ = layouts
    change = diff(old, new)
    copies = [pair for pair in change.paired if pair.how == "a further copy"]
    assert len(copies) == 5 * any(pair.old == ("y_embedder.embedding_table.weight",) for pair in change.paired)
    assert all("blocks.1.norm1.emb." in pair.new[0] for pair in copies)


def test_a_layer_that_was_trained_on_finds_no_partner(layouts, tmp_path):
    old, new, _ = layouts
    content = torch.load(old)
    name = next(name for name in content["ema"] if "qkv.weight" in name)
    content["ema"][name] = content["ema"][name] + 0.5
    torch.save(content, tmp_path / "trained.pt")
    assert diff(tmp_path / "trained.pt", new).missing == (name.removeprefix("module."),)
