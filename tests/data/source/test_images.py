"""Opening images: rows 27 to 31 and 35 to 38 of the fault catalogue, judged by colours and places."""

from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from dittool.data.source.images import (
    LARGEST_IMAGE,
    ImageRefused,
    decode_image,
    open_image,
    read_header,
    read_image_file,
)
from dittool.errors import BadDataError
from tests.data.source.picture_files import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    chunk,
    encoded,
    near,
    picture,
    png,
    refusal,
)

pytestmark = pytest.mark.usefixtures("warnings_are_errors")


# --- what is read ---


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 95}),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    ],
)
def test_every_format_of_the_allow_list_gives_its_pixels(file_format, options):
    raw = encoded(picture(), file_format, **options)
    opened, header = decode_image(raw), read_header(raw)
    assert opened.pixels.shape == (40, 60, 3) and opened.pixels.dtype == np.uint8
    assert (header.width, header.height) == (60, 40) and opened.flags == header.flags == ()
    for (x, y), colour in {(10, 8): RED, (50, 8): GREEN, (10, 32): BLUE, (50, 32): WHITE}.items():
        assert near(opened.pixels[y, x].tolist(), colour, 6)


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr"])
def test_every_common_kind_of_pixel_becomes_rgb(mode):
    image = picture().convert(mode)
    expected = np.asarray(image.convert("RGB"))
    raw = encoded(image, "TIFF" if mode == "YCbCr" else "PNG")
    assert np.abs(decode_image(raw).pixels.astype(int) - expected).max() <= 2


def test_paths_are_read_and_errors_name_them(tmp_path):
    path = tmp_path / "dog.png"
    path.write_bytes(encoded(picture()))
    assert open_image(path).pixels.shape == (40, 60, 3)
    path.write_bytes(b"<html>")
    error = refusal(path, open_image)
    assert (
        isinstance(error, BadDataError) and str(path) in error.message and error.reason == "not-an-image" and error.hint
    )


def test_files_that_are_not_there_or_not_regular_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(tmp_path / "missing.png", read_image_file).reason == "no-image"
    assert refusal(tmp_path / "pipe.png", read_image_file).detail == "not a regular file"
    assert refusal(tmp_path, read_image_file).reason == "unreadable"


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(1 << 40)  # no byte of it exists
    assert refusal(tmp_path / "huge.png", read_image_file).reason == "too-large"


# --- rows 27 to 31: not images, cut off, bombs, bad sizes ---


@pytest.mark.row(27)
@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", "empty (0 bytes)"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"\n <svg xmlns=", "SVG"),
        (b"just words", "6a 75 73 74"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0" * 64, "00 00"),
    ],
)
def test_what_is_no_image_is_refused_and_says_what_it_is(raw, word):
    error = refusal(raw, read_header)
    assert error.reason == "not-an-image" and word in error.detail


@pytest.mark.row(28)
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
    ],
)
@pytest.mark.parametrize("kept", [0.95, 0.6])
def test_a_cut_off_body_is_refused_when_it_is_decoded(file_format, options, kept):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
    raw = encoded(noise, file_format, **options)
    error = refusal(raw[: int(len(raw) * kept)])
    assert error.reason == "truncated", error.detail


