"""An autoencoder in one `.safetensors` file, such as Flux's `ae.safetensors`: checked first, loaded without a network.

The published files name their tensors as the original code does (`encoder.down.0.block.0.conv1.weight`), diffusers as
it does (`encoder.down_blocks.0.resnets.0.conv1.weight`); both are read. A file says nothing about scale, shift and norm
groups, and the autoencoders of Flux and SD3 have the same shapes: so a config comes from beside the file, or the file
bears the name under which Flux's is published.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dittool.ckpt.load import require_fit
from dittool.ckpt.weights import load_weights
from dittool.encoders.codec import AUTOENCODERS, autoencoder_class
from dittool.errors import BadDataError, WeightsMissingError
from dittool.storage import read_json

FLUX_FILE_NAME = "ae.safetensors"
FLUX_CONFIG: dict[str, object] = {  # vae/config.json of FLUX.1-schnell and -dev
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "force_upcast": True,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

# Original name → diffusers' name, between the leading `encoder.` or `decoder.` and the trailing `.weight` or `.bias`.
# Up blocks: below.
_RENAMED = (
    (r"down\.(\d+)\.block\.(\d+)\.", r"down_blocks.\1.resnets.\2."),
    (r"down\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"mid\.block_1\.", "mid_block.resnets.0."),
    (r"mid\.block_2\.", "mid_block.resnets.1."),
    (r"mid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"mid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1."),
    (r"mid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."),
    (r"nin_shortcut\.", "conv_shortcut."),
    (r"(?<=coder\.)norm_out\.", "conv_norm_out."),
)
_ATTENTION = re.compile(r"mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight$")


def load_single_file(file: Path) -> nn.Module:
    """diffusers' autoencoder with the file's weights, in fp32 on the CPU.

    Raises `BadDataError` (damaged, or of another architecture than its config), `UnsafeFileError`,
    `WeightsMissingError` (no config for it).
    """
    if file.suffix.lower() != ".safetensors":
        raise BadDataError(
            f"encoders.vae: {file}: not a .safetensors file", "name a .safetensors file, or a folder with config.json"
        )
    state = load_weights(file)  # after every check that the bytes allow
    config = _config_for(file)
    model = autoencoder_class(config, str(file)).from_config(config)
    state = {name: tensor.float() for name, tensor in diffusers_names(state).items()}
    require_fit(state, model.state_dict(), f"encoders.vae: {file}")
    model.load_state_dict(state)
    return model


def diffusers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an AutoencoderKL in the original layout under diffusers' names; those in diffusers' layout as
    they are.
    """
    if not any(name.startswith("encoder.down.") for name in state):
        return dict(state)
    ups = 1 + max((int(found[1]) for name in state if (found := re.match(r"decoder\.up\.(\d+)\.", name))), default=0)
    renamed = {}
    for original, tensor in state.items():
        # They count the decoder's levels from the image, diffusers from the latent.
        name = re.sub(r"(?<=decoder\.up\.)\d+", lambda level: str(ups - 1 - int(level[0])), original)
        name = re.sub(r"up\.(\d+)\.block\.(\d+)\.", r"up_blocks.\1.resnets.\2.", name)
        name = re.sub(r"up\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0.", name)
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if _ATTENTION.search(name) and tensor.dim() == 4:
            tensor = tensor[:, :, 0, 0]  # a 1×1 convolution there, a linear layer here
        renamed[name] = tensor
    return renamed


def _config_for(file: Path) -> dict[str, Any]:
    for beside in (file.with_suffix(".json"), file.parent / "config.json"):
        if beside.is_file():
            config = read_json(beside)
            if isinstance(config, dict) and config.get("_class_name") in AUTOENCODERS:
                return config
    if file.name == FLUX_FILE_NAME:
        return FLUX_CONFIG
    raise WeightsMissingError(
        f"encoders.vae: {file}: nothing says what scale, shift and layers this autoencoder has",
        f"put its config.json (the one of its vae folder) beside it, or call it {FLUX_FILE_NAME} if it is Flux's",
    )
