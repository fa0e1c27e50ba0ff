"""Which format the bytes of an image are in, told from the first of them, so that only that decoder is started. Formats
that need a package of their own are named with it; what is never opened is refused by name.
"""

from __future__ import annotations

import importlib
from functools import cache

from PIL import features

from dittool.errors import BadDataError

_FIRST_BYTES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cJXL ", "JXL"),
    (b"\xff\x0a", "JXL"),
)
_NEVER_OPENED = (
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"8BPS", "a Photoshop file"),
    (b"SIMPLE  =", "a FITS file"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\1\0", "an icon"),
    (b"PK\3\4", "a zip archive"),
)
_READ = "JPEG, PNG, WebP, AVIF, GIF, BMP and TIFF"
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_EXTRAS = {  # Pillow's name of a format → (what people call it, module, package)
    "HEIF": ("HEIC", "pillow_heif", "pillow-heif"),
    "JXL": ("JPEG XL", "pillow_jxl", "pillow-jxl-plugin"),
}
_MOST_BRANDS = 64
# width : height, by the code in a JPEG XL header
_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


class ImageRefused(BadDataError):
    """An image that cannot be used: `reason` is a short code for counting, `detail` says the same in words and
    numbers.
    """

    def __init__(self, reason: str, detail: str, where: str = "") -> None:
        super().__init__(
            f"{where}: {detail}" if where else f"image: {detail}", "replace the image, or take it out of the source"
        )
        self.reason, self.detail = reason, detail


def image_format(raw: bytes) -> str:
    """Pillow's name of the format, whose decoder is there. Raises `ImageRefused`."""
    for first, name in _FIRST_BYTES:
        if raw.startswith(first):
            return _with_its_decoder(name)
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        promised = int.from_bytes(raw[4:8], "little") + 8
        if promised > len(raw):
            raise ImageRefused("truncated", f"{len(raw):,} of {promised:,} bytes")
        return "WEBP"
    if not raw:
        raise ImageRefused("not-an-image", "the file is empty (0 bytes)")
    if raw.startswith(b"version https://git-lfs"):
        raise ImageRefused("not-an-image", "a git-lfs pointer; fetch the picture itself with: git lfs pull")
    for first, name in _NEVER_OPENED:
        if raw.startswith(first):
            raise ImageRefused("unsupported-format", f"{name}; read are {_READ}")
    if raw[4:8] == b"ftyp":
        return _with_its_decoder(_format_of_brands(raw))
    if raw.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise ImageRefused("not-an-image", "HTML, XML or SVG text")
    raise ImageRefused("not-an-image", f"starts with {raw[:8].hex(' ')}, which is none of {_READ}")


def jxl_size(raw: bytes) -> tuple[int, int]:
    """(width, height) that the header of a JPEG XL image promises; its decoder would decode all pixels to say so.
    Raises `ImageRefused`.
    """
    stream = _jxl_codestream(raw)
    bits, position = int.from_bytes(stream[2:32], "little"), 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        return (bits >> (position - count)) & ((1 << count) - 1)

    def side() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    small = bool(take(1))
    height, ratio = side(), take(3)
    width = side() if ratio == 0 else height * _JXL_RATIOS[ratio - 1][0] // _JXL_RATIOS[ratio - 1][1]
    return width, height


def _format_of_brands(raw: bytes) -> str:
    """The format of a file in the ISO container, from the brands that its first box names."""
    end = min(int.from_bytes(raw[:4], "big"), len(raw), 16 + 4 * _MOST_BRANDS)
    major, brands = raw[8:12], {raw[start : start + 4] for start in range(16, end, 4)}
    for known, name in ((_AVIF_BRANDS, "AVIF"), (_HEIF_BRANDS, "HEIF")):
        if major in known and not (name == "HEIF" and brands & _AVIF_BRANDS):
            return name
    if brands & _AVIF_BRANDS:
        return "AVIF"
    raise ImageRefused(
        "unsupported-format", f"{major.decode('latin-1')!a} container, a video or another format; read are {_READ}"
    )


def _with_its_decoder(name: str) -> str:
    if name == "AVIF" and not features.check("avif"):
        raise ImageRefused("unsupported-format", "AVIF, which this build of Pillow does not read: install pillow>=12.3")
    if name in _EXTRAS and not _extra_is_there(name):
        called, _, package = _EXTRAS[name]
        raise ImageRefused("unsupported-format", f"{called}, which needs a package: pip install {package}")
    return name


@cache
def _extra_is_there(name: str) -> bool:
    """Whether the package that reads a format is installed; it joins Pillow when it is imported."""
    try:
        module = importlib.import_module(_EXTRAS[name][1])
    except ImportError:
        return False
    if name == "HEIF":
        module.register_heif_opener()
    return True


def _jxl_codestream(raw: bytes) -> bytes:
    """The first bytes of the image itself, which may lie in boxes."""
    if raw.startswith(b"\xff\x0a"):
        return raw[:32]
    position = 0
    while position + 8 <= len(raw):
        size, kind = int.from_bytes(raw[position : position + 4], "big"), raw[position + 4 : position + 8]
        start = position + 8
        if size == 1:
            size, start = int.from_bytes(raw[start : start + 8], "big"), start + 8
        if kind in (b"jxlc", b"jxlp"):
            start += 4 * (kind == b"jxlp")  # its number among the parts
            if raw[start : start + 2] == b"\xff\x0a":
                return raw[start : start + 32]
            break
        if size < 8:
            break
        position += size
    raise ImageRefused("damaged", "a JPEG XL container without an image in it")
