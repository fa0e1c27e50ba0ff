"""Colour profiles: what makes of an image's numbers the colours of sRGB, as a browser shows them.

LittleCMS converts, through Pillow. Whether a profile is sRGB is measured, not read from its name: one that leaves the
colours where they are changes nothing. A profile that cannot be read, or is not for this kind of pixels, is ignored,
and the image says so.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

LARGEST_PROFILE = 4 << 20  # bytes; those of printing inks have up to three million
CONVERTED, IGNORED = "icc-converted", "icc-ignored"  # flags
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile → Pillow's mode of its pixels
_SAME = 2  # levels of 255 by which sRGB profiles of different makers differ
_GREY_MODES = frozenset(("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I;16N"))
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_INTENT = ImageCms.Intent.PERCEPTUAL


def flag_of(profile: bytes, mode: str) -> str:
    """What is done with the profile of an image of Pillow's `mode`: `CONVERTED`, `IGNORED`, or "" when it is sRGB."""
    if len(profile) > LARGEST_PROFILE:
        return IGNORED
    space, is_srgb = _judged(profile)
    fits = {"RGB": mode != "CMYK", "GRAY": mode in _GREY_MODES, "CMYK": mode == "CMYK"}
    return IGNORED if not fits.get(space) else "" if is_srgb else CONVERTED


def converted(image: Image.Image, profile: bytes) -> Image.Image:
    """The image (RGB, L or CMYK, without transparency) in sRGB; `flag_of` its profile is `CONVERTED`."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return _to_srgb(image, source, _space(source))


@lru_cache(maxsize=16)
def _judged(profile: bytes) -> tuple[str, bool]:
    """(colour space, whether it is sRGB); ("", False) when LittleCMS cannot use it."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = _space(source)
        if space == "GRAY":
            ramp = np.arange(256, dtype=np.uint8)[None]
            plain = Image.fromarray(ramp)
        elif space == "RGB":
            levels = np.linspace(0, 255, 9).astype(np.uint8)
            cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
            plain = Image.fromarray(cube)
        else:
            plain = Image.new("CMYK", (1, 1))
        shown = np.asarray(_to_srgb(plain, source, space)).astype(np.int16)
        moved = int(np.abs(shown - np.asarray(plain.convert("RGB"))).max())
        # The tables of a perceptual sRGB profile are meant for the same screen, and move colours all the same.
        named = "sRGB" in ImageCms.getProfileDescription(source) and not source.profile.is_matrix_shaper
        return space, space != "CMYK" and (moved <= _SAME or named)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return "", False


def _space(profile: ImageCms.ImageCmsProfile) -> str:
    return str(profile.profile.xcolor_space).strip()


def _to_srgb(image: Image.Image, source: ImageCms.ImageCmsProfile, space: str) -> Image.Image:
    mode = _MODES[space]
    pixels = image if image.mode == mode else image.convert(mode)
    shown = ImageCms.applyTransform(pixels, ImageCms.buildTransform(source, _SRGB, mode, "RGB", _INTENT))
    assert shown is not None  # it is, for all but conversions in place
    return shown
