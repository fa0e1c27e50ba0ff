"""Draws the one-step demo's data: square images in a folder for each colour and shape, and reads drawn ones back.

    red-circle/scene-0001.png …     12 classes; background, size, shade and exact place vary within a class

Objects are larger than in the captioned set and stand in the middle: with 64 pixels a side that leaves a shape enough
of them.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dittool.console import SILENT, Talk
from dittool.demo.checker import see
from dittool.demo.drawing import COLOURS, SHAPES, Scene, draw_scene, plan_scenes
from dittool.seeding import unit_interval
from dittool.storage import output_folder, write_atomic

CLASSES = tuple(sorted(f"{colour}-{shape}" for colour in COLOURS for shape in SHAPES))
_SIZES = (0.5, 0.58)  # of the object, in shares of the side
_WANDER = 0.04  # largest distance from the middle along each axis
_SEEN_SIDE = 128  # pixels: images are enlarged to this before they are read, the size that the checker was made for


@dataclass(frozen=True)
class Recognised:
    """Of the images of one class, what the pixels show."""

    images: int
    colour: float  # share with the class's colour
    shape: float
    both: float
    kinds: int  # different backgrounds among those that are right; 3 are drawn


def draw_class_folders(
    folder: Path, count: int, seed: int, side: int, talk: Talk = SILENT, colours: Collection[str] = tuple(COLOURS)
) -> None:
    """Writes those of `count` images of `side` × `side` pixels that have one of `colours`. Drawing again what is
    there changes nothing.
    """
    with talk.progress("draw", count, "image") as task:
        for number, scene in enumerate(plan_scenes(count, seed), start=1):
            task.advance()
            if scene.colour not in colours:
                continue
            path = output_folder(folder / f"{scene.colour}-{scene.shape}") / f"scene-{number:04d}.png"
            buffer = io.BytesIO()
            draw_scene(_in_the_middle(scene, number, seed, side)).save(buffer, format="PNG")
            if not path.is_file() or path.read_bytes() != buffer.getvalue():
                write_atomic(path, buffer.getvalue())


def recognise(images: np.ndarray, name: str) -> Recognised:
    """What the checker reads from images (n, H, W, 3) uint8 that should be of a class."""
    colour, shape = name.split("-")
    seen = [
        see(np.asarray(Image.fromarray(image).resize((_SEEN_SIDE, _SEEN_SIDE), Image.Resampling.BICUBIC)))
        for image in images
    ]
    right = [shown for shown in seen if shown.colour == colour and shown.shape == shape]
    return Recognised(
        len(seen),
        float(np.mean([shown.colour == colour for shown in seen])),
        float(np.mean([shown.shape == shape for shown in seen])),
        len(right) / len(seen),
        len({shown.background for shown in right if shown.background}),
    )


def _in_the_middle(scene: Scene, number: int, seed: int, side: int) -> Scene:
    x, y, size = (unit_interval(seed, "class scene", number, what) for what in ("x", "y", "size"))
    centre = (0.5 + _WANDER * (2 * x - 1), 0.5 + _WANDER * (2 * y - 1))
    return replace(scene, width=side, height=side, centre=centre, size=_SIZES[0] + (_SIZES[1] - _SIZES[0]) * size)
