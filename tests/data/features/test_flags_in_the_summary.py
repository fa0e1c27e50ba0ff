"""Whatever a record says of a picture that is used, the summary of `dit embed` prints with its count and an example."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image, ImageCms

from dittool.data.features.store import FeatureStore
from dittool.data.source.scan import FLAGS, summary
from tests.data.source.picture_files import chunk, encoded, exif_of

# Flag → the picture that has it. All but the small one are as large as their bucket.
EXPECTED = {
    "16-bit-reduced": "grey16",
    "alpha-composited": "transparent",
    "bucket-from-manifest": "wished",
    "bucket-hint-unused": "wished-in-vain",
    "cmyk-converted": "inks",
    "duplicate-of": "same",
    "exif-rotated": "turned",
    "first-frame-only": "animated",
    "further-captions": "described-twice",
    "icc-converted": "profile",
    "icc-ignored": "broken-profile",
    "near-copy-of": "a-copy",
    "no-end-chunk": "cut",
    "not-flipped": "handed",
    "upscaled": "small",
}


def texture(seed, size=64):
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def linear_profile():
    """sRGB's primaries without its curve."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for tag in (b"rTRC", b"gTRC", b"bTRC"):
        place = profile.find(tag, 128)
        start = int.from_bytes(profile[place + 4 : place + 8], "big")
        profile[start : start + 12] = b"curv" + bytes(8)  # no points: linear
    return bytes(profile)


def pictures():
    """Name with suffix → bytes, one for each flag."""
    numbered = iter(range(100))

    def one(file_format="PNG", mode="RGB", **options):
        return encoded(texture(next(numbered)).convert(mode), file_format, **options)

    transparent = texture(next(numbered))
    transparent.putalpha(Image.new("L", (64, 64), 128))
    grey16 = Image.fromarray((np.asarray(texture(next(numbered)).convert("L")).astype(np.uint16)) << 8)
    plain, again = one(), texture(next(numbered))
    by_number = one()
    return {
        "grey16.png": encoded(grey16),
        "transparent.png": encoded(transparent),
        "wished.png": one(),
        "wished-in-vain.png": one(),
        "inks.jpg": one("JPEG", "CMYK"),
        "first.png": plain,
        "same.png": plain,
        "turned.jpg": one("JPEG", exif=exif_of(3)),
        "animated.gif": one("GIF", save_all=True, append_images=[texture(next(numbered))]),
        "described-twice.png": one(),
        "profile.png": one(icc_profile=linear_profile()),
        "broken-profile.png": one(icc_profile=b"none"),
        "colours-by-number.png": by_number[:33] + chunk(b"cICP", bytes([9, 16, 0, 1])) + by_number[33:],
        "a-copy 1.png": encoded(again),
        "a-copy 2.jpg": encoded(again, "JPEG", quality=90),
        "cut.png": one()[:-12],
        "handed.png": one(),
        "small.png": encoded(texture(next(numbered), 48)),
    }


@pytest.fixture
def flagged(tmp_path):
    (tmp_path / "in").mkdir()
    rows = []
    for number, (name, raw) in enumerate(pictures().items()):
        (tmp_path / "in" / name).write_bytes(raw)
        row = {"file_name": name, "text": f"texture {number}"}
        row |= {"aspect_bucket": "128x64"} if name == "wished.png" else {}
        row |= {"aspect_bucket": "99x99"} if name == "wished-in-vain.png" else {}
        row |= {"text": ["one", "two", "three"]} if name == "described-twice.png" else {}
        row |= {"text": "a left-handed person"} if name == "handed.png" else {}
        rows.append(json.dumps(row))
    (tmp_path / "in/metadata.jsonl").write_text("\n".join(rows))
    settings = ('data.buckets=["64x64","128x64"]', "data.flip=prepared")
    return ["embed", tmp_path / "in", "--out", tmp_path / "derived", "--preset", "demo", "--pass", "vae"] + [
        word for setting in settings for word in ("-s", setting)
    ]


def test_every_flag_is_printed_with_its_count_and_an_example(flagged, dit, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    done = dit(*flagged)
    assert done.code == 0, done.err
    counted = {"icc-ignored": 2, "upscaled": 2}
    rows = [re.split(r"\s{2,}", line.strip()) for line in done.out.splitlines()]
    printed = {
        row[0].partition(":")[0]: (int(row[1]), re.split("[: ]", row[2])[0])
        for row in rows
        if len(row) == 3 and row[1].isdigit()
    }
    for flag, name in EXPECTED.items():
        assert printed[flag] == (counted.get(flag, 1), name), flag
    counts = summary(FeatureStore(flagged[3]).read_records())
    assert set(counts.flags) == set(counts.examples) == set(EXPECTED)


def test_every_flag_is_said_in_words_and_has_a_picture_here():
    # the others: test_caption_flags.py, tests/data/source/test_several.py
    assert set(FLAGS) == {*EXPECTED, "unknown-words", "captions-left-out"}
