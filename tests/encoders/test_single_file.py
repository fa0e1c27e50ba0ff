"""One `.safetensors` file with an autoencoder in the layout of the original code, as Flux's `ae.safetensors` is
published.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dittool.ckpt.load import require_fit
from dittool.encoders.single_file import FLUX_CONFIG, diffusers_names
from dittool.encoders.vae import load_codec
from dittool.errors import BadDataError, UnsafeFileError, WeightsMissingError

LEVELS = 4


def original_name(name: str) -> str:
    """diffusers' name → the original code's. Written from the other side than the code under test."""
    half, rest = name.split(".", 1)
    if half in ("quant_conv", "post_quant_conv"):
        return name
    words = rest.split(".")
    if words[0] in ("down_blocks", "up_blocks"):
        level = int(words[1]) if words[0] == "down_blocks" else LEVELS - 1 - int(words[1])
        side = words[0].removesuffix("_blocks")
        if words[2] == "resnets":
            tail = ".".join(words[4:]).replace("conv_shortcut", "nin_shortcut")
            return f"{half}.{side}.{level}.block.{words[3]}.{tail}"
        return f"{half}.{side}.{level}.{side}sample.conv.{words[-1]}"
    if words[:2] == ["mid_block", "resnets"]:
        return f"{half}.mid.block_{int(words[2]) + 1}." + ".".join(words[3:])
    if words[:2] == ["mid_block", "attentions"]:
        part = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}[words[3]]
        return f"{half}.mid.attn_1.{part}.{words[-1]}"
    return f"{half}." + rest.replace("conv_norm_out", "norm_out")


def original_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    attention = re.compile(r"attentions\.0\.to_.*weight$")
    return {
        original_name(name): (tensor[:, :, None, None] if attention.search(name) else tensor).contiguous()
        for name, tensor in state.items()
    }


@pytest.fixture
def single(folders, tmp_path):
    """`single("flux/vae", "ae.safetensors")`: that autoencoder in one file of the original layout, its config
    beside it.
    """

    def write(folder: str, name: str, config: bool = True, original: bool = True):
        state = load_file(folders / folder / "diffusion_pytorch_model.safetensors")
        save_file(original_layout(state) if original else state, tmp_path / name)
        if config:
            (tmp_path / "config.json").write_text((folders / folder / "config.json").read_text())
        return tmp_path / name

    return write


@pytest.mark.parametrize("folder", ["flux/vae", "kl4"])
def test_a_file_in_the_original_layout_is_the_same_codec_as_the_folder(folders, single, folder):
    from_folder, from_file = load_codec(str(folders / folder)), load_codec(str(single(folder, "ae.safetensors")))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    latents = from_folder.encode(pixels)
    assert torch.equal(from_file.encode(pixels), latents)
    assert np.array_equal(from_file.decode(latents), from_folder.decode(latents))
    assert replace(from_file.card, id="") == replace(from_folder.card, id="")  # the weights' hash with it


def test_a_file_in_diffusers_layout_is_read_too(folders, single):
    codec = load_codec(str(single("flux/vae", "vae.safetensors", original=False)))
    assert codec.card.weights == load_codec(str(folders / "flux")).card.weights


@pytest.mark.parametrize("folder", ["tiny", "dc"])
def test_other_autoencoders_are_read_from_one_file_with_their_config(folders, single, folder):
    codec = load_codec(str(single(folder, "model.safetensors", original=False)))
    assert codec.card.weights == load_codec(str(folders / folder)).card.weights


def test_the_names_agree_with_diffusers_own_conversion(folders):
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    original = original_layout(load_file(folders / "kl4" / "diffusion_pytorch_model.safetensors"))
    theirs = convert_ldm_vae_checkpoint(dict(original), json.loads((folders / "kl4" / "config.json").read_text()))
    ours = diffusers_names(original)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_config_for_ae_safetensors_is_the_published_autoencoder():
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        state = AutoencoderKL.from_config(FLUX_CONFIG).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 83_819_683  # 335 MB in fp32, the size of the file
    original = original_layout(state)
    assert len(original) == 244 and original["decoder.up.3.upsample.conv.weight"].shape == (512, 512, 3, 3)
    assert original["decoder.up.0.block.0.nin_shortcut.weight"].shape == (128, 256, 1, 1)
    require_fit(diffusers_names(original), state, "ae.safetensors")


def test_under_the_name_of_flux_other_weights_are_refused(single):
    with pytest.raises(BadDataError, match="another architecture"):
        load_codec(str(single("flux/vae", "ae.safetensors", config=False)))


def test_a_file_of_another_name_needs_its_config(single):
    """SD3's autoencoder has the shapes of Flux's and another scale."""
    with pytest.raises(WeightsMissingError, match="scale, shift") as missing:
        load_codec(str(single("flux/vae", "sd3_vae.safetensors", config=False)))
    assert "config.json" in missing.value.hint


def test_a_config_of_another_model_beside_the_file_is_not_taken_for_its_own(single):
    file = single("flux/vae", "vae.safetensors")
    (file.parent / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(WeightsMissingError):
        load_codec(str(file))


def test_a_tensor_too_few_is_refused(single):
    file = single("flux/vae", "ae.safetensors")
    state = load_file(file)
    del state["encoder.mid.attn_1.q.bias"]
    save_file(state, file)
    with pytest.raises(BadDataError, match=r"encoder\.mid_block\.attentions\.0\.to_q\.bias: missing"):
        load_codec(str(file))


def test_half_precision_files_are_computed_in_fp32(single):
    file = single("flux/vae", "ae.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file)
    codec = load_codec(str(file))
    assert {parameter.dtype for parameter in codec._model.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", [0, 7, 1000, -1])
def test_a_file_cut_short_is_named(single, size):
    file = single("flux/vae", "ae.safetensors")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(BadDataError, match=r"ae\.safetensors"):
        load_codec(str(file))


def test_a_file_is_checked_before_it_is_loaded(single):
    file = single("flux/vae", "ae.safetensors")
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(UnsafeFileError):
        load_codec(str(file))


def test_a_pickle_is_refused(tmp_path):
    file = tmp_path / "vae.pt"
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(BadDataError, match=r"\.safetensors"):
        load_codec(str(file))
