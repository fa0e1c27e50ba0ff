"""A thumbnail of a whole picture: what near copies are found by (features/near_copies.py)."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 16  # pixels: saving again, resizing and compressing hardly change a mean over a sixteenth of a side


def thumbnail_of(upright: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) uint8 RGB as means over a grid, in luma and chroma: (16, 16, 3) uint8 YCbCr."""
    small = Image.fromarray(upright).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.array(small.convert("YCbCr"))
