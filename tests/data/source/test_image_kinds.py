"""Kinds of images: rotation, frames, formats and profiles, rows 35 to 38 of the fault catalogue; judged by colours and
places.
"""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from PIL import Image

from dittool.data.source import formats
from dittool.data.source.images import (
    decode_image,
    open_image,
    read_header,
)
from tests.data.source.picture_files import (
    BLUE,
    GREEN,
    RED,
    STORED,
    WHITE,
    chunk,
    colour_at,
    encoded,
    exif_of,
    near,
    picture,
    png,
    refusal,
)

pytestmark = pytest.mark.usefixtures("warnings_are_errors")


# --- rows 35 to 38: rotation, frames, formats, profiles ---


def stored_for(orientation):
    width, height = (40, 60) if orientation >= 5 else (60, 40)
    image = Image.new("RGB", (width, height))
    for index, colour in enumerate(STORED[orientation]):
        left, top = index % 2 * width // 2, index // 2 * height // 2
        image.paste(colour, (left, top, left + width // 2, top + height // 2))
    return image


@pytest.mark.row(35)
@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
    ],
)
def test_every_orientation_comes_out_upright(file_format, options, orientation):
    raw = encoded(stored_for(orientation), file_format, exif=exif_of(orientation), **options)
    header, opened = read_header(raw), decode_image(raw)
    assert (header.width, header.height) == (60, 40) and opened.pixels.shape == (40, 60, 3)
    assert [
        near(opened.pixels[y, x].tolist(), colour, 6)
        for (x, y), colour in zip([(15, 10), (45, 10), (15, 30), (45, 30)], (RED, GREEN, BLUE, WHITE), strict=True)
    ] == [True] * 4
    assert ("exif-rotated" in header.flags) == (orientation != 1)


@pytest.mark.row(35)
@pytest.mark.parametrize("orientation", [0, 9, 99])
def test_other_orientations_mean_nothing(orientation):
    raw = encoded(picture(), "JPEG", exif=exif_of(orientation))
    assert read_header(raw) == read_header(encoded(picture(), "JPEG"))
    assert np.array_equal(decode_image(raw).pixels, decode_image(encoded(picture(), "JPEG")).pixels)


@pytest.mark.row(35)
def test_exif_behind_the_pixels_of_a_png_is_found_without_decoding():
    stored = np.asarray(stored_for(6))
    exif = chunk(b"eXIf", exif_of(6).tobytes()[6:])
    raw = png(40, 60, 8, 2, [row.tobytes() for row in stored], after=exif)
    assert read_header(raw).width == 60
    assert colour_at(raw, 15, 10) == RED and colour_at(raw, 45, 10) == GREEN


@pytest.mark.row(35)
@pytest.mark.parametrize(
    "exif", [b"garbage, not a directory", b"II*\0\xff\xff\xff\x7f", b"", b"MM\0*\0\0\0\x08\xff\xff\x01\x12"]
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_unreadable_exif_leaves_the_image_as_stored(file_format, exif):
    raw = encoded(picture(), file_format, exif=b"Exif\0\0" + exif)
    assert read_header(raw) == read_header(encoded(picture(), file_format))
    assert near(colour_at(raw, 10, 8), RED, 8)


@pytest.mark.row(35)
def test_size_and_flags_are_known_before_any_pixel_is_decoded():
    raw = encoded(stored_for(6), "PNG", exif=exif_of(6))
    start = raw.index(b"IDAT") + 4
    no_pixels = raw[:start] + b"\0" * (len(raw) - 16 - start) + raw[-16:]
    header = read_header(no_pixels)
    assert (header.width, header.height, header.flags) == (60, 40, ("exif-rotated",))
    assert refusal(no_pixels).reason == "damaged"


@pytest.mark.row(36)
@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_taken_and_flagged(file_format):
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, GREEN, BLUE)]
    raw = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert near(colour_at(raw, 20, 20), RED, 6)
    assert read_header(raw).flags == ("first-frame-only",)


@pytest.mark.row(37)
def test_a_wrong_suffix_does_not_matter(tmp_path):
    (tmp_path / "dog.jpg").write_bytes(encoded(picture(), "PNG"))
    assert open_image(tmp_path / "dog.jpg").pixels[8, 10].tolist() == list(RED)


