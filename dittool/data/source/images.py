"""Opening images that nobody has checked: what is safe and right becomes 8-bit RGB, everything else a reason why not.

The format is told from the first bytes and only that decoder is started; size and pixel format are judged from the
header, before any pixel is decoded. What a picture looks like in a browser is what training sees: upright, 16-bit
scaled, in the colours of sRGB, transparency over white. Facts that a user may want to know about a picture that is used
are its flags; they follow from the header alone.
"""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dittool.data.source import colours
from dittool.data.source.colours import LARGEST_PROFILE
from dittool.data.source.formats import ImageRefused, image_format, jxl_size
from dittool.geometry import Bucket, crop_box

LARGEST_FILE = 256 << 20  # bytes
LARGEST_IMAGE = 64_000_000  # pixels
SHORTEST_SIDE = 32  # pixels; less than this has nothing to say at any bucket's size
# longer side over shorter; at 4:1 the longest canonical bucket shows less than half of the picture
LARGEST_ASPECT = 4.0
BACKGROUND = (255, 255, 255)  # what shows through transparent pixels
RESAMPLING = Image.Resampling.LANCZOS

# H height, W width of the upright image; arrays are (H, W, 3) uint8 RGB.

_READ_MODES = frozenset(
    ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "YCbCr", "CMYK", "I;16", "I;16B", "I;16L", "I;16N")
)
_PNG_MODES = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))
_UPRIGHT = {  # EXIF orientation → what makes it upright; other values mean nothing and are ignored
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SRGB_GAMMA = 45455  # of a PNG's gAMA chunk
_SRGB_PRIMARIES = (0, 1, 2)  # by their number in ITU-T H.273: BT.709, or not said
_OTHER_TRANSFERS = (8, 16, 18)  # linear light, perceptual quantiser, hybrid log-gamma
_NO_PROFILE = b"?"
_ORIENTATION, _BITS, _PHOTOMETRIC = 0x0112, 258, 262  # EXIF and TIFF tags
# What Pillow's parsers raise on damaged files. Flipping and cutting bytes showed OSError, ValueError, IndexError,
# TypeError, struct.error, in AVIF RuntimeError; the rest stands in their code. Only calls into Pillow that parse are
# guarded with it.
_DAMAGE = (
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    struct.error,
)

# All that Pillow warns about is refused or flagged here; a line on stderr for each damaged file would bury the counts.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class ImageHeader:
    """What is known before a pixel is decoded. Sizes are of the upright image."""

    width: int
    height: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class OpenedImage:
    """A decoded, upright image."""

    pixels: np.ndarray  # (H, W, 3) uint8
    flags: tuple[str, ...]


def read_image_file(path: Path) -> bytes:
    """The file's bytes, when it is a regular file of acceptable size. Raises `ImageRefused`."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
            raise ImageRefused("unreadable", "not a regular file", str(path))
        if status.st_size > LARGEST_FILE:
            raise ImageRefused(
                "too-large", f"{status.st_size:,} bytes, an image file has at most {LARGEST_FILE:,}", str(path)
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageRefused("no-image", "no such file", str(path)) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageRefused(
            "unreadable", f"cannot be read: {getattr(error, 'strerror', None) or error}", str(path)
        ) from error


def read_header(raw: bytes) -> ImageHeader:
    """Upright size and flags of the image in a file's bytes, without decoding it. Raises `ImageRefused`."""
    return _open(raw).header


def decode_image(raw: bytes) -> OpenedImage:
    """The whole image in a file's bytes, upright, as 8-bit RGB over `BACKGROUND`. Raises `ImageRefused`."""
    opened = _open(raw)
    try:
        opened.image.load()
    except _DAMAGE as error:
        raise _damaged(error) from error
    pixels = _rgb_pixels(opened)
    height, width = pixels.shape[:2]
    if (width, height) != (opened.header.width, opened.header.height):
        raise ImageRefused(
            "damaged", f"the header says {opened.header.width}x{opened.header.height}, the pixels are {width}x{height}"
        )
    return OpenedImage(pixels, opened.header.flags)


def open_image(path: Path) -> OpenedImage:
    """`decode_image` of a file. Raises `ImageRefused` naming the file."""
    try:
        return decode_image(read_image_file(path))
    except ImageRefused as refused:
        raise ImageRefused(refused.reason, refused.detail, str(path)) from refused


def pixels_of(image: Image.Image) -> np.ndarray:
    """An image that is open already, as a file of it would be read: (H, W, 3) uint8, upright, over `BACKGROUND`.
    Raises `ImageRefused`.
    """
    upright, raw = ImageOps.exif_transpose(image), io.BytesIO()
    if upright.mode == "CMYK" and colours.flag_of(upright.info.get("icc_profile") or b"", "CMYK") == colours.CONVERTED:
        upright = colours.converted(upright, upright.info["icc_profile"])
    (upright if upright.mode in _PNG_MODES else upright.convert("RGB")).save(raw, "PNG")
    return decode_image(raw.getvalue()).pixels


def fit_to_bucket(pixels: np.ndarray, bucket: Bucket) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The image (H, W, 3) resized to cover the bucket and cropped at the centre, in one resampling.

    Returns the bucketed image (bucket.height, bucket.width, 3) uint8 and the crop box (left, top, right, bottom) in
    pixels of the image that was given. The same pixels give the same result.
    """
    height, width = pixels.shape[:2]
    box = crop_box(width, height, bucket)
    resized = Image.fromarray(pixels).resize((bucket.width, bucket.height), RESAMPLING, box=box)
    return np.array(resized), box


@dataclass(frozen=True)
class _Opened:
    image: Image.Image  # header read, pixels not
    header: ImageHeader
    transpose: Image.Transpose | None  # what makes the decoded pixels upright
    profile: bytes  # what makes them sRGB; empty when nothing needs to


def _open(raw: bytes) -> _Opened:
    file_format = image_format(raw)
    flags: list[str] = []
    profile = b""
    if file_format == "PNG":
        raw, profile, flags = _plain_png(raw)
    elif file_format == "JXL":
        _require_few_pixels(*jxl_size(raw))
    try:
        image = Image.open(io.BytesIO(raw), formats=(file_format,))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageRefused("too-large", f"{error}; the limit here is {LARGEST_IMAGE:,} pixels") from error
    except _DAMAGE as error:
        raise _damaged(error) from error
    if file_format == "PNG":
        _scale_transparent_colour(image, depth=raw[24])
    width, height = image.size
    _require_few_pixels(width, height)
    _require_known_pixels(image)
    profile = profile or image.info.get("icc_profile") or b""
    orientation = _orientation(image)
    try:
        flags += _flags(image, profile)
    except _DAMAGE as error:
        raise _damaged(error) from error
    flags += ["exif-rotated"] * (orientation in _UPRIGHT)
    # Pillow turns TIFF itself, size and pixels, and the readers of HEIC and JPEG XL theirs
    transpose = None if file_format in ("TIFF", "HEIF", "JXL") else _UPRIGHT.get(orientation)
    if transpose is not None and orientation >= 5:
        width, height = height, width
    _require_usable_size(width, height)
    if file_format in ("AVIF", "HEIF") and not profile and _has_other_colours(raw):
        flags.append(colours.IGNORED)
    return _Opened(
        image,
        ImageHeader(width, height, tuple(dict.fromkeys(flags))),
        transpose,
        profile if colours.CONVERTED in flags else b"",
    )


def _require_few_pixels(width: int, height: int) -> None:
    if width * height > LARGEST_IMAGE:
        raise ImageRefused(
            "too-large", f"{width}x{height} is {width * height:,} pixels, the limit is {LARGEST_IMAGE:,}"
        )


_PNG_CHUNKS = frozenset((b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"))  # what a still picture needs


def _plain_png(raw: bytes) -> tuple[bytes, bytes, list[str]]:
    """The PNG without text, colour profile and animation, its EXIF ahead of the pixels; its colour profile; and the
    flags that these give.

    Pillow would inflate compressed text and profiles (row 38) and decode all pixels to find EXIF that stands behind
    them. It also reads a PNG that lacks its end chunk without a word.
    """
    kept, exif, profile, flags = [raw[:8]], b"", b"", []
    position, name, is_srgb, gamma = 8, b"", False, _SRGB_GAMMA
    while position < len(raw) and name != b"IEND":
        length, name = int.from_bytes(raw[position : position + 4], "big"), raw[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(raw) and not b"IEND".startswith(name):
            raise ImageRefused("truncated", f"chunk {name.decode('latin-1')!a} ends at byte {end:,} of {len(raw):,}")
        if name == b"eXIf":
            exif = exif or raw[position:end]
        elif name in _PNG_CHUNKS:
            kept.append(raw[position:end])
        elif name == b"acTL":
            flags.append("first-frame-only")
        elif name == b"iCCP":
            profile = profile or _inflated_profile(raw[position + 8 : end - 4])
        elif name == b"sRGB":
            is_srgb = True
        elif name == b"gAMA" and length == 4:
            gamma = int.from_bytes(raw[position + 8 : position + 12], "big")
        elif name == b"cICP" and (raw[position + 8] not in _SRGB_PRIMARIES or raw[position + 9] in _OTHER_TRANSFERS):
            flags.append(colours.IGNORED)
        position = end
    if name != b"IEND" or position > len(raw):
        flags.append("no-end-chunk")
    if not profile and not is_srgb and abs(gamma - _SRGB_GAMMA) > _SRGB_GAMMA // 20:
        flags.append(colours.IGNORED)
    kept.insert(2, exif)  # behind IHDR
    return b"".join(kept), profile, flags


def _inflated_profile(chunk: bytes) -> bytes:
    """The colour profile in an iCCP chunk: name, NUL, method, deflated profile. Of one that is too large or cannot be
    inflated, something that is no profile.
    """
    try:
        return zlib.decompressobj().decompress(chunk[chunk.find(b"\0") + 2 :], LARGEST_PROFILE + 1) or _NO_PROFILE
    except zlib.error:
        return _NO_PROFILE


def _scale_transparent_colour(image: Image.Image, depth: int) -> None:
    """Brings the one transparent colour of a PNG with `depth` bits to the 8 bits that Pillow compares it with,
    which Pillow does not do.
    """
    colour = image.info.get("transparency")
    if isinstance(colour, int) and image.mode == "L" and depth < 8:
        image.info["transparency"] = colour * 255 // (2**depth - 1)
    elif isinstance(colour, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _require_known_pixels(image: Image.Image) -> None:
    if image.mode == "F":
        raise ImageRefused(
            "float-pixels", "floating-point pixels, whose range is not known; save the image with 8 bits a channel"
        )
    tags: Any = getattr(image, "tag_v2", {})
    odd_grey = image.mode.startswith("I;16") and (tags.get(_BITS, (16,)) != (16,) or tags.get(_PHOTOMETRIC, 1) != 1)
    if image.mode not in _READ_MODES or odd_grey:
        bits = f" with {tags[_BITS]} bits" if _BITS in tags else ""
        raise ImageRefused(
            "pixel-format",
            f"pixels of kind {image.mode}{bits}, whose range is not known; save the image with 8 bits a channel",
        )


def _require_usable_size(width: int, height: int) -> None:
    if min(width, height) < SHORTEST_SIDE:
        raise ImageRefused("too-small", f"{width}x{height}, the shorter side has at least {SHORTEST_SIDE} pixels")
    aspect = max(width, height) / min(width, height)
    if aspect > LARGEST_ASPECT:
        raise ImageRefused("extreme-aspect", f"{width}x{height} is {aspect:.4g}:1, the limit is {LARGEST_ASPECT:g}:1")


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation; 1, upright, when there is none or it cannot be read."""
    try:
        # The base class's method: PNG's own would decode all pixels first, and our PNGs have their EXIF in front.
        return Image.Image.getexif(image).get(_ORIENTATION, 1)
    except _DAMAGE:
        return 1


def _has_other_colours(raw: bytes) -> bool:
    """Whether an image in the ISO container names primaries other than sRGB's, or a transfer that is far from it, by
    number and not by a profile.
    """
    place = raw.find(b"colrnclx")
    primaries, transfer = raw[place + 8 : place + 10], raw[place + 10 : place + 12]
    return place >= 0 and (
        int.from_bytes(primaries, "big") not in _SRGB_PRIMARIES or int.from_bytes(transfer, "big") in _OTHER_TRANSFERS
    )


def _flags(image: Image.Image, profile: bytes) -> list[str]:
    facts = {
        "alpha-composited": image.has_transparency_data,
        "cmyk-converted": image.mode == "CMYK",
        "16-bit-reduced": image.mode.startswith("I;16")
        or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())),
        "first-frame-only": getattr(image, "is_animated", False),
    }
    flags = [flag for flag, holds in facts.items() if holds]
    of_profile = colours.flag_of(profile, image.mode) if profile else ""
    return [*flags, of_profile] if of_profile else flags


def _rgb_pixels(opened: _Opened) -> np.ndarray:
    image = opened.image
    if image.mode.startswith("I;16"):
        image = _eight_bit_grey(image)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if opened.profile:
        image = colours.converted(image if image.mode == "CMYK" else image.convert("RGB"), opened.profile)
    if alpha is not None:
        image = image.convert("RGB")
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image)
    image = image.convert("RGB")
    if opened.transpose is not None:
        image = image.transpose(opened.transpose)
    return np.array(image)


def _eight_bit_grey(image: Image.Image) -> Image.Image:
    """16-bit grey by its high byte (Pillow's own conversion clips: 40000 becomes 255); one value may stand for
    transparent.
    """
    values = np.asarray(image)  # (H, W) uint16
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _damaged(error: Exception) -> ImageRefused:
    text = str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        text = "the header is damaged or cut off"
    reason = "truncated" if "truncated" in text.lower() else "damaged"
    # escaped: the file may have put bytes of its own into it
    return ImageRefused(reason, ascii(text)[1:-1] or type(error).__name__)
