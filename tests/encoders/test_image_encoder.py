"""DINO on real classes: which pixels a patch token stands for, at which size the image is seen, and what is no DINO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dittool.console import Talk
from dittool.encoders import image as image_module
from dittool.encoders.image import DinoEncoder, load_image_encoder
from dittool.encoders.pretrained import in_fp32
from dittool.errors import BadDataError, UsageError, WeightsMissingError
from dittool.geometry import CANONICAL, encoder_input_size, patch_grid

DINOS = [("dinov3", 16, 4), ("dinov2", 14, 0), ("dinov2-registers", 14, 4)]

# bucket → input → grid (columns, rows), all width first
PATCH_14 = {
    (1024, 1024): ((1022, 1022), (73, 73), 5329),
    (1216, 832): ((1218, 826), (87, 59), 5133),
    (832, 1216): ((826, 1218), (59, 87), 5133),
    (1280, 768): ((1274, 770), (91, 55), 5005),
    (768, 1280): ((770, 1274), (55, 91), 5005),
    (1344, 704): ((1344, 700), (96, 50), 4800),
    (704, 1344): ((700, 1344), (50, 96), 4800),
}
PATCH_16 = {
    (1024, 1024): (64, 64),
    (1216, 832): (76, 52),
    (832, 1216): (52, 76),
    (1280, 768): (80, 48),
    (768, 1280): (48, 80),
    (1344, 704): (84, 44),
    (704, 1344): (44, 84),
}


def test_the_tables_below_are_about_the_canonical_buckets():
    assert {(bucket.width, bucket.height) for bucket in CANONICAL} == set(PATCH_14) == set(PATCH_16)


@pytest.mark.parametrize("bucket", PATCH_14, ids=str)
def test_with_patch_14_each_side_is_the_nearest_multiple_of_14(bucket):
    size, (columns, rows), count = PATCH_14[bucket]
    assert encoder_input_size(*bucket, 14) == size
    assert patch_grid(*bucket, 14) == (rows, columns) and rows * columns == count


@pytest.mark.parametrize("bucket", PATCH_16, ids=str)
def test_with_patch_16_the_input_is_the_bucket(bucket):
    columns, rows = PATCH_16[bucket]
    assert encoder_input_size(*bucket, 16) == bucket and patch_grid(*bucket, 16) == (rows, columns)


def test_the_table_in_the_docs_is_the_one_in_the_code():
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text()
    for bucket in CANONICAL:
        (columns_16, rows_16), (size, (columns, rows), count) = (
            PATCH_16[bucket.width, bucket.height],
            PATCH_14[bucket.width, bucket.height],
        )
        assert f"| {bucket.name} | {columns_16}×{rows_16} | {size[0]}x{size[1]} | {columns}×{rows} | {count} |" in page


def test_a_side_between_two_multiples_goes_up_and_a_small_one_keeps_a_patch():
    assert encoder_input_size(48, 80, 32) == (64, 96)  # Python's own rounding would give 64 and 64
    assert encoder_input_size(16, 16, 56) == (56, 56)


@pytest.mark.parametrize(("name", "patch", "registers"), DINOS)
def test_patch_size_and_registers_come_from_the_encoder(folders, name, patch, registers):
    encoder = load_image_encoder(str(folders / name), "fp32")
    assert (encoder.patch_size, encoder.registers, encoder.width) == (patch, registers, 32)
    card = encoder.card
    assert (card.patch_size, card.registers, card.width, card.revision) == (
        patch,
        registers,
        32,
        "local",
    ) and len(card.weights) == 64


def one_block_changed(rows: int, columns: int, patch: int) -> np.ndarray:
    """(1 + rows·columns, H, W, 3): a grey image, then the same with the block of row k // columns, column k %
    columns in red.
    """
    images = np.full((1 + rows * columns, rows * patch, columns * patch, 3), 128, np.uint8)
    for k in range(rows * columns):
        top, left = k // columns * patch, k % columns * patch
        images[1 + k, top : top + patch, left : left + patch] = (250, 10, 10)
    return images


def most_moved(tokens: torch.Tensor) -> list[int]:
    """Which token each changed image moves most, (1 + K, N, C) → K indices."""
    return (tokens[1:] - tokens[:1]).norm(dim=2).argmax(dim=1).tolist()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "patch", "registers"), DINOS)
def test_patch_k_is_at_row_k_over_columns_and_column_k_modulo_columns(folders, name, patch, registers, dtype):
    rows, columns = 4, 6
    features = load_image_encoder(str(folders / name), dtype).encode(one_block_changed(rows, columns, patch))
    assert features.patches.shape == (1 + rows * columns, rows * columns, 32)
    assert most_moved(features.patches) == list(range(rows * columns))


def test_the_check_above_sees_registers_taken_for_patches(folders, monkeypatch):
    encoder = load_image_encoder(str(folders / "dinov3"), "fp32")
    images = one_block_changed(4, 6, 16)
    every_token = encoder._tokens(images)
    shifted = every_token[:, 1 : 1 + 24]  # the slice of the old recipe
    assert most_moved(shifted)[:20] == [k + 4 for k in range(20)]


def test_cls_is_the_encoders_own_first_token(folders):
    encoder = load_image_encoder(str(folders / "dinov3"), "fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    x = encoder.preprocess(torch.from_numpy(pixels))
    torch.testing.assert_close(encoder.encode(pixels).cls, encoder._model(pixel_values=x).pooler_output)


def test_an_image_is_normalised_as_dino_expects(folders):
    encoder = load_image_encoder(str(folders / "dinov3"), "fp32")
    x = encoder.preprocess(torch.full((1, 16, 16, 3), 255, dtype=torch.uint8))
    torch.testing.assert_close(
        x[0, :, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    )


@pytest.mark.parametrize("bucket", [(96, 64), (64, 96), (128, 80)])
def test_resizing_to_multiples_of_14_agrees_with_pillow(folders, bucket):
    """Image by image. The noise keeps away from black and white: Pillow cuts overshoot between its two passes,
    which shows in noise only.
    """
    width, height = bucket
    pixels = np.random.default_rng(0).integers(80, 176, (2, height, width, 3), dtype=np.uint8)
    encoder = load_image_encoder(str(folders / "dinov2"), "fp32")
    target = encoder_input_size(width, height, 14)
    assert target != bucket
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    ours = (encoder.preprocess(torch.from_numpy(pixels)) * std + mean) * 255
    for image, resized in zip(pixels, ours, strict=True):
        pillows = np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        assert np.abs(resized.numpy() - pillows).max() <= 1.2  # Pillow rounds to whole levels after each pass


def test_the_image_is_seen_whole(folders):
    """A centre crop would lose the corners."""
    encoder = load_image_encoder(str(folders / "dinov2"), "fp32")
    image = np.full((1, 64, 96, 3), 128, np.uint8)
    for row, column in ((0, 0), (63, 95)):
        changed = image.copy()
        changed[0, row, column] = 255
        moved = (
            (encoder.preprocess(torch.from_numpy(changed)) - encoder.preprocess(torch.from_numpy(image)))
            .abs()
            .amax(dim=1)[0]
        )
        assert moved[-1 if row else 0, -1 if column else 0] > 0.1


@pytest.mark.parametrize("size", [(40, 32), (32, 40)])
def test_an_input_that_patch_16_would_floor_is_refused(folders, size):
    with pytest.raises(BadDataError, match=f"{size[0]}x{size[1]}"):
        load_image_encoder(str(folders / "dinov3"), "fp32").encode(np.zeros((1, size[1], size[0], 3), np.uint8))


def test_a_large_batch_is_computed_in_parts_with_the_same_result(folders, monkeypatch):
    encoder = load_image_encoder(str(folders / "dinov3"), "fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    whole = encoder.encode(pixels)
    monkeypatch.setattr(image_module, "_PIXELS_AT_ONCE", 2 * 32 * 48)
    sizes = []
    encoder._model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    parts = encoder.encode(pixels)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(parts.patches, whole.patches)
    torch.testing.assert_close(parts.cls, whole.cls)


# Precision


def test_bf16_keeps_the_rotary_frequencies_exact(folders):
    """In bf16 they are off by up to 0.4%, which at the edge of a large image is a good part of a patch."""
    encoder = load_image_encoder(str(folders / "dinov3"), "bf16")
    assert encoder._model.rope_embeddings.inv_freq.dtype == torch.float32
    assert {parameter.dtype for parameter in encoder._model.parameters()} == {torch.bfloat16}


def overflowing(encoder, dtype: torch.dtype) -> None:
    """Makes the encoder's last layer give NaN as long as its weights have this dtype."""
    encoder._model.norm.register_forward_hook(
        lambda module, args, output: output * torch.nan if module.weight.dtype == dtype else output
    )


