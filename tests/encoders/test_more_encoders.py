"""Encoders beside DINO, T5 and the Flux VAE: what their tokens stand for, proven by content, and what cards say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dittool.data.identity import CARD_OF_STAGE
from dittool.encoders.cards import card_from_json, card_to_json, wrong_keys
from dittool.encoders.codec import AUTOENCODERS
from dittool.encoders.image import load_image_encoder
from dittool.encoders.image_kinds import IMAGE_KINDS
from dittool.encoders.text import load_text_encoder
from dittool.encoders.text_kinds import TEXT_KINDS
from dittool.encoders.vae import load_codec
from dittool.errors import BadDataError, UsageError
from tests.encoders.more_models import flux2, image_models, text_models
from tests.encoders.test_image_encoder import most_moved, one_block_changed

IMAGES = [("convnext", 32), ("siglip", 16), ("siglip2", 16)]
DECODERS = ["gemma", "qwen"]
CAPTIONS = ["a red dog", "a photo of a bird", "dog"]


@pytest.fixture(scope="module")
def more(folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("more")
    image_models(root)
    text_models(root, folders / "t5-pieces")
    flux2(root)
    return root


# --- images ---


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "patch"), IMAGES)
def test_patch_k_is_at_row_k_over_columns_and_column_k_modulo_columns(more, name, patch, dtype):
    encoder, (rows, columns) = load_image_encoder(str(more / name), dtype), (3, 5)
    assert (encoder.patch_size, encoder.registers, encoder.width, encoder.card.patch_size) == (patch, 0, 32, patch)
    features = encoder.encode(one_block_changed(rows, columns, patch))
    assert features.patches.shape == (1 + rows * columns, rows * columns, 32)
    assert most_moved(features.patches) == list(range(rows * columns))


@pytest.mark.parametrize(("name", "patch"), IMAGES)
def test_the_vector_of_the_whole_image_is_the_encoders_own(more, name, patch):
    encoder = load_image_encoder(str(more / name), "fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    features = encoder.encode(pixels)
    x = encoder.preprocess(torch.from_numpy(pixels))
    if name == "siglip2":
        cells = x.unfold(2, 16, 16).unfold(3, 16, 16)  # (B, 3, rows, columns, 16, 16)
        patches = cells.permute(0, 2, 3, 4, 5, 1).reshape(2, 24, -1)
        output = encoder._model(patches, torch.ones(2, 24, dtype=torch.int32), torch.tensor([[4, 6], [4, 6]]))
    elif name == "siglip":
        output = encoder._model(pixel_values=x, interpolate_pos_encoding=True)
    else:
        output = encoder._model(pixel_values=x)
    torch.testing.assert_close(features.cls, output.pooler_output)
    torch.testing.assert_close(features.patches[:, -1], output.last_hidden_state[:, -1])


def test_siglip_sees_pixels_from_minus_one_to_one(more):
    encoder = load_image_encoder(str(more / "siglip"), "fp32")
    x = encoder.preprocess(torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 16, 16, 3))
    assert x[0].unique().tolist() == [-1.0] and x[1].unique().tolist() == [1.0]


def test_at_its_own_size_siglip_keeps_its_positions(more):
    """Only the vision half of a folder with both is loaded, all of it."""
    encoder = load_image_encoder(str(more / "siglip"), "fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    x = encoder.preprocess(torch.from_numpy(pixels))
    torch.testing.assert_close(encoder.encode(pixels).patches, encoder._model(pixel_values=x).last_hidden_state)


def test_a_siglip_without_its_head_is_refused(more, tmp_path):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    config.vision_use_head = False
    SiglipVisionModel(config).save_pretrained(tmp_path)
    with pytest.raises(BadDataError, match="without its pooling head"):
        load_image_encoder(str(tmp_path), "fp32").encode(np.zeros((1, 32, 32, 3), np.uint8))


# --- texts ---


@pytest.mark.parametrize("layer", [None, 0, 1, -1])
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoders_hidden_states_at_a_layer_are_the_features(more, name, layer):
    encoder = load_text_encoder(str(more / name), "fp32", 64, layer=layer)
    for caption, features in zip(CAPTIONS, encoder.encode(CAPTIONS), strict=True):
        ids = torch.tensor([encoder._tokenizer(caption).input_ids])
        output = encoder._model(input_ids=ids, output_hidden_states=True)
        alone = output.last_hidden_state if layer is None else output.hidden_states[layer]
        torch.testing.assert_close(features.hidden, alone[0], rtol=1e-4, atol=1e-5)
    assert encoder.card.layer == layer and ("layer" in card_to_json(encoder.card)) == (layer is not None)


def test_layers_differ_and_one_that_is_not_there_is_named(more):
    path = str(more / "qwen")
    first, second = (
        load_text_encoder(path, "fp32", 64, layer=layer).encode(["a red dog"])[0].hidden for layer in (1, 2)
    )
    assert not torch.allclose(first, second)
    for layer in (3, -4):
        with pytest.raises(UsageError, match="has 2 layers"):
            load_text_encoder(path, "fp32", 64, layer=layer)
    with pytest.raises(UsageError, match="has no layers"):
        load_text_encoder("builtin:words", "fp32", 64, layer=1)


def test_a_cut_caption_without_an_end_mark_keeps_its_beginning(more, folders):
    encoder = load_text_encoder(str(more / "gemma"), "fp32", 3)
    encoder._tokenizer.add_eos_token = False
    ids = [10, 11, 12, 13, 14]
    encoder._tokenizer = _Fixed(encoder._tokenizer, ids)
    assert encoder._token_ids("x") == ([10, 11, 12], True)
    encoder._tokenizer = _Fixed(encoder._tokenizer.real, [10, 11, 12, 13, 1])  # 1: the end mark
    assert encoder._token_ids("x") == ([10, 11, 1], True)


class _Fixed:
    def __init__(self, real, ids):
        self.real, self._ids, self.all_special_ids = real, ids, real.all_special_ids

    def __call__(self, text, **_):
        return type("Tokens", (), {"input_ids": self._ids})


def test_clip_takes_no_more_tokens_than_it_has_positions(more):
    encoder = load_text_encoder(str(more / "clip"), "fp32", 512)
    assert encoder.card.max_tokens == 12
    (features,) = encoder.encode(["a red dog of a bird of a dog of a bird of a photo"])
    assert features.hidden.shape == (12, 32) and features.cut
    second_last = load_text_encoder(str(more / "clip"), "fp32", 512, layer=-2)
    ids = torch.tensor([encoder._tokenizer("dog").input_ids])
    wanted = second_last._model(input_ids=ids, output_hidden_states=True).hidden_states[-2][0]
    torch.testing.assert_close(second_last.encode(["dog"])[0].hidden, wanted, rtol=1e-4, atol=1e-5)


def test_cards_of_before_have_no_layer_and_those_with_one_are_read_back(more):
    card = load_text_encoder(str(more / "qwen"), "fp32", 64, layer=-2).card
    value = card_to_json(card)
    assert wrong_keys("text", value) == [] and card_from_json("text", value) == card
    older = {key: item for key, item in value.items() if key != "layer"}
    assert wrong_keys("text", older) == [] and card_from_json("text", older).layer is None
    assert wrong_keys("text", {**value, "layer": "x"}) == ["layer"]
    assert CARD_OF_STAGE["t5"] is type(card)


# --- latents ---


def test_flux2_packs_four_cells_into_one_and_norms_them_by_its_own_statistics(more):
    codec = load_codec(str(more / "flux2"))
    assert (codec.channels, codec.stride, codec.card.scale, codec.card.shift) == (16, 16, 1.0, 0.0)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    latents = codec.encode(pixels)
    assert latents.shape == (2, 16, 4, 6)
    from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline

    model = codec._model
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        mode = model.encode(x).latent_dist.mode()
        packed = Flux2Pipeline._patchify_latents(mode)  # the published pipeline's own packing
        mean = model.bn.running_mean.view(1, -1, 1, 1)
        deviation = (model.bn.running_var.view(1, -1, 1, 1) + model.config.batch_norm_eps).sqrt()
        torch.testing.assert_close(latents, (packed - mean) / deviation)
        plain = model.decode(mode).sample
    wanted = ((plain + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(codec.decode(latents).astype(int) - wanted.astype(int)).max() <= 1


def test_every_kind_names_a_class_that_the_libraries_have():
    import diffusers
    import transformers

    for kind in (*IMAGE_KINDS.values(), *TEXT_KINDS.values()):
        assert hasattr(transformers, kind.model_class), kind
    assert all(hasattr(diffusers, name) for name in AUTOENCODERS)
