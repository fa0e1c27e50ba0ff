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


def _named(blocks: str, block: dict[str, tuple[int, ...]], outside: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Two blocks for each of these lists, and what stands outside."""
    shapes = {
        f"{stem}.{index}.{name}": shape
        for stem in blocks.split()
        for index in range(2)
        for name, shape in block.items()
    }
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in {**shapes, **outside}.items()}


def _adaln(vectors: int = 6, number: int = 1) -> dict[str, tuple[int, ...]]:
    return linear("attn.qkv", 3 * D) | linear("attn.proj", D) | linear(f"adaLN_modulation.{number}", vectors * D)


_TIME = linear("t_embedder.mlp.0", D, 256) | linear("x_embedder.proj", D)
_SANA = {"scale_shift_table": (6, D), "mlp.inverted_conv.conv.weight": (4 * D, D, 1, 1)} | linear("attn.qkv", 3 * D)
OTHERS = {  # layouts, as they are named; of diffusers the class and its arguments
    "REPA, original names": ("blocks", _adaln(), _TIME | {"pos_embed": (1, 16, D)} | linear("projectors.0.0", D)),
    "LightningDiT, original names": ("blocks", _adaln() | linear("mlp.w12", 4 * D) | linear("mlp.w3", D, 2 * D), _TIME),
    "DDT, original names": ("blocks", _adaln(number=0), _TIME | linear("s_embedder.proj", D)),
    "Sana, original names": ("blocks", _SANA, _TIME | linear("t_block.1", 6 * D)),
    "MDT, original names": (
        "en_inblocks en_outblocks de_blocks sideblocks",
        _adaln(),
        _TIME | {"pos_embed": (1, 16, D)},
    ),
    "U-ViT, original names": (
        "in_blocks out_blocks",
        linear("attn.qkv", 3 * D, bias=False) | linear("skip_linear", D, 2 * D) | linear("mlp.fc1", 4 * D),
        {"pos_embed": (1, 18, D)} | linear("patch_embed.proj", D),
    ),
    "Hunyuan-DiT, original names": (
        "blocks",
        linear("default_modulation.1", D) | linear("attn1.Wqkv", 3 * D) | linear("attn2.q_proj", D),
        _TIME,
    ),
    "minRF, original names": (
        "layers",
        linear("attention.wq", D, bias=False) | linear("adaLN_modulation.1", 6 * D) | linear("feed_forward.w1", 2 * D),
        _TIME | linear("init_conv_seq.0", D),
    ),
    "Lumina, original names": (
        "layers noise_refiner",
        linear("attention.qkv", 3 * D, bias=False) | linear("adaLN_modulation.1", 4 * D),
        _TIME | linear("cap_embedder.1", D),
    ),
    "HunyuanVideo, original names": (
        "double_blocks",
        linear("img_mod.linear", 6 * D) | linear("txt_mod.linear", 6 * D) | linear("img_attn_qkv", 3 * D),
        linear("img_in.proj", D),
    ),
    "F5-TTS, original names": (
        "transformer_blocks",
        linear("attn_norm.linear", 6 * D) | linear("attn.to_q", D) | linear("attn.to_k", D) | linear("ff.ff.2", D),
        linear("time_embed.time_mlp.0", D, 256) | {"rotary_embed.inv_freq": (2,)},
    ),
    "Sana, diffusers": (
        "SanaTransformer2DModel",
        dict(
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=12,
            sample_size=8,
            in_channels=4,
            out_channels=4,
        ),
    ),
    "PRX, diffusers": (
        "PRXTransformer2DModel",
        dict(in_channels=4, patch_size=2, context_in_dim=12, hidden_size=16, num_heads=2, depth=2, axes_dim=[4, 4]),
    ),
    "Lumina, diffusers": (
        "Lumina2Transformer2DModel",
        dict(
            sample_size=8,
            in_channels=4,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=4,
            axes_dim_rope=(4, 4, 4),
            cap_feat_dim=12,
        ),
    ),
    "Hunyuan-DiT, diffusers": (
        "HunyuanDiT2DModel",
        dict(
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=16,
            num_layers=4,
            cross_attention_dim=12,
            cross_attention_dim_t5=12,
            pooled_projection_dim=8,
            text_len=4,
            text_len_t5=4,
        ),
    ),
    "HunyuanVideo, diffusers": (
        "HunyuanVideoTransformer3DModel",
        dict(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            text_embed_dim=12,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 2, 4),
        ),
    ),
}
_OWN_HEADS = ("PRXTransformer2DModel", "Lumina2Transformer2DModel")


def other_weights(layout: str) -> dict[str, Tensor]:
    """Random weights of another published layout."""
    made = OTHERS[layout]
    if len(made) == 3:
        return _named(*made)
    import diffusers

    from dittool.encoders.torchvision_remedy import ensure_torchvision

    ensure_torchvision()
    name, kwargs = made
    torch.manual_seed(0)
    state = getattr(diffusers, name)(**({} if name in _OWN_HEADS else HEADS), **kwargs).state_dict()
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}