@pytest.mark.row(28)
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_formats_that_tell_their_length_are_found_cut_without_decoding(file_format):
    raw = encoded(picture(), file_format)
    error = refusal(raw[: len(raw) * 3 // 4], read_header)
    assert error.reason == "truncated" and f"{len(raw) * 3 // 4:,}" in error.detail


@pytest.mark.row(28)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_file_cut_anywhere_is_refused_or_whole_and_never_anything_else(file_format):
    whole = decode_image(encoded(picture(), file_format)).pixels
    raw = encoded(picture(), file_format)
    for length in range(0, len(raw), max(len(raw) // 60, 1)):
        try:
            assert np.array_equal(decode_image(raw[:length]).pixels, whole), length
        except ImageRefused as error:
            assert error.reason in ("truncated", "damaged", "not-an-image")


@pytest.mark.row(28)
@pytest.mark.parametrize("missing", [1, 4, 8, 11, 12])
def test_a_png_that_lacks_only_its_end_chunk_is_read_and_flagged(missing):
    raw = encoded(picture())
    opened = decode_image(raw[:-missing])
    assert opened.flags == ("no-end-chunk",)
    assert np.array_equal(opened.pixels, decode_image(raw).pixels)


@pytest.mark.row(28)
def test_a_png_whose_pixels_end_at_a_chunk_boundary_is_refused():
    rows = zlib.compress(b"".join(b"\0" + bytes(range(120)) for _ in range(40)), 0)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 8, 2, 0, 0, 0))
    half = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows[:2000])
    for raw in (half, half + chunk(b"IEND")):
        assert refusal(raw).reason == "truncated"


@pytest.mark.row(28)
def test_pillow_is_never_told_to_accept_what_is_cut_off():
    decode_image(encoded(picture(), "JPEG"))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def bomb_png(width, height):
    return png(width, height, 8, 2, [b""])


@pytest.mark.row(29)
@pytest.mark.parametrize("size", [(8001, 8000), (10000, 10000), (20000, 20000)])
def test_an_image_above_the_limit_is_refused_from_its_header(size):
    error = refusal(bomb_png(*size), read_header)
    assert error.reason == "too-large" and f"{LARGEST_IMAGE:,}" in error.detail


@pytest.mark.row(29)
def test_the_limit_itself_passes_and_its_numbers_are_told():
    assert read_header(bomb_png(8000, 8000)).width == 8000
    assert (
        refusal(bomb_png(8001, 8000), read_header).detail == "8001x8000 is 64,008,000 pixels, the limit is 64,000,000"
    )


@pytest.mark.row(30)
@pytest.mark.parametrize("file_format", ["PNG", "GIF", "BMP"])
def test_a_header_of_the_largest_size_is_refused(file_format):
    raw = {
        "PNG": bomb_png(2**31 - 1, 2**31 - 1),
        "GIF": b"GIF89a" + struct.pack("<HH", 65535, 65535) + encoded(picture(), "GIF")[10:],
        "BMP": encoded(picture(), "BMP")[:18]
        + struct.pack("<ii", 2**31 - 1, 2**31 - 1)
        + encoded(picture(), "BMP")[26:],
    }[file_format]
    assert refusal(raw, read_header).reason == "too-large"


@pytest.mark.row(31)
def test_no_width_at_all_is_refused():
    assert refusal(png(0, 40, 8, 0, [b""]), read_header).reason in ("damaged", "too-small")


@pytest.mark.row(31)
@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((1, 1), "too-small"),
        ((1, 4000), "too-small"),
        ((31, 31), "too-small"),
        ((400, 31), "too-small"),
        ((161, 40), "extreme-aspect"),
        ((40, 161), "extreme-aspect"),
    ],
)
def test_too_small_and_too_long_images_are_refused_with_their_size(size, reason):
    error = refusal(encoded(Image.new("RGB", size)), read_header)
    assert error.reason == reason and f"{size[0]}x{size[1]}" in error.detail


@pytest.mark.row(31)
@pytest.mark.parametrize("size", [(32, 32), (160, 40), (40, 160)])
def test_the_smallest_and_the_longest_allowed_pass(size):
    header = read_header(encoded(Image.new("RGB", size)))
    assert (header.width, header.height) == size


def test_details_never_carry_control_characters_of_the_file():
    for raw in (b"\x1b[31m" + b"x" * 40, b"\0\0\0\x18ftyp\x1b[2J\0\0", b"\x89PNG\r\n\x1a\n\0\xff\0\0\x1b[2J\0\0\0\0"):
        assert refusal(raw).detail.isprintable()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_flipped_bytes_give_an_image_or_a_refusal_and_nothing_else(file_format):
    random = np.random.default_rng(7)
    raw = bytearray(encoded(picture(), file_format))
    for _ in range(150):
        damaged = bytearray(raw)
        for position in random.integers(0, len(raw), 3):
            damaged[position] = random.integers(0, 256)
        try:
            opened = decode_image(bytes(damaged))
        except ImageRefused as error:
            assert error.reason and error.detail
        else:
            header = read_header(bytes(damaged))
            assert opened.pixels.shape == (header.height, header.width, 3)
