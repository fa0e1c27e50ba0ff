"""The transformers of diffusers for videos that take a single frame, each with a configuration of seconds."""

from __future__ import annotations

from typing import Any

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
_WAN: dict[str, Any] = {
    **_HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 24,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
}
_COGVIDEO = {
    **_HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 24,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 1,
    "max_text_seq_length": 7,
}
_HUNYUAN = {
    **_HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "text_embed_dim": 24,
    "rope_axes_dim": (4, 6, 6),
}

_KANDINSKY: dict[str, Any] = {
    "in_visual_dim": 4,
    "out_visual_dim": 4,
    "in_text_dim": 24,
    "in_text_dim2": 20,
    "time_dim": 32,
    "model_dim": 32,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (4, 6, 6),
}

FRAMES: dict[str, dict[str, Any]] = {
    "WanTransformer3DModel": _WAN | {"rope_max_seq_len": 32},
    "AnyFlowTransformer3DModel": _WAN | {"rope_max_seq_len": 32},
    "ChronoEditTransformer3DModel": _WAN | {"rope_max_seq_len": 32},
    "SkyReelsV2Transformer3DModel": _WAN | {"rope_max_seq_len": 32},
    "WanVACETransformer3DModel": _WAN | {"rope_max_seq_len": 32, "vace_layers": [0], "vace_in_channels": 4},
    "HeliosTransformer3DModel": _WAN
    | {
        "rope_dim": (4, 6, 6),
        "has_multi_term_memory_patch": False,
        "guidance_cross_attn": False,
        "zero_history_timestep": False,
    },
    "CogVideoXTransformer3DModel": _COGVIDEO,
    "ConsisIDTransformer3DModel": _COGVIDEO | {"cross_attn_dim_head": 8, "cross_attn_num_heads": 2},
    "EasyAnimateTransformer3DModel": {
        **_HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 2,
        "sample_width": 8,
        "sample_height": 8,
        "num_layers": 2,
        "mmdit_layers": 2,
        "time_embed_dim": 16,
        "text_embed_dim": 24,
    },
    "HunyuanVideoTransformer3DModel": _HUNYUAN
    | {"num_single_layers": 2, "num_refiner_layers": 1, "pooled_projection_dim": 20},
    "HunyuanVideo15Transformer3DModel": _HUNYUAN
    | {"num_refiner_layers": 1, "text_embed_2_dim": 20, "image_embed_dim": 12},
    "MotifVideoTransformer3DModel": _HUNYUAN | {"num_single_layers": 2},
    "JoyImageEditTransformer3DModel": {
        "in_channels": 4,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "text_dim": 24,
        "num_layers": 2,
        "rope_dim_list": [4, 6, 6],
    },
    "LTXVideoTransformer3DModel": {
        **_HEADS,
        "in_channels": 8,
        "out_channels": 8,
        "num_layers": 2,
        "cross_attention_dim": 32,
        "caption_channels": 24,
    },
    "MochiTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 2,
        "pooled_projection_dim": 16,
        "in_channels": 4,
        "text_embed_dim": 24,
        "time_embed_dim": 16,
    },
    "AllegroTransformer3DModel": {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "num_layers": 2,
        "cross_attention_dim": 48,
        "sample_width": 8,
        "sample_height": 8,
        "sample_frames": 1,
        "caption_channels": 20,
    },
    "SanaVideoTransformer3DModel": {
        **_HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 32,
        "caption_channels": 24,
        "sample_size": 8,
    },
    "CosmosTransformer3DModel": {
        **_HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "text_embed_dim": 24,
        "adaln_lora_dim": 8,
        "max_size": (4, 16, 16),
        "extra_pos_embed_type": None,
    },
    "LatteTransformer3DModel": {
        **_HEADS,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "norm_type": "ada_norm_single",
        "caption_channels": 24,
        "cross_attention_dim": 32,
        "video_length": 1,
        "num_embeds_ada_norm": 1000,
        "norm_elementwise_affine": False,
    },
    "Kandinsky5Transformer3DModel": _KANDINSKY,
    "Kandinsky6Transformer3DModel": _KANDINSKY | {"visual_cond": False, "in_audio_dim": 5, "out_audio_dim": 5},
}
