"""Draws the demo's captioned data set: one object of a named colour and shape, at a named place, before a named
background.

    from dittool.demo.drawing import draw_dataset
    scenes = draw_dataset(Path("data/images"), count=400, seed=0)

Objects have hues and backgrounds have none. So each colour word of a caption means one thing only, exchanging two of
them ("red" for "blue") changes the object and nothing else, and however soft an edge gets, what the background mixes
into the object never turns its hue: a reader of the pixels can tell the two apart.

Images of one caption still differ, in size, exact place, shade and aspect: that is what a reference image can add to a
caption. A quarter of the combinations of colour, shape and place (`NEW`) is in no data set: only from these can be told
whether a model has learned the words or the captions. Nothing depends on anything but the seed and the scene's number,
so a larger set begins with the smaller one.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw

from dittool.console import SILENT, Talk
from dittool.errors import UsageError
from dittool.seeding import unit_interval
from dittool.storage import output_folder, write_atomic

RGB = tuple[int, int, int]
Point = tuple[float, float]
T = TypeVar("T")

COLOURS: dict[str, RGB] = {
    "red": (205, 45, 45),
    "green": (30, 165, 70),
    "blue": (50, 80, 210),
    "yellow": (235, 200, 40),
}
BACKGROUNDS: dict[str, RGB] = {"white": (232, 232, 232), "gray": (130, 130, 130), "black": (30, 30, 30)}
# shares of width and height
POSITIONS: dict[str, Point] = {"left": (0.26, 0.5), "right": (0.74, 0.5), "top": (0.5, 0.26), "bottom": (0.5, 0.74)}
SHAPES: dict[str, tuple[Point, ...]] = {  # outlines around the centre of their box, in units of the object's size
    "circle": tuple((0.5 * math.cos(turn * math.tau / 72), 0.5 * math.sin(turn * math.tau / 72)) for turn in range(72)),
    "square": ((-0.46, -0.46), (0.46, -0.46), (0.46, 0.46), (-0.46, 0.46)),
    "triangle": ((0.0, -0.5), (0.55, 0.5), (-0.55, 0.5)),
}
PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}

Combination = tuple[str, str, str, str]  # colour, shape, position, background
COMBINATIONS: list[Combination] = list(product(COLOURS, SHAPES, POSITIONS, BACKGROUNDS))


def _kept_out(combination: Combination) -> bool:
    """One colour of each shape at each place, so that every two of the three words are seen together."""
    colour, shape, position, _ = combination
    places = list(COLOURS).index(colour), list(SHAPES).index(shape), list(POSITIONS).index(position)
    return sum(places) % len(COLOURS) == 0


KNOWN = [combination for combination in COMBINATIONS if not _kept_out(combination)]  # 108, that data sets are drawn of
NEW = [combination for combination in COMBINATIONS if _kept_out(combination)]  # 36

# Width over height, once for each image of a block of 20: mostly square and 3:2 either way, a few wide ones.
_ASPECTS = (1.0,) * 8 + (3 / 2,) * 5 + (2 / 3,) * 5 + (16 / 9,) * 2
_SIDES = (128, 192)  # square root of the area in pixels, least and most
# of the object, in shares of the image's short side: large, so that a small model learns it in minutes
_SIZES = (0.34, 0.42)
_WANDER = 0.02  # largest distance from the named place along each axis, in shares of width and height
_SHADES = (0.85, 1.05)  # factor on the object's colour
_LEVEL_SHIFT = 12  # largest shift of the background's grey level
_SUPERSAMPLE = 4


@dataclass(frozen=True)
class Scene:
    """What one image shows. The first four are in its caption, the others only in its pixels."""

    colour: str
    shape: str
    position: str
    background: str
    width: int  # pixels
    height: int
    centre: Point  # of the object, in shares of width and height
    size: float  # of the object, in shares of the short side
    object_rgb: RGB
    background_rgb: RGB


def caption(scene: Scene) -> str:
    """`"a red circle on the left, a white background"`."""
    return f"a {scene.colour} {scene.shape} {PLACES[scene.position]}, a {scene.background} background"


def plan_scenes(count: int, seed: int, of: Sequence[Combination] = COMBINATIONS) -> list[Scene]:
    """`count` scenes. Each run of as many as there are combinations holds each of them exactly once; each run of 20
    the same aspects.
    """
    combinations = _dealt(of, count, seed, "combination")
    aspects = _dealt(_ASPECTS, count, seed, "aspect")
    return [
        _scene(combination, aspect, index, seed)
        for index, (combination, aspect) in enumerate(zip(combinations, aspects, strict=True))
    ]


def draw_scene(scene: Scene) -> Image.Image:
    """The scene as an RGB image of its width and height, edges antialiased."""
    centre = (scene.centre[0] * scene.width, scene.centre[1] * scene.height)
    size = scene.size * min(scene.width, scene.height)
    coverage = draw_coverage(scene.shape, scene.width, scene.height, centre, size)
    canvas = (scene.width, scene.height)
    return Image.composite(
        Image.new("RGB", canvas, scene.object_rgb), Image.new("RGB", canvas, scene.background_rgb), coverage
    )


def draw_coverage(shape: str, width: int, height: int, centre: Point, size: float) -> Image.Image:
    """How much of each pixel the shape covers, 0 to 255, as an "L" image. `centre` and `size` in pixels."""
    canvas = Image.new("L", (width * _SUPERSAMPLE, height * _SUPERSAMPLE), 0)
    corners = [((centre[0] + x * size) * _SUPERSAMPLE, (centre[1] + y * size) * _SUPERSAMPLE) for x, y in SHAPES[shape]]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    return canvas.reduce(_SUPERSAMPLE)


def draw_dataset(folder: Path, count: int, seed: int, talk: Talk = SILENT) -> list[Scene]:
    """Writes `scene-0001.png` and `scene-0001.txt` and so on, of known combinations, and returns the scenes in that
    order.

    Drawing again what is there already changes nothing. Raises `UsageError` when `count` is not positive or when the
    folder holds other files (hidden ones aside), which would become part of the data set, and `StorageError` when it
    cannot be written to.
    """
    if count < 1:
        raise UsageError(f"cannot draw {count} images", "ask for at least one")
    scenes = plan_scenes(count, seed, KNOWN)
    names = [f"scene-{number:04d}" for number in range(1, count + 1)]
    _refuse_strangers(output_folder(folder), {f"{name}{suffix}" for name in names for suffix in (".png", ".txt")})
    with talk.progress("draw", count, "images") as task:
        for name, scene in zip(names, scenes, strict=True):
            png = io.BytesIO()
            draw_scene(scene).save(png, format="PNG")
            write_atomic(folder / f"{name}.png", png.getvalue())
            write_atomic(folder / f"{name}.txt", f"{caption(scene)}\n".encode())
            task.advance()
    return scenes


def _scene(combination: Combination, aspect: float, index: int, seed: int) -> Scene:
    colour, shape, position, background = combination

    def between(low: float, high: float, what: str) -> float:
        return low + (high - low) * unit_interval(seed, "scene", index, what)

    side = between(*_SIDES, "side")
    shade = between(*_SHADES, "shade")
    level_shift = between(-_LEVEL_SHIFT, _LEVEL_SHIFT, "level")
    x, y = POSITIONS[position]
    return Scene(
        colour,
        shape,
        position,
        background,
        width=round(side * math.sqrt(aspect)),
        height=round(side / math.sqrt(aspect)),
        centre=(x + between(-_WANDER, _WANDER, "x"), y + between(-_WANDER, _WANDER, "y")),
        size=between(*_SIZES, "size"),
        object_rgb=_rgb(value * shade for value in COLOURS[colour]),
        background_rgb=_rgb(value + level_shift for value in BACKGROUNDS[background]),
    )


def _dealt(cards: Sequence[T], count: int, seed: int, what: str) -> list[T]:
    """The first `count` cards when the whole pack is shuffled and dealt out again and again: as even as it gets, in
    no order.
    """
    dealt: list[T] = []
    while len(dealt) < count:
        place = [unit_interval(seed, what, len(dealt), card) for card in range(len(cards))]
        order = sorted(range(len(cards)), key=place.__getitem__)
        dealt += [cards[card] for card in order]
    return dealt[:count]


def _rgb(values: Iterable[float]) -> RGB:
    red, green, blue = (min(max(round(value), 0), 255) for value in values)
    return red, green, blue


def _refuse_strangers(folder: Path, expected: set[str]) -> None:
    strangers = sorted(
        entry.name for entry in folder.iterdir() if entry.name not in expected and not entry.name.startswith(".")
    )
    if strangers:
        raise UsageError(
            f"{folder}: holds other files than this drawing's ({len(strangers)} of them, the first is {strangers[0]})",
            "choose an empty folder with --out, or empty this one",
        )
