"""Pictures of a validation: strips on disk at full size, small ones for the report, one sheet to look at first."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LONGEST_THUMB = 256  # pixels
_DIFFERENCE_GAIN = 2
_CELL, _GAP, _LINE = 112, 6, 20  # of the contact sheet, in pixels
_SHEET_WIDTH = 9  # cells
_PAPER, _INK = (250, 250, 248), (40, 40, 40)


def difference(result: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Where two images (H, W, 3) uint8 differ: black where they agree, twice the absolute difference elsewhere."""
    magnified = np.abs(result.astype(np.int16) - truth.astype(np.int16)) * _DIFFERENCE_GAIN
    return np.minimum(magnified, 255).astype(np.uint8)


def strip_png(images: Sequence[np.ndarray]) -> bytes:
    """Images of one size (H, W, 3) side by side, as a PNG."""
    return _encoded(Image.fromarray(np.concatenate(images, axis=1)), "PNG")


def strip_cells(path: Path, width: int, height: int, count: int) -> list[np.ndarray] | None:
    """The first `count` images (height, width, 3) of a strip on disk; None when it is not there, not of that size,
    or no picture.
    """
    try:
        with Image.open(path) as strip:
            if strip.height != height or strip.width < count * width:
                return None
            pixels = np.asarray(strip.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    return [pixels[:, i * width : (i + 1) * width] for i in range(count)]


def thumb(pixels: np.ndarray) -> Image.Image:
    """A picture of at most 256 pixels a side, for the report."""
    image = Image.fromarray(pixels)
    image.thumbnail((_LONGEST_THUMB, _LONGEST_THUMB), Image.Resampling.LANCZOS)
    return image


def data_uri(image: Image.Image) -> str:
    """The picture as text that stands in a page."""
    return "data:image/webp;base64," + base64.b64encode(_encoded(image, "WEBP", quality=88, method=4)).decode()


def png_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def contact_sheet(sections: Sequence[tuple[str, Sequence[Sequence[Image.Image]]]]) -> bytes:
    """One PNG: under each title its groups of pictures, a group never broken over two lines."""
    titles: list[tuple[str, tuple[int, int]]] = []
    placed: list[tuple[Image.Image, tuple[int, int]]] = []
    y = _GAP
    for title, groups in sections:
        titles.append((title, (_GAP, y)))
        y, column = y + _LINE, 0
        for group in groups:
            if column and column + len(group) > _SHEET_WIDTH:
                y, column = y + _CELL + _GAP, 0
            placed += [(image, (_GAP + (column + i) * (_CELL + _GAP), y)) for i, image in enumerate(group)]
            column += len(group)
        y += _CELL + 3 * _GAP
    sheet = Image.new("RGB", (_GAP + _SHEET_WIDTH * (_CELL + _GAP), y), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for title, corner in titles:
        pen.text(corner, title, fill=_INK, font=font)
    for image, (left, top) in placed:
        small = image.copy()
        small.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (_CELL - small.width) // 2, top + (_CELL - small.height) // 2))
    return _encoded(sheet, "PNG")


def _encoded(image: Image.Image, kind: str, **settings: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()
