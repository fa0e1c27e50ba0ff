"""Rows 27 to 39: images that are broken, huge, odd or twice there. Colours are judged in the stored latent, behind
everything.
"""

from __future__ import annotations

import re
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, FitsImagePlugin, Image, ImageFile, Jpeg2KImagePlugin, PsdImagePlugin

from tests.data.source.picture_files import (
    BLUE,
    GREEN,
    RED,
    STORED,
    WHITE,
    chunk,
    encoded,
    exif_of,
    grey16_tiff,
    picture,
    png,
)

PLAIN = {"quality": 100, "subsampling": 0}
# pytest undoes dittool's own filter
pytestmark = pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")


def flat(colour, mode="RGB", size=(80, 80)):
    return Image.new(mode, size, colour)


def near(colour, other, tolerance=4):
    return max(abs(one - two) for one, two in zip(colour, other, strict=True)) <= tolerance


@pytest.mark.row(27)
def test_an_empty_file_and_a_web_page_are_refused_and_say_what_they_are(desk):
    desk.put("empty.jpg", b"")
    desk.put("page.jpg", b"<!DOCTYPE html><title>404</title>")
    desk.put("pointer.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    done = desk.embed().lost_nothing(empty="not-an-image", page="not-an-image", pointer="not-an-image")
    details = {name: done.rows[name]["detail"] for name in done.reasons}
    assert "0 bytes" in details["empty"] and "HTML" in details["page"] and "git lfs pull" in details["pointer"]
    printed = desk.run("embed", desk.images, "--preset", "demo", "--out", done.folder)
    assert (
        printed.code == 0
        and "6 inputs: 3 used, 3 refused" in printed.out
        and re.search(r"not-an-image +3", printed.out)
    )


@pytest.mark.row(27)
def test_when_nothing_else_is_there_the_command_fails_and_counts_why(desk, one_error):
    (desk.root / "bad").mkdir()
    (desk.root / "bad/page.jpg").write_bytes(b"<html>")
    (desk.root / "bad/page.txt").write_text("a page")
    done = desk.embed(source=desk.root / "bad")
    one_error(done.outcome, 3, "bad", "none of 1", "1 not-an-image")


@pytest.mark.row(28)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_body_cut_off_is_refused_and_the_batch_around_it_goes_on(desk, file_format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8))
    raw = encoded(noise, file_format)
    desk.put(f"cut.{file_format.lower()}", raw[: len(raw) * 2 // 3])
    done = desk.embed()
    assert done.reasons["cut"].removeprefix("decode:") in ("truncated", "damaged")
    done.lost_nothing(**done.reasons)
    again = desk.embed()
    assert again.reasons == done.reasons and set(again.answer["made"].values()) == {0}


@pytest.mark.row(28)
def test_a_png_that_lacks_only_its_end_is_used_and_flagged(desk):
    desk.put("endless.png", encoded(picture(80, 80))[:-12])
    done = desk.embed().lost_nothing()
    assert done.rows["endless"]["flags"][0] == "no-end-chunk" and near(done.colour("endless", 0.2, 0.2), RED)


@pytest.fixture
def decoded_sizes(monkeypatch):
    """The sizes of all images whose pixels were decoded."""
    sizes = []
    real = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: sizes.append(image.size) or real(image))
    return sizes


def bomb(width, height, header=b""):
    """A PNG of nothing: few bytes for many pixels."""
    rows = zlib.compress(bytes(1 + (width + 7) // 8) * min(height, 20000), 9)
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)) + chunk(b"IDAT", rows) + chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + header + body


@pytest.mark.row(29)
def test_a_hundred_megapixels_in_a_few_bytes_are_refused_from_the_header(desk, decoded_sizes):
    desk.put("bomb.png", bomb(10_000, 10_000))
    desk.put("bigger.png", bomb(20_000, 20_000))
    done = desk.embed().lost_nothing(bomb="too-large", bigger="too-large")
    assert "100,000,000" in done.rows["bomb"]["detail"] and "64,000,000" in done.rows["bomb"]["detail"]
    assert decoded_sizes and max(width * height for width, height in decoded_sizes) < 1_000_000


@pytest.mark.row(30)
def test_sides_of_two_billion_are_refused_from_the_header(desk, decoded_sizes):
    side = 2**31 - 1
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    desk.put("png.png", b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"x") + chunk(b"IEND"))
    raw = bytearray(encoded(flat(RED), "BMP"))
    raw[18:26] = struct.pack("<ii", side, side)
    desk.put("bmp.bmp", bytes(raw))
    raw = bytearray(encoded(flat(RED), "GIF"))
    raw[6:10] = b"\xff" * 4
    desk.put("gif.gif", bytes(raw))
    desk.embed().lost_nothing(png="too-large", bmp="too-large", gif="too-large")
    assert max(width * height for width, height in decoded_sizes) < 1_000_000


