"""Image files for the tests, well-formed and not, built in memory; and what reading them gives."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dittool.data.source.images import ImageRefused, decode_image

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)

# What a file with each orientation holds so that it looks like `picture()`: the quarters as stored, row by row.
STORED = {
    1: (RED, GREEN, BLUE, WHITE),
    2: (GREEN, RED, WHITE, BLUE),
    3: (WHITE, BLUE, GREEN, RED),
    4: (BLUE, WHITE, RED, GREEN),
    5: (RED, BLUE, GREEN, WHITE),
    6: (GREEN, WHITE, RED, BLUE),
    7: (WHITE, GREEN, BLUE, RED),
    8: (BLUE, RED, WHITE, GREEN),
}
ORIENTATION = 0x0112


def picture(width=60, height=40):
    """Quarters, row by row: red, green, blue, white."""
    image = Image.new("RGB", (width, height), WHITE)
    for colour, column, row in ((RED, 0, 0), (GREEN, 1, 0), (BLUE, 0, 1)):
        image.paste(
            colour, (column * width // 2, row * height // 2, (column + 1) * width // 2, (row + 1) * height // 2)
        )
    return image


def encoded(image, file_format="PNG", **options):
    """The image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def chunk(name, content=b""):
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, depth, kind, rows, before=b"", after=b""):
    """A PNG written by hand. kind: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND")


def grey16_tiff(value, bits=16, photometric=1):
    """40x40 of one 16-bit value; `bits` and `photometric` as the tags say."""
    entries = [
        (256, 3, 1, 40),
        (257, 3, 1, 40),
        (258, 3, 1, bits),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 3, 1, 40),
        (279, 4, 1, 3200),
    ]
    directory = (
        struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        + struct.pack("<I", 0)
    )
    return b"II*\0" + struct.pack("<I", 8 + 3200) + struct.pack("<H", value) * 1600 + directory


def big_endian_grey16_tiff(value):
    """40x40 of one 16-bit value, the high byte first."""
    return encoded(Image.fromarray(np.full((40, 40), value, dtype=">u2")), "TIFF")


def exif_of(orientation):
    """EXIF data that hold an orientation and nothing else."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


# What reading them gives


def colour_at(raw, x, y):
    return tuple(decode_image(raw).pixels[y, x].tolist())


def near(colour, other, tolerance):
    return max(abs(one - two) for one, two in zip(colour, other, strict=True)) <= tolerance


def refusal(raw, judge=decode_image):
    with pytest.raises(ImageRefused) as caught:
        judge(raw)
    return caught.value
