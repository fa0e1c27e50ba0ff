"""Patches stored in the wrong place, as faulty programs did it: encoders that show all their tokens, and arrangements
of these.

Used by the planted older sets and by tests/bench/audit_power.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dittool.encoders.image import DinoEncoder, load_image_encoder
from dittool.geometry import encoder_input_size, patch_grid


@dataclass(frozen=True)
class Eyes:
    """An image encoder that shows all its tokens."""

    name: str
    patch_size: int
    registers: int
    tokens: Callable[[np.ndarray], np.ndarray]  # pixels (H, W, 3) uint8 → (1 + registers + N, C)

    def grid(self, pixels: np.ndarray) -> tuple[int, int]:
        return patch_grid(pixels.shape[1], pixels.shape[0], self.patch_size)


def eyes_of(encoder: DinoEncoder) -> Eyes:
    return Eyes(
        encoder.card.id,
        encoder.patch_size,
        encoder.registers,
        lambda pixels: encoder._tokens(pixels[None])[0].numpy(),
    )


def builtin_eyes() -> Eyes:
    return eyes_of(load_image_encoder("builtin:dinov3", "fp32"))


def colour_eyes(patch_size: int = 16, width: int = 64) -> Eyes:
    """No network: the mean colours of a patch's four quarters, mixed by fixed weights. Knows of each patch what
    stands there, and nothing else.
    """
    chance = np.random.default_rng(0)
    mix, registers = chance.normal(size=(12, width)), chance.normal(size=(5, width))

    def tokens(pixels: np.ndarray) -> np.ndarray:
        columns, rows = (
            side // patch_size for side in encoder_input_size(pixels.shape[1], pixels.shape[0], patch_size)
        )
        half = Image.fromarray(pixels).resize((2 * columns, 2 * rows), Image.Resampling.BOX)
        quarters = (
            np.asarray(half, np.float32)
            .reshape(rows, 2, columns, 2, 3)
            .transpose(0, 2, 1, 3, 4)
            .reshape(rows * columns, 12)
            / 128
            - 1
        )
        whole = quarters.mean(axis=0) @ mix
        return np.concatenate([registers + 0.3 * whole, quarters @ mix]).astype(np.float32)

    return Eyes("patch colours", patch_size, 4, tokens)


def clean(eyes: Eyes, pixels: np.ndarray) -> np.ndarray:
    return eyes.tokens(pixels)[1 + eyes.registers :]


def registers_as_patches(eyes: Eyes, pixels: np.ndarray) -> np.ndarray:
    """The slice behind CLS, as long as the grid: the registers come first, and as many patches are lost at the end."""
    return eyes.tokens(pixels)[1 : -eyes.registers]


def cls_as_patch(eyes: Eyes, pixels: np.ndarray) -> np.ndarray:
    """A program that knew of registers, and forgot CLS."""
    return eyes.tokens(pixels)[[0, *range(1 + eyes.registers, len(eyes.tokens(pixels)) - 1)]]


def centre_crop(eyes: Eyes, pixels: np.ndarray) -> np.ndarray:
    """An image processor's habit: 224 of 256."""
    height, width = pixels.shape[:2]
    top, left = height // 16, width // 16
    return clean(eyes, _resized(pixels[top : height - top, left : width - left], (width, height)))


def mirrored(eyes: Eyes, pixels: np.ndarray) -> np.ndarray:
    """A flip that only one of the encoders saw."""
    return clean(eyes, np.ascontiguousarray(pixels[:, ::-1]))


def transposed(eyes: Eyes, pixels: np.ndarray) -> np.ndarray:
    """The grid written column by column."""
    rows, columns = eyes.grid(pixels)
    return clean(eyes, pixels).reshape(rows, columns, -1).swapaxes(0, 1).reshape(rows * columns, -1)


def stale_grid(eyes: Eyes, pixels: np.ndarray) -> np.ndarray:
    """Features of an older encoder of patch 14, cut to the number that patch 16 has. `eyes` are of patch 16."""
    rows, columns = patch_grid(pixels.shape[1], pixels.shape[0], 14)
    return clean(eyes, _resized(pixels, (columns * eyes.patch_size, rows * eyes.patch_size)))[
        : np.prod(eyes.grid(pixels))
    ]


def row_later(eyes: Eyes, pixels: np.ndarray) -> np.ndarray:
    """Each row in the place of the next one; the first stands there twice and the last is lost."""
    columns = eyes.grid(pixels)[1]
    patches = clean(eyes, pixels)
    return np.concatenate([patches[:columns], patches[:-columns]])


def random_crop(eyes: Eyes, pixels: np.ndarray) -> np.ndarray:
    """What trains an encoder: a random half to all of the image's area, of a random shape, as large as the image."""
    height, width = pixels.shape[:2]
    chance = np.random.default_rng(zlib.crc32(pixels.tobytes()))
    area, ratio = chance.uniform(0.5, 1.0), np.exp(chance.uniform(np.log(3 / 4), np.log(4 / 3)))
    tall, wide = min(np.sqrt(area / ratio), 1.0), min(np.sqrt(area * ratio), 1.0)
    return _part(eyes, pixels, round(tall * height), round(wide * width), chance)


def random_shift(eyes: Eyes, pixels: np.ndarray) -> np.ndarray:
    """224 of 256 at a random place, where a centre crop was meant."""
    height, width = pixels.shape[:2]
    chance = np.random.default_rng(zlib.crc32(pixels.tobytes()))
    return _part(eyes, pixels, round(0.875 * height), round(0.875 * width), chance)


def _part(eyes: Eyes, pixels: np.ndarray, tall: int, wide: int, chance: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    top, left = chance.integers(height - tall + 1), chance.integers(width - wide + 1)
    return clean(eyes, _resized(pixels[top : top + tall, left : left + wide], (width, height)))


RANDOMLY_CROPPED: dict[str, Callable[[Eyes, np.ndarray], np.ndarray]] = {
    "random resized crops": random_crop,
    "random shifts": random_shift,
}
MISPLACED: dict[str, Callable[[Eyes, np.ndarray], np.ndarray]] = {
    "registers stored as patches": registers_as_patches,
    "CLS stored as a patch": cls_as_patch,
    "centre crop for DINO": centre_crop,
    "mirrored for DINO only": mirrored,
    "grid written column by column": transposed,
    "stale grid of patch 14": stale_grid,
    "shifted by a row": row_later,
}


def textured(seed: int, width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8, as photographs are: power falling with frequency, colours that go together, bright above and
    dark below, and an object.
    """
    chance = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.ifft2(np.fft.fft2(chance.normal(size=(3, height, width))) / frequency**1.3).real
    noise /= noise.std(axis=(1, 2), keepdims=True)
    # luma, and a little of two opponents
    colours = np.tensordot(np.array([[1, 0.3, 0.1], [1, 0, -0.1], [1, -0.3, 0.1]]), noise, axes=1)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    centre, radius = chance.uniform(0.25, 0.75, size=2), chance.uniform(0.1, 0.25)
    inside = np.hypot(y - centre[0], (x - centre[1]) * width / height) < radius
    picture = chance.uniform(90, 150) + chance.uniform(20, 45) * colours + 30 * (0.5 - y)
    picture = np.where(inside, 0.4 * picture + chance.uniform(0, 150, size=(3, 1, 1)), picture)
    return np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC))