@pytest.mark.row(31)
def test_no_width_too_small_and_too_long_each_have_their_reason(desk):
    desk.put("nothing.png", png(0, 40, 8, 0, [b""] * 40))
    desk.put("dot.png", encoded(flat(RED, size=(1, 1))))
    desk.put("thread.png", encoded(flat(RED, size=(1, 4000))))
    desk.put("banner.png", encoded(flat(RED, size=(400, 40))))
    done = desk.embed().lost_nothing(nothing="damaged", dot="too-small", thread="too-small", banner="extreme-aspect")
    assert "1x4000" in done.rows["thread"]["detail"] and "10:1" in done.rows["banner"]["detail"]


def ycck(cyan, magenta, yellow, black):
    """A flat JPEG of these inks stored as YCCK, as Adobe's programs do: YCbCr of the inks themselves, and the
    inverted black.
    """
    stored = (*flat((cyan, magenta, yellow), size=(1, 1)).convert("YCbCr").getpixel((0, 0)), 255 - black)
    # Pillow inverts all four when it writes
    raw = encoded(flat(tuple(255 - value for value in stored), "CMYK"), "JPEG", **PLAIN)
    marker = raw.index(b"Adobe") + 11
    return raw[:marker] + b"\x02" + raw[marker + 1 :]


@pytest.mark.row(32)
def test_inks_show_their_colours(desk):
    desk.put("cyan.jpg", encoded(flat((255, 0, 0, 0), "CMYK"), "JPEG", **PLAIN))  # Pillow writes Adobe's inverted order
    desk.put("cyan_tiff.tif", encoded(flat((255, 0, 0, 0), "CMYK"), "TIFF"))
    desk.put("red_ycck.jpg", ycck(0, 255, 255, 0))
    desk.put("dark_ycck.jpg", ycck(0, 0, 0, 128))
    done = desk.embed().lost_nothing()
    assert near(done.colour("cyan"), (0, 255, 255)) and near(done.colour("cyan_tiff"), (0, 255, 255))
    assert near(done.colour("red_ycck"), RED, 6) and near(done.colour("dark_ycck"), (127,) * 3, 6)
    assert all(
        done.rows[name]["flags"][0] == "cmyk-converted" for name in ("cyan", "cyan_tiff", "red_ycck", "dark_ycck")
    )


@pytest.mark.row(33)
def test_sixteen_bits_are_scaled_and_not_clipped_and_floats_are_refused(desk):
    desk.put("grey.png", png(80, 80, 16, 0, [struct.pack(">H", 40000) * 80] * 80))
    desk.put("grey_tiff.tif", grey16_tiff(40000))
    desk.put("colour.png", png(80, 80, 16, 2, [struct.pack(">HHH", 40000, 256, 65535) * 80] * 80))
    desk.put("float.tif", encoded(Image.fromarray(np.full((80, 80), 1e9, dtype=np.float32)), "TIFF"))
    done = desk.embed().lost_nothing(float="float-pixels")
    assert near(done.colour("grey"), (156,) * 3, 2) and near(done.colour("grey_tiff"), (156,) * 3, 2)
    assert near(done.colour("colour"), (156, 1, 255), 2)
    assert "16-bit-reduced" in done.rows["grey"]["flags"]


@pytest.mark.row(34)
def test_what_is_transparent_is_white_and_not_its_hidden_colour(desk):
    palette = flat(0, "P")
    palette.putpalette([*RED, *BLUE])
    palette.paste(1, (0, 0, 80, 40))
    desk.put("rgba.png", encoded(flat((*RED, 0), "RGBA")))
    desk.put("half.png", encoded(flat((*RED, 128), "RGBA")))
    desk.put("la.png", encoded(flat((0, 0), "LA")))
    desk.put("palette.png", encoded(palette, "PNG", transparency=0))
    desk.put("palette_gif.gif", encoded(palette, "GIF", transparency=0))
    done = desk.embed().lost_nothing()
    assert near(done.colour("rgba"), WHITE) and near(done.colour("la"), WHITE)
    assert near(done.colour("half"), (255, 127, 127))
    for name in ("palette", "palette_gif"):
        assert near(done.colour(name, 0.5, 0.8), WHITE) and near(done.colour(name, 0.5, 0.2), BLUE)


ORIENTATIONS = STORED | {99: STORED[1]}  # a number that means nothing leaves it as it is


