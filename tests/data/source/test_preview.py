"""The contact sheet: what is marked, what is chosen, and that it shows what the encoders will see."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from dittool.config.load import load_config
from dittool.data.records import USED, Record
from dittool.data.source.preview import MOST_SHOWN, choose, marks_of, pairs_to_show, preview, save_sheet
from dittool.errors import BadDataError, UsageError
from tests.data.source.picture_files import RED, encoded, exif_of, picture
from tests.data.source.test_colour_profiles import P3


@pytest.fixture
def config():
    return load_config("demo", ['data.buckets=["64x64", "96x48", "48x96"]'])


def put(folder, name, raw, caption):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    path.with_suffix(".txt").write_text(caption)


def record(name, caption="a quiet harbour at night", bucket="64x64", **fields):
    fields = {"width": 64, "height": 64, "crop": (0, 0, 64, 64), "image_sha256": name, **fields}
    return Record(name, name, f"{name}.png", USED, caption=caption, bucket=bucket, **fields)


def marks(*records, tokens=None, limit=512):
    return marks_of(records, limit, tokens)


@pytest.mark.parametrize(
    ("fields", "mark"),
    [
        ({"flags": ("exif-rotated",)}, "turned"),
        ({"flags": ("icc-converted",)}, "colours converted"),
        ({"flags": ("duplicate-of:b",)}, "duplicate"),
        ({"flags": ("unknown-words:3",)}, "unknown words"),
        ({"width": 64, "height": 100, "crop": (0, 18, 64, 82)}, "cropped by 36%"),
        ({"caption": "dog"}, "short caption"),
        ({"caption": "IMG 0042"}, "caption is a file's name"),
    ],
)
def test_what_is_odd_is_marked(fields, mark):
    one = record("IMG_0042", **fields)
    assert marks(one)[one.id] == (mark,)


def test_what_is_usual_is_not_marked():
    plain = record("a", width=64, height=78, crop=(0, 7, 64, 71))  # a fifth is 0.2
    chinese, short_class = record("b", "一只黑狗坐在沙发上"), record("c", "owl", cls="owl")
    assert set(marks(plain, chinese, short_class).values()) == {()}


def test_a_caption_is_marked_as_cut_when_the_tokenizer_says_so_and_never_without_one():
    long = record("a", "word " * 10)
    assert marks(long, limit=9, tokens=lambda caption: len(caption.split()))["a"] == ("caption cut: 10 tokens",)
    assert marks(long, limit=10, tokens=lambda caption: len(caption.split()))["a"] == ()
    assert marks(long, limit=9)["a"] == ()
    counted = []
    marks(record("b", "dog on a sofa"), limit=512, tokens=counted.append)
    assert counted == []  # too few bytes to have so many tokens


def test_a_caption_that_many_images_share_is_marked():
    same = [record(name, "a picture of a place") for name in "abc"]
    assert set(marks(*same, record("d")).values()) == {("caption shared by 3",), ()}


def test_every_bucket_and_every_mark_is_shown_whatever_the_numbers():
    many = [record(f"{number:03d}", f"a harbour with {number} boats") for number in range(500)]
    rare = [record("z1", bucket="96x48"), record("z2", flags=("exif-rotated",))]
    shown = choose([*many, *rare], marks(*many, *rare))
    assert len(shown) == MOST_SHOWN and {"z1", "z2"} <= {one.id for one in shown}
    assert shown[0].id == "z2" and shown[-1].id == "z1"  # the marked first, the smallest bucket last
    assert choose([*rare, *many[::-1]], marks(*many, *rare)) == shown


def test_five_pairs_are_chosen_by_the_image_and_not_by_the_name():
    records = [record(name, image_sha256=f"{9 - number}") for number, name in enumerate("abcdefgh")]
    assert [one.id for one in pairs_to_show(records)] == ["h", "g", "f", "e", "d"]


def test_the_sheet_shows_the_bucketed_upright_converted_crop(tmp_path, config):
    stored = picture(200, 100).transpose(Image.Transpose.ROTATE_90)
    put(tmp_path, "a.png", encoded(stored, "PNG", exif=exif_of(6)), "four colours in four corners")
    sheet = preview(tmp_path, config)
    pixels = np.asarray(sheet.image)
    assert (sheet.shown, sheet.used, sheet.refused, sheet.marks) == (1, 1, 0, {"turned": 1})
    ys, xs = np.nonzero((pixels == RED).all(axis=2))
    whites = np.nonzero((pixels[ys.min() : ys.min() + 132, xs.min() : xs.min() + 264] == (0, 255, 0)).all(axis=2))
    assert 120 <= xs.max() - xs.min() <= 136 and whites[1].min() >= 128  # red at the left of green: upright


def test_the_sheet_counts_marks_over_all_images_and_reads_captions_as_embed_does(tmp_path, config):
    for number in range(6):
        put(
            tmp_path, f"train/{number}.png", encoded(picture(64 + number, 64), icc_profile=P3), "wrong: not the caption"
        )
        (tmp_path / f"train/{number}.txt").unlink()
    rows = [{"file_name": f"{number}.png", "text": f"picture number {number} of six"} for number in range(6)]
    (tmp_path / "train/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sheet = preview(tmp_path, config)
    assert sheet.marks == {"colours converted": 6} and sheet.examples == {"colours converted": "train/0"}


def test_a_picture_that_cannot_be_decoded_has_a_field_that_says_why(tmp_path, config):
    raw = encoded(picture(300, 300), "JPEG")
    put(tmp_path, "a.jpg", raw[: len(raw) * 2 // 3], "cut in the middle of it")
    put(tmp_path, "b.jpg", raw, "a whole one beside it")
    assert preview(tmp_path, config).shown == 2


def test_names_that_are_no_text_are_drawn_escaped(tmp_path, config, dit):
    put(tmp_path / "in", os.fsdecode(b"caf\xe9\n") + ".png", encoded(picture(64, 64)), "one")
    assert preview(tmp_path / "in", config).examples == {"short caption": "caf\\udce9\\n"}
    done = dit("embed", tmp_path / "in", "--preview", tmp_path / "sheet.png", "--preset", "demo", "--json")
    assert done.code == 0 and json.loads(done.out)["shown"] == 1


def test_without_any_usable_image_the_first_reason_is_told(tmp_path, config):
    put(tmp_path, "a.png", b"<html>", "a page")
    with pytest.raises(BadDataError, match="a: HTML, XML or SVG text"):
        preview(tmp_path, config)


def test_the_same_source_gives_the_same_sheet_and_a_sheet_replaces_sheets_only(tmp_path, config):
    for number in range(3):
        put(tmp_path / "in", f"{number}.png", encoded(picture(64 + number, 64)), f"picture number {number} here")
    for _ in range(2):
        save_sheet(preview(tmp_path / "in", config), tmp_path / "sheet.png")
        first = (tmp_path / "sheet.png").read_bytes()
    save_sheet(preview(tmp_path / "in", config), tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes() == first
    for taken in ("in/0.png", "sheet.jpg"):
        with pytest.raises(UsageError):
            save_sheet(preview(tmp_path / "in", config), tmp_path / taken)


def test_the_command_encodes_nothing_and_says_what_is_marked(tmp_path, dit, monkeypatch):
    from dittool.data.features import passes

    monkeypatch.setattr(passes, "load_pass", lambda *_: pytest.fail("an encoder was loaded"))
    put(tmp_path / "in", "a.png", encoded(picture(400, 400), icc_profile=P3), "colours of a phone")
    done = dit("embed", tmp_path / "in", "--preview", tmp_path / "sheet.png", "--preset", "demo")
    assert done.code == 0, done.err
    assert "1 of 1 pictures" in done.out and "colours converted" in done.out
    assert Image.open(tmp_path / "sheet.png").width > 1000 and sorted(p.name for p in tmp_path.iterdir()) == [
        "in",
        "sheet.png",
    ]
    assert dit("embed", tmp_path / "in", "--preview", tmp_path / "s.png", "--estimate").code == 2


def test_embed_shows_five_pairs_before_it_begins(images, tmp_path, dit):
    done = dit("embed", images, "--out", tmp_path / "derived", "--preset", "demo", "--pass", "t5")
    lines = done.err[: done.err.index("t5 ")].splitlines()
    pairs = [line for line in lines if ".png: " in line]
    assert len(pairs) == 5
    name, _, caption = pairs[0].strip().partition(": ")
    assert (images / name).with_suffix(".txt").read_text().strip().startswith(caption[:20])


def test_letters_that_our_font_lacks_are_looked_for_in_the_systems_fonts_and_broken_ones_passed_over(
    tmp_path, monkeypatch
):
    from matplotlib import font_manager

    from dittool.data.source.preview import _font, _font_for, _system_font

    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "broken.ttf")])
    _system_font.cache_clear()
    assert _font_for("一只黑狗") is _font(14) is _font_for("größe, черный")
    _system_font.cache_clear()
