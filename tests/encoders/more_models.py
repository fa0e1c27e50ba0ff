"""Tiny saved models of further classes, as their published weights lie in folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def image_models(root: Path) -> None:
    """convnext, siglip (with its text half, as published), siglip2."""
    from transformers import (
        DINOv3ConvNextConfig,
        DINOv3ConvNextModel,
        Siglip2VisionConfig,
        Siglip2VisionModel,
        SiglipConfig,
        SiglipModel,
    )

    torch.manual_seed(0)
    stages = {"hidden_sizes": [8, 16, 32, 32], "depths": [1, 1, 1, 1]}
    DINOv3ConvNextModel(DINOv3ConvNextConfig(**stages)).save_pretrained(root / "convnext")
    text = {**SMALL, "vocab_size": 64, "max_position_embeddings": 8, "projection_size": 32}
    vision = {**SMALL, "image_size": 64, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(root / "siglip")
    Siglip2VisionModel(Siglip2VisionConfig(**SMALL, patch_size=16, num_patches=16)).save_pretrained(root / "siglip2")


def text_models(root: Path, pieces: Path) -> None:
    """gemma, qwen, clip: each with the tokenizer of a folder of word pieces; clip with the rule of its own."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        Gemma2Config,
        Gemma2Model,
        Qwen2Config,
        Qwen2Model,
    )

    torch.manual_seed(0)
    few = {**SMALL, "vocab_size": 384, "num_key_value_heads": 1}
    models = {
        "gemma": Gemma2Model(Gemma2Config(**few, head_dim=16)),
        "qwen": Qwen2Model(Qwen2Config(**few)),
        "clip": CLIPTextModel(CLIPTextConfig(**SMALL, vocab_size=384, max_position_embeddings=12, eos_token_id=1)),
    }
    for name, model in models.items():
        shutil.copytree(pieces, root / name)
        (root / name / "model.safetensors").unlink()
        model.save_pretrained(root / name)


def dc_ae(root: Path) -> None:
    """DC-AE's class: 8 channels at stride 32."""
    from diffusers import AutoencoderDC

    torch.manual_seed(0)
    six = {"encoder_block_out_channels": (8,) * 6, "decoder_block_out_channels": (8,) * 6}
    layers = {"encoder_layers_per_block": (1,) * 6, "decoder_layers_per_block": (1,) * 6}
    scales = {"encoder_qkv_multiscales": ((),) * 6, "decoder_qkv_multiscales": ((),) * 6}
    model = AutoencoderDC(latent_channels=8, attention_head_dim=8, scaling_factor=0.41407, **six, **layers, **scales)
    model.save_pretrained(root / "dc")


def flux2(root: Path) -> None:
    """FLUX.2's autoencoder, with statistics of its packed latents that are not those of a fresh one."""
    from diffusers import AutoencoderKLFlux2

    torch.manual_seed(0)
    model = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64
    )
    model.bn.running_mean.copy_(torch.linspace(-1, 1, 16))
    model.bn.running_var.copy_(torch.linspace(0.5, 2, 16))
    model.save_pretrained(root / "flux2")
