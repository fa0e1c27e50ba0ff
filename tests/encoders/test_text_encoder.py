"""T5 on a real class with two kinds of tokenizer: true lengths, cuts, padding that changes nothing, overflow that
is repaired or named.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
from string import ascii_lowercase

import pytest
import torch

from dittool.encoders import text as text_module
from dittool.encoders.pretrained import in_fp32
from dittool.encoders.text import load_text_encoder
from dittool.errors import BadDataError, UsageError, WeightsMissingError

END = 1  # T5's end mark
KINDS = ["t5", "t5-pieces"]


@pytest.fixture
def seen():
    """`seen(encoder)`: a list that collects the token ids and masks that its model is given."""

    def watch(encoder) -> list[tuple[torch.Tensor, torch.Tensor]]:
        calls = []
        encoder._model.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((kwargs["input_ids"].clone(), kwargs["attention_mask"].clone())),
            with_kwargs=True,
        )
        return calls

    return watch


def test_captions_have_their_true_length_and_cuts_are_told(folders):
    encoder = load_text_encoder(str(folders / "t5"), "fp32", max_tokens=12)
    short, long = encoder.encode(["dog", "a much longer caption"])
    assert short.hidden.shape == (4, 32) and not short.cut  # three bytes and the end mark
    assert long.hidden.shape == (12, 32) and long.cut


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_that_just_fits_is_not_cut_and_one_token_more_is(folders, kind):
    path = str(folders / kind)
    length = len(load_text_encoder(path, "fp32", 512).encode(["a red dog of"])[0].hidden)
    for limit, cut in ((length, False), (length - 1, True)):
        features = load_text_encoder(path, "fp32", limit).encode(["a red dog of"])[0]
        assert len(features.hidden) == limit and features.cut is cut


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_caption_keeps_its_end_mark(folders, seen, kind):
    encoder = load_text_encoder(str(folders / kind), "fp32", max_tokens=4)
    calls = seen(encoder)
    encoder.encode(["a red dog of a bird of a dog"])
    whole = encoder._tokenizer("a red dog of a bird of a dog").input_ids
    assert calls[0][0].tolist() == [[*whole[:3], END]]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_caption_beside_longer_ones_has_the_features_that_it_has_alone(folders, dtype):
    encoder = load_text_encoder(str(folders / "t5"), dtype, max_tokens=512)
    captions = ["dog", "a much longer caption with many words", "", "red bird"]
    ids = torch.tensor([encoder._tokenizer("dog").input_ids])
    alone = encoder._model(input_ids=ids).last_hidden_state[0].float()
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == "fp32" else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(encoder.encode(captions)[0].hidden, alone, **tolerance)


def test_padding_is_masked_and_carries_the_padding_token(folders, seen):
    encoder = load_text_encoder(str(folders / "t5"), "fp32", max_tokens=512)
    calls = seen(encoder)
    encoder.encode(["dog", "bird"])
    (ids, mask), pad = calls[0], encoder._tokenizer.pad_token_id
    assert mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]] and ids[0, 4] == pad


def test_many_captions_come_back_in_order_and_little_is_padding(folders, seen, monkeypatch):
    encoder = load_text_encoder(str(folders / "t5"), "fp32", max_tokens=64)
    monkeypatch.setitem(text_module._TOKENS_AT_ONCE, encoder._device.type, 256)
    captions = ["ab" * (1 + 7 * n % 30) + chr(97 + n % 26) for n in range(60)]
    calls = seen(encoder)
    features = encoder.encode(captions)
    assert [len(one.hidden) for one in features] == [len(caption) + 1 for caption in captions]
    assert all(mask.numel() <= 256 for _, mask in calls)
    assert sum(int(mask.sum()) for _, mask in calls) > 0.9 * sum(mask.numel() for _, mask in calls)
    for caption, one in list(zip(captions, features, strict=True))[::13]:
        torch.testing.assert_close(one.hidden, encoder.encode([caption])[0].hidden, rtol=1e-4, atol=1e-5)


def test_no_captions_are_no_features(folders):
    assert load_text_encoder(str(folders / "t5"), "fp32", 8).encode([]) == []


# Overflow


def overflow_on(encoder, letter: str, dtypes: set[torch.dtype]) -> None:
    """Makes captions that begin with this letter come out as NaN while the weights have one of these dtypes."""
    marked: list[torch.Tensor] = []
    first = encoder._tokenizer(letter).input_ids[0]
    encoder._model.register_forward_pre_hook(
        lambda module, args, kwargs: marked.append(kwargs["input_ids"][:, 0] == first), with_kwargs=True
    )

    def spoil(module, args, output):
        if module.weight.dtype in dtypes:
            output = output.clone()
            output[marked[-1]] = torch.nan
        return output

    encoder._model.encoder.final_layer_norm.register_forward_hook(spoil)


def test_a_caption_that_overflows_in_bf16_is_computed_again_in_fp32_and_told(folders, listener):
    encoder = load_text_encoder(str(folders / "t5"), "bf16", 64, listener)
    with in_fp32(encoder._model, torch.bfloat16):
        in_fp32_alone = encoder._model(
            input_ids=torch.tensor([encoder._tokenizer("red bird").input_ids])
        ).last_hidden_state[0]
    plain = encoder.encode(["a dog"])[0].hidden
    overflow_on(encoder, "r", {torch.bfloat16})
    dog, bird = encoder.encode(["a dog", "red bird"])
    torch.testing.assert_close(bird.hidden, in_fp32_alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dog.hidden, plain, rtol=0.02, atol=0.02)  # still bf16
    assert len(listener.warnings) == 1 and "1 captions" in listener.warnings[0] and "fp32" in listener.warnings[0]


def test_after_the_detour_through_fp32_the_weights_are_the_same_bits(folders):
    encoder = load_text_encoder(str(folders / "t5"), "bf16", 64)
    before = {name: tensor.clone() for name, tensor in encoder._model.state_dict().items()}
    with in_fp32(encoder._model, torch.bfloat16):
        assert encoder._model.dtype == torch.float32
    assert all(
        tensor.dtype == torch.bfloat16 and torch.equal(tensor, before[name])
        for name, tensor in encoder._model.state_dict().items()
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_caption_that_is_not_finite_in_fp32_either_is_named(folders, dtype):
    encoder = load_text_encoder(str(folders / "t5"), dtype, 64)
    overflow_on(encoder, "r", {torch.float32, torch.bfloat16})
    with pytest.raises(BadDataError, match="'red bird' are not finite"):
        encoder.encode(["a dog", "red bird"])


# What is no T5


def test_a_folder_without_its_tokenizer_is_refused(altered):
    """The library would make one up in which every word is unknown."""
    folder = altered("t5")
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(WeightsMissingError, match="tokenizer does not know plain words"):
        load_text_encoder(str(folder), "fp32", 64)


def test_a_tokenizer_of_another_model_is_refused(folders, altered):
    from transformers import T5Config, T5EncoderModel

    folder = altered("t5")
    T5EncoderModel(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)).save_pretrained(
        folder
    )
    with pytest.raises(WeightsMissingError, match="the model knows 64"):
        load_text_encoder(str(folder), "fp32", 64)


def sentence_pieces() -> bytes:
    """A `spiece.model` in protobuf's wire format: pieces with score and kind, and which of them are unknown, end
    and padding.
    """

    def number(value: int) -> bytes:
        low = bytes([value & 127 | (128 if value > 127 else 0)])
        return low + number(value >> 7) if value > 127 else low

    def message(key: int, content: bytes) -> bytes:
        return number(key << 3 | 2) + number(len(content)) + content

    def piece(text: str, score: float, kind: int) -> bytes:
        return message(1, message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + number(kind))

    words = [f"▁{word}" for word in ("a", "photo", "of", "red", "bird", "dog")]
    pieces = [
        ("<pad>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("<unk>", 0.0, 2),
        ("▁", -2.0, 1),
        *((letter, -5.0, 1) for letter in ascii_lowercase),
    ]
    trainer = b"".join(
        number(key << 3) + number(value) for key, value in ((3, 1), (40, 2), (41, (1 << 64) - 1), (42, 1), (43, 0))
    )
    normalizer = message(1, b"identity") + b"".join(number(key << 3) + number(1) for key in (3, 4, 5))
    return (
        b"".join(piece(*one) for one in [*pieces, *((word, -1.0, 1) for word in words)])
        + message(2, trainer)
        + message(3, normalizer)
    )


@pytest.fixture
def googles(altered):
    """A folder as Google publishes T5: the words are in `spiece.model` alone."""
    folder = altered("t5")
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "spiece.model").write_bytes(sentence_pieces())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    return str(folder)


def test_a_sentencepiece_tokenizer_is_read_or_its_package_asked_for(googles):
    if importlib.util.find_spec("sentencepiece"):
        assert len(load_text_encoder(googles, "fp32", 64).encode(["a red dog"])[0].hidden) == 4
        return
    with pytest.raises(WeightsMissingError) as missing:
        load_text_encoder(googles, "fp32", 64)
    assert "pip install sentencepiece" in missing.value.hint


@pytest.mark.parametrize("model_type", ["bert", "llama", "pix2struct"])
def test_another_architecture_is_refused_before_its_weights_are_looked_for(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UsageError, match=model_type):
        load_text_encoder(str(tmp_path), "fp32", 64)


def test_words_that_the_tokenizer_does_not_know_are_counted(folders):
    encoder = load_text_encoder(str(folders / "t5-pieces"), "fp32", 64)
    known, foreign, mixed = encoder.encode(["a red dog", "一只黑狗", "a red 狗 of a 狗"])
    assert (known.unknown, foreign.unknown, mixed.unknown) == (0, 1, 2)
    bytewise = load_text_encoder(str(folders / "t5"), "fp32", 64)
    assert [features.unknown for features in bytewise.encode(["一只黑狗", "dog"])] == [0, 0]


def test_unknown_words_are_counted_in_a_cut_caption_as_far_as_it_goes(folders):
    encoder = load_text_encoder(str(folders / "t5-pieces"), "fp32", 4)
    (cut,) = encoder.encode(["a red dog of 狗 狗 狗"])
    assert cut.cut and cut.unknown == 0


def test_a_umt5_is_loaded_as_its_own_class_with_positions_in_every_block(folders, tmp_path):
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    small = UMT5EncoderModel(UMT5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)).eval()
    shutil.copytree(folders / "t5-pieces", tmp_path / "umt5")
    (tmp_path / "umt5/model.safetensors").unlink()
    small.save_pretrained(tmp_path / "umt5")
    encoder = load_text_encoder(str(tmp_path / "umt5"), "fp32", 64)
    (features,) = encoder.encode(["a red dog"])
    ids = torch.tensor([encoder._tokenizer("a red dog").input_ids])
    with torch.no_grad():
        assert torch.allclose(features.hidden, small(input_ids=ids).last_hidden_state[0], atol=1e-6)


def test_builtin_words_are_the_same_every_time_and_differ_from_each_other():
    encoder = load_text_encoder("builtin:words", "fp32", 512)
    red, again, blue = (features.hidden for features in encoder.encode(["red circle", "Red circle,", "blue circle"]))
    assert torch.equal(red, again) and torch.equal(red[1], blue[1]) and not torch.equal(red[0], blue[0])
