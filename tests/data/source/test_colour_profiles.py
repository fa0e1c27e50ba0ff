"""Colour profiles: pixels are what LittleCMS makes of them in sRGB; what is sRGB already does not change a bit."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from dittool.data.source.images import decode_image, pixels_of, read_header
from tests.data.source.picture_files import chunk, encoded, exif_of, png

ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def fixed(value):
    return struct.pack(">i", round(value * 65536))


def curve(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def srgb_curve():
    """A table of 1,024 steps, as the profiles of screens have it."""
    x = np.linspace(0, 1, 1024)
    y = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + np.round(y * 65535).astype(">u2").tobytes()


def profile(name, tags, space=b"RGB ", kind=b"mntr"):
    """An ICC profile of version 2 with these tags."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name + b"\0" + bytes(78),
        b"cprt": b"text\0\0\0\0CC0\0",
        b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(fixed, (0.9642, 1.0, 0.8249))),
        **tags,
    }
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for key, data in tags.items():
        table += key + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I", offset + len(body)) + b"none" + struct.pack(">I", 0x02400000) + kind + space + b"XYZ "
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(fixed, (0.9642, 1.0, 0.8249)))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def of_screen(name, primaries, tone):
    matrix = {
        key: b"XYZ \0\0\0\0" + b"".join(map(fixed, values))
        for key, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
    }
    return profile(name, matrix | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), tone))


def of_grey(gamma):
    return profile(b"grey", {b"kTRC": curve(gamma)}, b"GRAY")


P3 = of_screen(b"Display P3", DISPLAY_P3, curve(2.2))
ADOBE = of_screen(b"Adobe RGB (1998)", ADOBE_RGB, curve(2.19921875))


def photograph(mode="RGB", size=(60, 40)):
    values = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def by_littlecms(image, source, mode="RGB"):
    srgb = ImageCms.createProfile("sRGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(source))
    return np.asarray(ImageCms.profileToProfile(image.convert(mode), source, srgb, outputMode="RGB")).astype(int)


@pytest.mark.parametrize("source", [P3, ADOBE], ids=["Display P3", "Adobe RGB"])
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 95}),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    ],
)
def test_pixels_are_those_of_littlecms(file_format, options, source):
    raw = encoded(photograph(), file_format, icc_profile=source, **options)
    stored = Image.open(io.BytesIO(encoded(photograph(), file_format, **options))).convert("RGB")
    expected, found = by_littlecms(stored, source), decode_image(raw).pixels
    assert np.array_equal(found, expected)
    assert np.abs(expected - np.asarray(stored)).mean() > 2  # it does make a difference
    assert read_header(raw).flags == ("icc-converted",) == decode_image(raw).flags


@pytest.mark.parametrize("name", [b"sRGB IEC61966-2.1", b"c2"])
def test_a_profile_of_srgb_changes_no_bit_whatever_it_is_called(name):
    plain = encoded(photograph())
    for same in (
        of_screen(name, SRGB, srgb_curve()),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        raw = encoded(photograph(), icc_profile=same)
        assert read_header(raw).flags == () and np.array_equal(decode_image(raw).pixels, decode_image(plain).pixels)


def test_a_profile_that_only_calls_itself_srgb_is_converted():
    raw = encoded(photograph(), icc_profile=of_screen(b"sRGB", DISPLAY_P3, srgb_curve()))
    assert read_header(raw).flags == ("icc-converted",)


def test_transparency_stays_and_the_white_behind_it_is_white():
    image = photograph("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image.paste((200, 40, 40, 255), (0, 0, 30, 40))
    pixels = decode_image(encoded(image, icc_profile=P3)).pixels
    red = by_littlecms(Image.new("RGB", (1, 1), (200, 40, 40)), P3)[0, 0]
    assert pixels[5, 5].tolist() == red.tolist() != [200, 40, 40] and pixels[5, 50].tolist() == [255, 255, 255]


def test_a_palette_is_converted_by_its_colours():
    image = photograph().quantize(16)
    assert np.array_equal(decode_image(encoded(image, icc_profile=P3)).pixels, by_littlecms(image, P3))


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_is_converted_by_the_profile_of_grey(mode):
    grey = photograph("L")
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) << 8) if mode == "I;16" else grey.convert(mode)
    raw = encoded(image, icc_profile=of_grey(1.0))
    assert np.array_equal(decode_image(raw).pixels, by_littlecms(grey, of_grey(1.0), "L"))
    assert "icc-converted" in read_header(raw).flags


def test_grey_with_a_profile_of_colours_is_converted_as_colours():
    raw = encoded(photograph("L"), "JPEG", icc_profile=ADOBE, quality=95)
    stored = Image.open(io.BytesIO(encoded(photograph("L"), "JPEG", quality=95)))
    assert np.array_equal(decode_image(raw).pixels, by_littlecms(stored, ADOBE))


@pytest.mark.parametrize(
    ("mode", "source"),
    [("RGB", of_grey(1.0)), ("RGB", b"not a profile"), ("RGB", P3[:200]), ("RGB", b"x" * (5 << 20)), ("CMYK", P3)],
    ids=["of grey", "none", "cut", "huge", "of a screen for inks"],
)
def test_a_profile_that_is_none_or_not_for_these_pixels_is_ignored_and_flagged(mode, source):
    plain, odd = (encoded(photograph(mode), "TIFF", **options) for options in ({}, {"icc_profile": source}))
    assert "icc-ignored" in read_header(odd).flags
    assert np.array_equal(decode_image(odd).pixels, decode_image(plain).pixels)


def test_rotation_and_conversion_go_together():
    raw = encoded(photograph(), "PNG", icc_profile=P3, exif=exif_of(6))
    assert np.array_equal(decode_image(raw).pixels, np.rot90(by_littlecms(photograph(), P3), -1))
    assert set(read_header(raw).flags) == {"icc-converted", "exif-rotated"}


def test_an_image_that_is_open_already_is_converted_as_its_file_is(tmp_path):
    for file_format in ("PNG", "TIFF"):
        raw = encoded(photograph(), file_format, icc_profile=P3)
        assert np.array_equal(pixels_of(Image.open(io.BytesIO(raw))), decode_image(raw).pixels)


@pytest.mark.parametrize(
    ("before", "flagged"),
    [
        (chunk(b"gAMA", struct.pack(">I", 100000)), True),
        (chunk(b"gAMA", struct.pack(">I", 45455)), False),
        (chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"sRGB", b"\0"), False),
        (chunk(b"cICP", bytes([9, 16, 0, 1])), True),
        (chunk(b"cICP", bytes([1, 13, 0, 1])), False),
        (chunk(b"cICP", bytes([1, 18, 0, 1])), True),
    ],
    ids=["linear", "usual", "linear but sRGB", "BT.2020 for bright screens", "BT.709", "BT.709 for bright screens"],
)
def test_colours_that_a_png_names_by_number_are_flagged_because_they_are_not_converted(before, flagged):
    raw = png(40, 40, 8, 2, [bytes([9] * 120)] * 40, before=before)
    assert read_header(raw).flags == (("icc-ignored",) if flagged else ())
