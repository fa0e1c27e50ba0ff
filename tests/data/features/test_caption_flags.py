"""What only the encoder shows of a caption: words that its tokenizer lacks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.features.store import FeatureStore
from dittool.data.source.scan import summary


@pytest.fixture
def half_foreign(monkeypatch):
    """The built-in encoder of words, to whose tokenizer everything but ASCII is unknown."""
    from dittool.encoders.builtin import WordVectors

    encode = WordVectors.encode
    monkeypatch.setattr(
        WordVectors,
        "encode",
        lambda self, captions: [
            replace(features, unknown=sum(not word.isascii() for word in caption.split()))
            for features, caption in zip(encode(self, captions), captions, strict=True)
        ],
    )


def flags_of(derived):
    """Name → flags, but for those of the drawings' size."""
    return {
        record.name: tuple(flag for flag in record.flags if flag != "upscaled")
        for record in FeatureStore(derived).read_records()
    }


def test_words_that_the_tokenizer_lacks_are_flagged_summed_and_remembered(images, tmp_path, half_foreign):
    first, second = sorted(images.glob("*.txt"))[:2]
    first.write_text("一只 黑狗 dog")
    second.write_text("größe of a dog")
    for made in (2, 0):  # the second time nothing is encoded
        done = embed(images, tmp_path / "derived", load_config("demo"), ["t5"])
        flags = flags_of(tmp_path / "derived")
        assert (flags[first.stem], flags[second.stem]) == (("unknown-words:2",), ("unknown-words:1",))
        counts = summary(done.records)
        assert counts.unknown_words == 3 and counts.flags["unknown-words"] == 2 and (done.made["t5"] > 0) == (made > 0)
    first.write_text("a dog")
    embed(images, tmp_path / "derived", load_config("demo"), ["t5"])
    flags = flags_of(tmp_path / "derived")
    assert flags[first.stem] == () and flags[second.stem] == ("unknown-words:1",)


def test_the_summary_prints_flags_with_counts_and_one_example_each(images, tmp_path, half_foreign, dit):
    min(images.glob("*.txt")).write_text("一只 黑狗")
    shutil.copy(min(images.glob("*.png")), images / "again.png")
    (images / "again.txt").write_text("the same again")
    (images / "none.png").write_bytes(b"")
    done = dit("embed", images, "--out", tmp_path / "derived", "--preset", "demo", "--pass", "t5")
    assert done.code == 0, done.err
    assert "duplicate-of: the same file as another image" in done.out and ": again" in done.out
    assert "no-caption" in done.out and "no none.txt or none.caption" in done.out
    assert "2 words of 1 captions are unknown to the tokenizer" in done.err and "google/umt5-xxl" in done.err
    again = json.loads(dit("embed", images, "--out", tmp_path / "derived", "--preset", "demo", "--json").out)
    assert again["unknown_words"] == 2 and again["flags"]["duplicate-of"] == 1
