"""D8 on captions whose script the tokenizer does not know."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from dittool.audit.rules.D8_captions import _other_script
from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.shards.write import shard
from dittool.encoders.builtin import WordVectors


@pytest.fixture
def shards(tiny_shards, tmp_path, monkeypatch):
    """Of captions half in Chinese, which the tokenizer does not know."""
    encode = WordVectors.encode
    monkeypatch.setattr(
        WordVectors,
        "encode",
        lambda self, captions: [
            replace(features, unknown=int(not caption.isascii()))
            for features, caption in zip(encode(self, captions), captions, strict=True)
        ],
    )
    images = shutil.copytree(tiny_shards.images, tmp_path / "images")
    for number, path in enumerate(sorted(images.glob("*.txt"))[::2]):
        path.write_text(f"第 {number} 张图片")
    embed(images, tmp_path / "derived", load_config("demo"))
    shard(tmp_path / "derived", tmp_path / "shards")
    return tmp_path / "shards"


def test_unknown_words_that_embed_counted_are_found_in_shards_with_tokenizers_that_know_them(shards, dit):
    (finding,) = json.loads(dit("audit", shards, "--select", "D8", "--json").out)["findings"]
    assert finding["status"] == "warn" and "12 have words that the tokenizer does not know" in finding["evidence"]
    assert all(name in finding["fix"] for name in ("umT5", "mT5", "byT5", "-s encoders.text=google/umt5-xxl"))


@pytest.mark.parametrize(
    ("encoder", "captions", "script"),
    [
        ("google/t5-v1_1-xxl", ["一只黑狗", "a dog"], "CJK"),
        (None, ["собака на диване"], "CYRILLIC"),
        ("google/umt5-xxl", ["一只黑狗"], ""),
        ("google/t5-v1_1-xxl", ["größe", "a naïve dog", "123"], ""),
        ("google/t5-v1_1-xxl", ["..."], ""),
    ],
)
def test_advice_depends_on_the_script_and_on_the_encoder(encoder, captions, script):
    data = SimpleNamespace(encoder=lambda _: encoder and SimpleNamespace(id=encoder))
    assert (script in _other_script(data, captions)) if script else _other_script(data, captions) == ""
