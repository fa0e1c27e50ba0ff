"""Real encoder classes, tiny, saved and loaded offline: the code that loads the published weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dittool.encoders.image import load_image_encoder
from dittool.encoders.text import load_text_encoder
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.encoders.vae import load_codec
from dittool.errors import WeightsMissingError

ensure_torchvision()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A DINOv3, a DINOv2, a T5 with its byte tokenizer, and a VAE in the Flux layout."""
    from diffusers import AutoencoderKL
    from transformers import ByT5Tokenizer, Dinov2Config, Dinov2Model, DINOv3ViTConfig, DINOv3ViTModel, T5Config, T5EncoderModel

    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    DINOv3ViTModel(DINOv3ViTConfig(patch_size=16, num_register_tokens=4, intermediate_size=64, **small)).save_pretrained(root / "dinov3")
    Dinov2Model(Dinov2Config(patch_size=14, image_size=56, mlp_ratio=2, **small)).save_pretrained(root / "dinov2")
    T5EncoderModel(T5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).save_pretrained(root / "t5")
    ByT5Tokenizer().save_pretrained(root / "t5")
    AutoencoderKL(
        block_out_channels=(8, 16, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16, norm_num_groups=4, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    ).save_pretrained(root / "flux" / "vae")  # fmt: skip
    return root


@pytest.mark.parametrize(("name", "patch", "registers"), [("dinov3", 16, 4), ("dinov2", 14, 0)])
def test_patch_size_and_registers_come_from_the_encoder(folders, name, patch, registers):
    encoder = load_image_encoder(str(folders / name), "fp32")
    assert (encoder.patch_size, encoder.registers, encoder.width) == (patch, registers, 32)
    assert encoder.card["weights"] and encoder.card["revision"] == "local"


@pytest.mark.parametrize(("name", "patch"), [("dinov3", 16), ("dinov2", 14)])
def test_the_k_th_patch_is_where_it_should_be(folders, name, patch):
    encoder = load_image_encoder(str(folders / name), "fp32")
    rows, columns = 4, 6
    image = np.full((1, rows * patch, columns * patch, 3), 128, np.uint8)
    plain = encoder.encode(image).patches[0]
    assert plain.shape == (rows * columns, 32)
    for row, column in ((0, 0), (1, 5), (3, 2)):
        changed = image.copy()
        changed[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = (250, 10, 10)
        moved = (encoder.encode(changed).patches[0] - plain).norm(dim=1)
        assert int(moved.argmax()) == row * columns + column


def test_captions_have_their_true_length_and_cuts_are_told(folders):
    encoder = load_text_encoder(str(folders / "t5"), "fp32", max_tokens=12)
    short, long = encoder.encode(["dog", "a much longer caption"])
    assert short.hidden.shape == (4, 32) and not short.cut  # three bytes and the end token
    assert long.hidden.shape == (12, 32) and long.cut


def test_padding_beside_a_longer_caption_changes_nothing(folders):
    encoder = load_text_encoder(str(folders / "t5"), "fp32", max_tokens=512)
    alone, beside = encoder.encode(["dog"])[0].hidden, encoder.encode(["dog", "a much longer caption"])[0].hidden
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


def test_the_vae_gives_the_unscaled_mode_and_its_card_the_scale(folders):
    codec = load_codec(str(folders / "flux"))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    latents = codec.encode(pixels)
    assert latents.shape == (2, 16, 4, 6) and torch.equal(latents, codec.encode(pixels))
    assert (codec.card["scale"], codec.card["shift"], codec.stride) == (0.3611, 0.1159, 8)
    assert codec.decode(latents).shape == pixels.shape


@pytest.mark.parametrize(
    ("load", "key"),
    [
        (lambda name: load_image_encoder(name, "fp32"), "image"),
        (lambda name: load_text_encoder(name, "fp32", 8), "text"),
        (load_codec, "vae"),
    ],
)
@pytest.mark.parametrize("name", ["nobody/has-this", "./no/such/folder"])
def test_missing_weights_are_named_with_a_substitute(load, key, name):
    """Row 61."""
    with pytest.raises(WeightsMissingError, match=name) as missing:
        load(name)
    assert f"encoders.{key}" in missing.value.message and missing.value.exit_code == 7


def test_the_builtin_codec_inverts_what_it_keeps():
    codec = load_codec("builtin:dct")
    y, x = np.mgrid[0:32, 0:48]
    smooth = np.stack([y * 4 + 60, x * 3 + 40, 200 - y * 2 - x], axis=-1).astype(np.uint8)[None]
    back = codec.decode(codec.encode(smooth))
    assert np.abs(back.astype(int) - smooth).max() <= 3
    assert torch.allclose(codec.encode(back), codec.encode(codec.decode(codec.encode(back))), atol=0.01)


def test_builtin_words_are_the_same_every_time_and_differ_from_each_other():
    encoder = load_text_encoder("builtin:words", "fp32", 512)
    red, again, blue = (features.hidden for features in encoder.encode(["red circle", "Red circle,", "blue circle"]))
    assert torch.equal(red, again) and torch.equal(red[1], blue[1]) and not torch.equal(red[0], blue[0])