@pytest.mark.row(35)
def test_every_orientation_is_stored_upright(desk):
    for orientation, quarters in ORIENTATIONS.items():
        width, height = (80, 120) if 5 <= orientation <= 8 else (120, 80)
        image = Image.new("RGB", (width, height))
        for index, colour in enumerate(quarters):
            left, top = index % 2 * width // 2, index // 2 * height // 2
            image.paste(colour, (left, top, left + width // 2, top + height // 2))
        desk.put(f"o{orientation}.jpg", encoded(image, "JPEG", exif=exif_of(orientation), **PLAIN))
    done = desk.embed().lost_nothing()
    for orientation in ORIENTATIONS:
        name = f"o{orientation}"
        assert (done.rows[name]["width"], done.rows[name]["height"]) == (120, 80)
        corners = [done.colour(name, across, down) for down in (0.2, 0.8) for across in (0.2, 0.8)]
        assert all(
            near(corner, colour, 8) for corner, colour in zip(corners, (RED, GREEN, BLUE, WHITE), strict=True)
        ), name


@pytest.mark.row(36)
@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_used_and_flagged(desk, file_format):
    frames = [flat(colour) for colour in (RED, GREEN, BLUE)]
    suffix = {"PNG": "apng", "TIFF": "tif", "MPO": "jpg"}.get(file_format, file_format.lower())
    desk.put(f"moving.{suffix}", encoded(frames[0], file_format, save_all=True, append_images=frames[1:]))
    done = desk.embed().lost_nothing()
    assert "first-frame-only" in done.rows["moving"]["flags"] and near(done.colour("moving"), RED, 8)


@pytest.fixture
def trapped_decoders(monkeypatch):
    """Decoders with a history of harm; what reaches one is noted."""
    reached = []
    plugins = (
        EpsImagePlugin.EpsImageFile,
        PsdImagePlugin.PsdImageFile,
        FitsImagePlugin.FitsImageFile,
        Jpeg2KImagePlugin.Jpeg2KImageFile,
    )
    for plugin in plugins:
        monkeypatch.setattr(plugin, "_open", lambda image, format=plugin.format: reached.append(format))
    return reached


REFUSED_FORMATS = {
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n",
    "pdf": b"%PDF-1.7\n",
    "psd": b"8BPS\0\1" + b"\0" * 40,
    "fits": b"SIMPLE  =                    T" + b" " * 2850,
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ",
}


@pytest.mark.row(37)
def test_dangerous_formats_never_reach_their_decoders_whatever_they_are_called(desk, trapped_decoders):
    for name, raw in REFUSED_FORMATS.items():
        desk.put(f"as_jpg_{name}.jpg", raw)
        desk.put(f"as_itself_{name}.{name}", raw, None if name == "pdf" else "a picture")
    refused = {f"as_jpg_{name}": "unsupported-format" for name in REFUSED_FORMATS}
    # no picture's suffix: not an input
    refused |= {f"as_itself_{name}": "unsupported-format" for name in REFUSED_FORMATS if name != "pdf"}
    desk.embed().lost_nothing(**refused)
    assert trapped_decoders == []
    with pytest.raises(Exception, match=r"."):  # the trap itself works: Pillow left alone walks into it
        Image.open(desk.images / "as_jpg_eps.jpg").load()
    assert "EPS" in trapped_decoders


@pytest.mark.row(37)
def test_a_wrong_suffix_is_no_reason_to_refuse(desk):
    desk.put("dog.jpg", encoded(flat(BLUE), "PNG"))
    assert near(desk.embed().lost_nothing().colour("dog"), BLUE)


@pytest.mark.row(38)
def test_profiles_and_texts_however_large_or_broken_change_no_pixel(desk):
    rows = [bytes(RED) * 80] * 80
    huge = zlib.compress(b"\0" * 50_000_000)
    desk.put("profile.jpg", encoded(flat(RED), "JPEG", icc_profile=b"\0" * 128 + b"Display P3", **PLAIN))
    desk.put("huge.png", png(80, 80, 8, 2, rows, before=chunk(b"iCCP", b"big\0\0" + huge)))
    desk.put("broken.png", png(80, 80, 8, 2, rows, before=chunk(b"iCCP", b"broken\0\0not zlib")))
    desk.put("text.png", png(80, 80, 8, 2, rows, before=chunk(b"zTXt", b"key\0\0" + huge)))
    done = desk.embed().lost_nothing()
    assert all(near(done.colour(name), RED) for name in ("profile", "huge", "broken", "text"))
    assert all("icc-ignored" in done.rows[name]["flags"] for name in ("profile", "huge", "broken"))


@pytest.mark.row(39)
def test_the_same_image_under_two_names_is_reported_and_never_on_both_sides_of_the_hold_out(desk):
    raw = encoded(picture(80, 80))
    for name in ("twin1.png", "twin2.png", "sub/twin3.png"):
        desk.put(name, raw, f"caption of {name}")
    done = desk.embed().lost_nothing()
    original, *others = (done.rows[name] for name in ("sub/twin3", "twin1", "twin2"))
    assert all(f"duplicate-of:{original['id']}" in row["flags"] for row in others)
    assert done.answer["flags"]["duplicate-of"] == 2
    assert desk.run("shard", done.folder, "--out", desk.root / "shards", "--holdout", "0.5").code == 0
    tars = [path for path in (desk.root / "shards").rglob("*.tar") if original["id"].encode() in path.read_bytes()]
    splits = {
        path.name.split("-")[0]
        for twin in (original, *others)
        for path in tars
        if twin["id"].encode() in path.read_bytes()
    }
    assert len(splits) == 1