@pytest.mark.row(37)
@pytest.mark.parametrize(
    "raw",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
        b"%PDF-1.7\n",
        b"8BPS\0\1" + b"\0" * 40,
        b"SIMPLE  =                    T" + b" " * 60,
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"\0\0\0\x1cftypisom\0\0\0\0",
        b"PK\3\4" + b"\0" * 30,
        b"\0\0\1\0\1\0",
    ],
)
def test_formats_off_the_list_are_refused_before_pillow_sees_them(raw, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    assert refusal(raw, read_header).reason == "unsupported-format"


@pytest.mark.row(37)
def test_only_the_decoder_of_the_first_bytes_is_started(monkeypatch):
    asked = []
    real = Image.open
    monkeypatch.setattr(
        Image, "open", lambda file, formats: asked.append(tuple(formats)) or real(file, formats=formats)
    )
    decode_image(encoded(picture(), "GIF"))
    assert asked == [("GIF",)]


def profile(description):
    return b"\0" * 128 + description


@pytest.mark.row(38)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_broken_profile_is_ignored_and_flagged_whatever_it_calls_itself(file_format):
    plain = encoded(picture(), file_format)
    for name in (b"Display P3", b"sRGB IEC61966-2.1"):
        odd = encoded(picture(), file_format, icc_profile=profile(name))
        assert read_header(odd).flags == ("icc-ignored",)
        assert np.array_equal(decode_image(odd).pixels, decode_image(plain).pixels)


@pytest.mark.parametrize(
    ("raw", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pillow-heif"),
        (b"\xff\x0a\0\0", "pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "pillow-jxl-plugin"),
    ],
)
def test_formats_of_optional_packages_name_the_package(raw, package, monkeypatch):
    monkeypatch.setattr(formats, "_extra_is_there", lambda _: False)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    error = refusal(raw, read_header)
    assert error.reason == "unsupported-format" and f"pip install {package}" in error.detail


def test_heic_is_read_where_its_package_is_installed():
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    # EXIF does not turn an image in this container: the container's own marks do, and the package follows them
    raw = encoded(picture(), "HEIF", quality=95, chroma=444, exif=exif_of(6))
    header, opened = read_header(raw), decode_image(raw)
    assert (header.width, header.height) == (60, 40) and opened.pixels.shape == (40, 60, 3) and header.flags == ()
    assert near(opened.pixels[10, 15].tolist(), RED, 8) and near(opened.pixels[30, 15].tolist(), BLUE, 8)


@pytest.mark.parametrize("size", [(60, 40), (64, 64), (256, 128), (333, 177), (1920, 1080)])
def test_jpeg_xl_is_read_where_its_package_is_installed_and_its_size_known_before(size):
    pytest.importorskip("pillow_jxl")
    raw = encoded(picture(*size), "JXL", lossless=True)
    assert formats.jxl_size(raw) == size
    assert colour_at(raw, 4, 4) == RED and read_header(raw).flags == ()


@pytest.mark.row(29)
def test_a_jpeg_xl_bomb_is_refused_before_its_decoder_sees_it(monkeypatch):
    monkeypatch.setattr(formats, "_extra_is_there", lambda _: True)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    # not small, height of 30 bits: 2^29 + 1, ratio 1:1
    bits = 0 | 3 << 1 | (1 << 29) << 3 | 1 << 33
    raw = b"\xff\x0a" + bits.to_bytes(8, "little")
    assert formats.jxl_size(raw) == (2**29 + 1,) * 2
    assert refusal(raw, read_header).reason == "too-large"


@pytest.mark.row(38)
@pytest.mark.parametrize(
    "before",
    [
        chunk(b"iCCP", b"big\0\0" + zlib.compress(b"\0" * 50_000_000)),
        chunk(b"iCCP", b"broken\0\0not zlib"),
        chunk(b"iCCP", b"x"),
    ],
    ids=["50 MB", "not compressed", "one byte"],
)
def test_huge_and_broken_profiles_are_not_inflated(before):
    raw = png(40, 40, 8, 0, [bytes([9] * 40)] * 40, before=before)
    assert read_header(raw).flags == ("icc-ignored",)
    assert colour_at(raw, 20, 20) == (9, 9, 9)


@pytest.mark.row(38)
@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"tEXt"])
def test_text_in_a_png_is_passed_over_however_large(name):
    content = {b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"tEXt": b"k\0"}[name]
    text = zlib.compress(b"a" * 80_000_000) if name != b"tEXt" else b"a" * 3_000_000
    raw = png(40, 40, 8, 0, [bytes([9] * 40)] * 40, before=chunk(name, content + text))
    assert colour_at(raw, 20, 20) == (9, 9, 9) and read_header(raw).flags == ()
