"""State dicts with the names of published transformers, tiny: three blocks of width 8 or 16."""

from __future__ import annotations

import torch
from torch import Tensor

D = 8


def linear(name: str, rows: int, columns: int = D, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def _dit() -> dict[str, tuple[int, ...]]:
    names = {"pos_embed": (1, 16, D), "x_embedder.proj.weight": (D, 4, 2, 2), "x_embedder.proj.bias": (D,)}
    names |= (
        linear("t_embedder.mlp.0", D, 256)
        | linear("t_embedder.mlp.2", D)
        | {"y_embedder.embedding_table.weight": (11, D)}
    )
    for i in range(3):
        block = f"blocks.{i}."
        names |= linear(f"{block}attn.qkv", 3 * D) | linear(f"{block}attn.proj", D) | linear(f"{block}mlp.fc1", 4 * D)
        names |= linear(f"{block}mlp.fc2", D, 4 * D) | linear(f"{block}adaLN_modulation.1", 6 * D)
    return names | linear("final_layer.linear", 32) | linear("final_layer.adaLN_modulation.1", 2 * D)


def _pixart() -> dict[str, tuple[int, ...]]:
    names = (
        {"pos_embed": (1, 16, D), "x_embedder.proj.weight": (D, 4, 2, 2)}
        | linear("t_embedder.mlp.0", D, 256)
        | linear("t_block.1", 6 * D)
    )
    names |= (
        {"y_embedder.y_embedding": (120, 12)}
        | linear("y_embedder.y_proj.fc1", D, 12)
        | linear("y_embedder.y_proj.fc2", D)
    )
    for i in range(3):
        block = f"blocks.{i}."
        names |= (
            {f"{block}scale_shift_table": (6, D)}
            | linear(f"{block}attn.qkv", 3 * D)
            | linear(f"{block}cross_attn.q_linear", D)
        )
        names |= linear(f"{block}cross_attn.kv_linear", 2 * D) | linear(f"{block}mlp.fc1", 4 * D)
    return names | {"final_layer.scale_shift_table": (2, D)} | linear("final_layer.linear", 32)


def _sd3() -> dict[str, tuple[int, ...]]:
    names = {"pos_embed": (1, 144, D), "x_embedder.proj.weight": (D, 16, 2, 2)} | linear("context_embedder", D, 12)
    for i in range(3):
        for part in ("x_block", "context_block"):
            block, last_text = f"joint_blocks.{i}.{part}.", i == 2 and part == "context_block"
            names |= linear(f"{block}attn.qkv", 3 * D) | linear(
                f"{block}adaLN_modulation.1", (2 if last_text else 6) * D
            )
            names |= {} if last_text else linear(f"{block}attn.proj", D) | linear(f"{block}mlp.fc1", 4 * D)
    return names | linear("final_layer.linear", 64)


def _flux() -> dict[str, tuple[int, ...]]:
    names = (
        linear("img_in", D, 64)
        | linear("txt_in", D, 12)
        | linear("time_in.in_layer", D, 256)
        | linear("vector_in.in_layer", D, 10)
    )
    for i in range(3):
        block = f"double_blocks.{i}."
        for part in ("img", "txt"):
            names |= (
                linear(f"{block}{part}_mod.lin", 6 * D)
                | linear(f"{block}{part}_attn.qkv", 3 * D)
                | linear(f"{block}{part}_attn.proj", D)
            )
            names |= linear(f"{block}{part}_mlp.0", 4 * D) | {f"{block}{part}_attn.norm.query_norm.scale": (4,)}
        block = f"single_blocks.{i}."
        names |= (
            linear(f"{block}modulation.lin", 3 * D)
            | linear(f"{block}linear1", 7 * D)
            | linear(f"{block}linear2", D, 5 * D)
        )
    return names | linear("final_layer.linear", 64)


ORIGINAL = {"DiT or SiT, original": _dit, "PixArt, original": _pixart, "SD3, original": _sd3, "Flux, original": _flux}


def original(layout: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in ORIGINAL[layout]().items()}


DIFFUSERS = {  # class, its arguments, and how each rule judges it as a model: see test_diffusers.py
    "DiT, diffusers": ("DiTTransformer2DModel", dict(num_layers=3, sample_size=8, num_embeds_ada_norm=10)),
    "PixArt, diffusers": (
        "PixArtTransformer2DModel",
        dict(num_layers=3, sample_size=8, cross_attention_dim=16, caption_channels=12),
    ),
    "SD3, diffusers": (
        "SD3Transformer2DModel",
        dict(
            num_layers=3,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            joint_attention_dim=12,
            caption_projection_dim=16,
            pooled_projection_dim=10,
            pos_embed_max_size=6,
        ),
    ),
    "Flux, diffusers": (
        "FluxTransformer2DModel",
        dict(
            num_layers=3,
            num_single_layers=3,
            in_channels=16,
            joint_attention_dim=12,
            pooled_projection_dim=10,
            axes_dims_rope=[2, 2, 4],
        ),
    ),
}
HEADS = dict(num_attention_heads=2, attention_head_dim=8)


def diffusers_weights(layout: str) -> dict[str, Tensor]:
    import diffusers

    from dittool.encoders.torchvision_remedy import ensure_torchvision

    ensure_torchvision()
    name, kwargs = DIFFUSERS[layout]
    torch.manual_seed(0)
    return getattr(diffusers, name)(**HEADS, **kwargs).state_dict()
