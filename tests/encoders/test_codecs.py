"""Autoencoders on real classes: the mode, unscaled; scale, shift, channels and stride of the card from the config;
nothing but finite numbers.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dittool.encoders import codec as codec_module
from dittool.encoders.vae import load_codec
from dittool.errors import BadDataError, UsageError

#          folder, channels, stride, scale, shift
CODECS = [
    ("flux", 16, 8, 0.3611, 0.1159),
    ("kl4", 4, 8, 0.18215, 0.0),
    ("tiny", 16, 8, 1.0, 0.0),
    ("dc", 8, 32, 0.41407, 0.0),
]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("name", "channels", "stride", "scale", "shift"), CODECS)
def test_channels_stride_scale_and_shift_come_from_the_config(folders, name, channels, stride, scale, shift):
    codec = load_codec(str(folders / name))
    card = codec.card
    assert (card.channels, card.stride, card.scale, card.shift) == (channels, stride, scale, shift)
    assert (card.dtype, card.revision, codec.channels, codec.stride) == ("fp32", "local", channels, stride)
    latents = codec.encode(noise(2, 64, 96, 3))
    assert latents.shape == (2, channels, 64 // stride, 96 // stride) and latents.dtype == torch.float32
    assert codec.decode(latents).shape == (2, 64, 96, 3)


@pytest.mark.parametrize("name", ["flux", "kl4"])
def test_what_is_stored_is_the_mode_unscaled_and_the_same_every_time(folders, name):
    codec = load_codec(str(folders / name))
    pixels = noise(2, 32, 48, 3)
    with torch.no_grad():
        posterior = codec._model.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
    torch.testing.assert_close(codec.encode(pixels), posterior.mean)
    assert torch.equal(codec.encode(pixels), codec.encode(pixels))


def test_decoding_takes_unscaled_latents(folders):
    codec = load_codec(str(folders / "flux"))
    latents = codec.encode(noise(1, 32, 48, 3))
    with torch.no_grad():
        images = codec._model.decode(latents).sample
    expected = ((images + 1) * 127.5).round().clamp(0, 255)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(codec.decode(latents)[0], expected)


@pytest.mark.parametrize("name", ["flux", "tiny", "dc"])
def test_a_large_batch_goes_in_parts_bounded_by_pixels_with_the_same_result(folders, monkeypatch, name):
    codec = load_codec(str(folders / name))
    pixels = noise(5, 64, 64, 3)
    latents = codec.encode(pixels)
    images = codec.decode(latents)
    monkeypatch.setattr(codec_module, "_PIXELS_AT_ONCE", 2 * 64 * 64)
    sizes = []
    for half in (codec._model.encoder, codec._model.decoder):
        half.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    torch.testing.assert_close(codec.encode(pixels), latents)
    assert np.abs(codec.decode(latents).astype(int) - images).max() <= 1
    assert sizes == [2, 2, 1] * 2


def test_an_image_larger_than_a_part_still_goes(folders, monkeypatch):
    monkeypatch.setattr(codec_module, "_PIXELS_AT_ONCE", 16)
    assert load_codec(str(folders / "tiny")).encode(noise(2, 32, 32, 3)).shape == (2, 16, 4, 4)


@pytest.mark.parametrize(("name", "size"), [("flux", (36, 32)), ("dc", (32, 48))])
def test_a_side_that_the_stride_does_not_divide_is_refused(folders, name, size):
    codec = load_codec(str(folders / name))
    with pytest.raises(BadDataError, match=f"{size[0]}x{size[1]} has no whole latent at stride {codec.stride}"):
        codec.encode(noise(1, size[1], size[0], 3))


def test_latents_that_are_not_finite_are_refused_with_what_to_do(folders):
    """Row 47: half-precision exports of some VAEs give NaN."""
    codec = load_codec(str(folders / "flux"))
    with torch.no_grad():
        codec._model.encoder.conv_in.weight[0] = torch.nan
    with pytest.raises(BadDataError, match="latents of 2 of 2 images are not finite") as refused:
        codec.encode(noise(2, 32, 32, 3))
    assert "encoders.vae" in refused.value.hint


def test_pixels_that_are_not_finite_are_not_shown_as_black(folders):
    codec = load_codec(str(folders / "flux"))
    latents = codec.encode(noise(1, 32, 32, 3))
    with torch.no_grad():
        codec._model.decoder.conv_out.bias[0] = torch.inf
    with pytest.raises(BadDataError, match="pixels of 1 of 1"):
        codec.decode(latents)
    with pytest.raises(BadDataError, match="latents to decode of 1 of 1"):
        codec.decode(latents * torch.nan)


def test_a_model_that_is_no_autoencoder_for_images_is_refused_by_its_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLCogVideoX"}))
    with pytest.raises(
        UsageError, match="AutoencoderKLCogVideoX, not one of AutoencoderKL, AutoencoderTiny, AutoencoderKLFlux2"
    ):
        load_codec(str(tmp_path))


def test_a_config_that_names_no_class_is_refused(altered):
    with pytest.raises(UsageError, match="no model of diffusers"):
        load_codec(str(altered("flux/vae", {"_class_name": None})))


def test_two_sets_of_weights_have_two_hashes(folders, altered):
    from safetensors.torch import load_file, save_file

    folder = altered("tiny")
    path = folder / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    next(iter(state.values())).view(-1)[0] += 1e-6
    save_file(state, path)
    assert load_codec(str(folder)).card.weights != load_codec(str(folders / "tiny")).card.weights


def test_the_builtin_codec_inverts_what_it_keeps():
    codec = load_codec("builtin:dct")
    y, x = np.mgrid[0:32, 0:48]
    smooth = np.stack([y * 4 + 60, x * 3 + 40, 200 - y * 2 - x], axis=-1).astype(np.uint8)[None]
    back = codec.decode(codec.encode(smooth))
    assert np.abs(back.astype(int) - smooth).max() <= 3
    assert torch.allclose(codec.encode(back), codec.encode(codec.decode(codec.encode(back))), atol=0.01)
