"""Real encoder classes, tiny, as the published weights lie in their folders; and what makes copies of them that
differ in one thing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dittool.encoders.torchvision_remedy import ensure_torchvision

ensure_torchvision()

LETTERS = "abcdefghijklmnopqrstuvwxyz"
KL = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 4,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """dinov3, dinov2, dinov2-registers, t5 (byte tokens), t5-pieces (word pieces), flux/vae, kl4, tiny, dc. Read
    only.
    """
    from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
    from transformers import (
        ByT5Tokenizer,
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        DINOv3ViTConfig,
        DINOv3ViTModel,
        T5Config,
        T5EncoderModel,
        T5Tokenizer,
    )

    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    DINOv3ViTModel(
        DINOv3ViTConfig(patch_size=16, num_register_tokens=4, intermediate_size=64, **small)
    ).save_pretrained(root / "dinov3")
    patch14 = {"patch_size": 14, "image_size": 56, "mlp_ratio": 2, **small}
    Dinov2Model(Dinov2Config(**patch14)).save_pretrained(root / "dinov2")
    Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=4, **patch14)).save_pretrained(
        root / "dinov2-registers"
    )
    t5 = T5EncoderModel(T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))
    for name, tokenizer in (("t5", ByT5Tokenizer()), ("t5-pieces", T5Tokenizer(vocab=_pieces()))):
        t5.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    AutoencoderKL(**KL).save_pretrained(root / "flux" / "vae")
    kl4 = {
        **KL,
        "latent_channels": 4,
        "shift_factor": None,
        "scaling_factor": 0.18215,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    }
    AutoencoderKL(**kl4).save_pretrained(root / "kl4")
    AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        latent_channels=16,
    ).save_pretrained(root / "tiny")
    AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_out_channels=(8,) * 6,
        decoder_block_out_channels=(8,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        scaling_factor=0.41407,
    ).save_pretrained(root / "dc")
    return root


def _pieces() -> list[tuple[str, float]]:
    words = [(f"▁{word}", -1.0) for word in ("a", "photo", "of", "red", "bird", "dog")]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -5.0) for letter in LETTERS), *words]


@pytest.fixture
def altered(folders, tmp_path) -> Callable[..., Path]:
    """`altered("dinov2", config={"patch_size": 16})`: a copy of one of the folders with other values in its
    config.json.
    """

    def copy(name: str, config: dict[str, Any] | None = None) -> Path:
        target = tmp_path / name.replace("/", "-")
        shutil.copytree(folders / name, target)
        path = target / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **(config or {})}))
        return target

    return copy


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Callable[[str, Path, str], Path]:
    """`hub_cache("org/model", folder, "vae")`: puts a folder into a hub cache of its own, as if `hf download` had
    fetched it.
    """
    import huggingface_hub.constants

    cache, commit = tmp_path / "hub", "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def put(name: str, folder: Path, subfolder: str = "") -> Path:
        repository = cache / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / commit
        shutil.copytree(folder, snapshot / subfolder, dirs_exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        return snapshot / subfolder

    return put