def test_features_that_overflow_in_bf16_are_computed_again_in_fp32_and_told(folders, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    message: list[str] = []
    talk = Talk()
    monkeypatch.setattr(talk, "warn", message.append)
    encoder = load_image_encoder(str(folders / "dinov3"), "bf16", talk)
    with in_fp32(encoder._model, torch.bfloat16):
        expected = encoder.encode(pixels).patches
    overflowing(encoder, torch.bfloat16)
    torch.testing.assert_close(encoder.encode(pixels).patches, expected)
    assert len(message) == 1 and "computed again in fp32" in message[0]
    assert encoder._model.dtype == torch.bfloat16


def test_features_that_are_not_finite_in_fp32_either_are_refused(folders):
    encoder = load_image_encoder(str(folders / "dinov3"), "fp32")
    overflowing(encoder, torch.float32)
    with pytest.raises(BadDataError, match="2 of 2 images are not finite"):
        encoder.encode(np.zeros((2, 32, 32, 3), np.uint8))


# What is no DINO


@pytest.mark.parametrize("model_type", ["vit", "clip_vision_model", "convnext", "swin"])
def test_another_architecture_is_refused_before_its_weights_are_looked_for(tmp_path, model_type):
    """Mistake 15 of the recipe: a fallback extractor whose tokens were averaged into a wrong CLS."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UsageError, match=model_type) as refused:
        load_image_encoder(str(tmp_path), "fp32")
    assert "DINOv3" in refused.value.hint and "facebook/dinov2-large" in refused.value.hint


def test_registers_in_the_weights_that_the_config_hides_are_refused(altered):
    folder = altered("dinov2-registers", {"model_type": "dinov2", "num_register_tokens": 0})
    with pytest.raises(
        BadDataError, match=r"embeddings\.register_tokens, but its config\.json describes a model without"
    ):
        load_image_encoder(str(folder), "fp32")


def test_a_config_that_forgets_the_registers_is_refused(altered):
    """0 is the class's default."""
    with pytest.raises(WeightsMissingError, match="dinov3"):
        load_image_encoder(str(altered("dinov3", {"num_register_tokens": 0})), "fp32")


def test_a_model_whose_config_and_weights_disagree_about_registers_is_refused():
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    model = DINOv3ViTModel(
        DINOv3ViTConfig(
            num_register_tokens=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
        )
    )
    model.config.num_register_tokens = 0
    with pytest.raises(BadDataError, match="0 register tokens, its weights have 4"):
        DinoEncoder(model, "lying", "1", "fp32")


def test_patches_that_are_not_square_are_refused(folders):
    encoder = load_image_encoder(str(folders / "dinov2"), "fp32")
    encoder._model.config.patch_size = (14, 16)
    with pytest.raises(BadDataError, match="square"):
        DinoEncoder(encoder._model, "oblong", "1", "fp32")
    encoder._model.config.patch_size = [14, 14]
    assert DinoEncoder(encoder._model, "square", "1", "fp32").patch_size == 14


def test_more_or_fewer_tokens_than_the_grid_has_are_an_error(folders):
    encoder = load_image_encoder(str(folders / "dinov3"), "fp32")
    encoder.registers = 3
    with pytest.raises(BadDataError, match="11 tokens for an input of 48x32"):
        encoder.encode(np.zeros((1, 32, 48, 3), np.uint8))
