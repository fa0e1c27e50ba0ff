"""Colours of opened images: rows 32 to 34 of the fault catalogue. What is seen must be what a viewer shows."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from dittool.data.source.images import read_header
from tests.data.source.picture_files import (
    BLACK,
    BLUE,
    RED,
    WHITE,
    big_endian_grey16_tiff,
    chunk,
    colour_at,
    encoded,
    grey16_tiff,
    near,
    png,
    refusal,
)

pytestmark = pytest.mark.usefixtures("warnings_are_errors")


INKS = {
    "cyan": ((255, 0, 0, 0), (0, 255, 255)),
    "red": ((0, 255, 255, 0), RED),
    "paper": ((0, 0, 0, 0), WHITE),
    "black": ((0, 0, 0, 255), BLACK),
    "dark green": ((255, 0, 255, 128), (0, 127, 0)),
}


@pytest.mark.row(32)
@pytest.mark.parametrize("ink", INKS)
@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_shows_the_colour_of_its_inks(file_format, ink):
    inks, expected = INKS[ink]
    raw = encoded(Image.new("CMYK", (40, 40), inks), file_format)
    assert read_header(raw).flags == ("cmyk-converted",)
    assert near(colour_at(raw, 20, 20), expected, 3)


@pytest.mark.row(32)
@pytest.mark.parametrize("ink", INKS)
def test_adobe_ycck_shows_the_colour_of_its_inks(ink):
    (cyan, magenta, yellow, black), expected = INKS[ink]
    # In the file: YCbCr of the inverted inverse, that is of (c, m, y) itself, and the inverted black. Pillow inverts
    # all four when it writes.
    luma_chroma = Image.new("RGB", (1, 1), (cyan, magenta, yellow)).convert("YCbCr").getpixel((0, 0))
    stored = (*luma_chroma, 255 - black)
    raw = encoded(Image.new("CMYK", (40, 40), tuple(255 - value for value in stored)), "JPEG", quality=100)
    marker = raw.index(b"Adobe") + 11
    ycck = raw[:marker] + b"\x02" + raw[marker + 1 :]
    assert near(colour_at(ycck, 20, 20), expected, 4)


@pytest.mark.row(33)
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (255, 0), (256, 1), (40000, 156), (65535, 255)])
def test_16_bit_grey_is_scaled_and_not_clipped(value, expected):
    for raw in (png(40, 40, 16, 0, [struct.pack(">H", value) * 40] * 40), grey16_tiff(value)):
        assert colour_at(raw, 20, 20) == (expected,) * 3
        assert read_header(raw).flags == ("16-bit-reduced",)


@pytest.mark.row(33)
def test_big_endian_16_bit_grey_is_the_same():
    assert colour_at(big_endian_grey16_tiff(40000), 20, 20) == (156,) * 3


@pytest.mark.row(33)
def test_16_bit_rgb_and_16_bit_alpha_keep_their_colours():
    rgb = png(40, 40, 16, 2, [struct.pack(">HHH", 40000, 256, 65535) * 40] * 40)
    assert colour_at(rgb, 20, 20) == (156, 1, 255) and read_header(rgb).flags == ("16-bit-reduced",)
    half_black = png(40, 40, 16, 4, [struct.pack(">HH", 0, 32768) * 40] * 40)
    assert near(colour_at(half_black, 20, 20), (127,) * 3, 1)


@pytest.mark.row(33)
def test_floating_point_pixels_are_refused():
    error = refusal(encoded(Image.fromarray(np.full((40, 40), 1e9, dtype=np.float32)), "TIFF"), read_header)
    assert error.reason == "float-pixels"


@pytest.mark.row(33)
@pytest.mark.parametrize(
    "raw",
    [
        encoded(Image.fromarray(np.full((40, 40), 70000, dtype=np.int32)), "TIFF"),
        grey16_tiff(4000, bits=12),
        grey16_tiff(4000, photometric=0),
    ],
    ids=["32-bit", "12-bit", "white is zero"],
)
def test_grey_of_unknown_range_is_refused(raw):
    assert refusal(raw, read_header).reason == "pixel-format"


@pytest.mark.row(34)
def test_hidden_colours_do_not_show_through():
    for raw in (
        encoded(Image.new("RGBA", (40, 40), (*RED, 0))),
        encoded(Image.new("RGBA", (40, 40), (*RED, 0)), "WEBP", lossless=True, exact=True),
    ):
        assert colour_at(raw, 20, 20) == WHITE
        assert read_header(raw).flags == ("alpha-composited",)


@pytest.mark.row(34)
def test_half_transparent_colours_are_mixed_with_white():
    assert near(colour_at(encoded(Image.new("RGBA", (40, 40), (*RED, 128))), 20, 20), (255, 127, 127), 1)
    assert near(colour_at(encoded(Image.new("LA", (40, 40), (0, 64))), 20, 20), (191, 191, 191), 1)
    assert colour_at(encoded(Image.new("RGBA", (40, 40), (*BLUE, 255))), 20, 20) == BLUE


@pytest.mark.row(34)
@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white_and_the_others_keep_their_colours(file_format):
    image = Image.new("P", (40, 40), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (20, 0, 40, 40))
    raw = encoded(image, file_format, transparency=0)
    assert colour_at(raw, 5, 5) == WHITE and colour_at(raw, 35, 5) == BLUE
    assert read_header(raw).flags == ("alpha-composited",)


@pytest.mark.row(34)
def test_a_palette_with_alpha_per_entry_is_mixed():
    image = Image.new("P", (40, 40), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (20, 0, 40, 40))
    raw = encoded(image, transparency=bytes([128, 255]))
    assert near(colour_at(raw, 5, 5), (255, 127, 127), 1) and colour_at(raw, 35, 5) == BLUE


@pytest.mark.row(34)
@pytest.mark.parametrize(
    ("depth", "row", "transparent", "left", "right"),
    [
        (1, bytes([255, 255, 255, 0, 0]), 0, WHITE, WHITE),
        (1, bytes([255, 255, 255, 0, 0]), 1, WHITE, BLACK),
        (2, bytes([0x55] * 5 + [0xAA] * 5), 1, WHITE, (170,) * 3),
        (2, bytes([0x55] * 5 + [0xAA] * 5), 2, (85,) * 3, WHITE),
        (4, bytes([0x33] * 10 + [0x44] * 10), 3, WHITE, (68,) * 3),
        (8, bytes([100] * 20 + [50] * 20), 100, WHITE, (50,) * 3),
        (16, struct.pack(">H", 0x1234) * 20 + struct.pack(">H", 0x12FF) * 20, 0x1234, WHITE, (18,) * 3),
    ],
)
def test_the_one_transparent_grey_of_a_png_counts_at_every_depth(depth, row, transparent, left, right):
    raw = png(40, 40, depth, 0, [row] * 40, before=chunk(b"tRNS", struct.pack(">H", transparent)))
    assert (colour_at(raw, 2, 2), colour_at(raw, 38, 2)) == (left, right)


@pytest.mark.row(34)
@pytest.mark.parametrize(("depth", "code"), [(8, ">BBB"), (16, ">HHH")])
def test_the_one_transparent_colour_of_a_png_counts_at_every_depth(depth, code):
    scale = 257 if depth == 16 else 1
    row = (
        struct.pack(code, 10 * scale, 20 * scale, 30 * scale) * 20
        + struct.pack(code, 10 * scale, 20 * scale, 40 * scale) * 20
    )
    raw = png(
        40, 40, depth, 2, [row] * 40, before=chunk(b"tRNS", struct.pack(">HHH", 10 * scale, 20 * scale, 30 * scale))
    )
    assert (colour_at(raw, 2, 2), colour_at(raw, 38, 2)) == (WHITE, (10, 20, 40))
