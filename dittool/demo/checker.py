"""Reads a drawn scene back from pixels: which colour, which shape, where, on what background. It has never seen the
model.

    from dittool.demo.checker import see, shows
    shows(pixels, "a red circle on the left, a white background")     # {"colour": True, "shape": True, …}

It looks for one object with a hue before a background without one, as `drawing.py` draws them, and judges what it finds
by the named colours, places and outlines that stand there. What it cannot tell it leaves open (""): noise, an empty
background or two objects get no answer rather than the nearest one. The limits below leave room for what a codec, a
blur or noise do to a drawn scene; between two names the nearer one counts.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image, ImageFilter
from skimage.measure import label

from dittool.demo.drawing import (
    BACKGROUNDS,
    COLOURS,
    KNOWN,
    NEW,
    PLACES,
    POSITIONS,
    SHAPES,
    caption,
    draw_coverage,
    draw_scene,
    plan_scenes,
)
from dittool.errors import BadDataError, UsageError
from dittool.seeding import derive_seed
from dittool.validate.text_edit import AskedScene, CaptionChecker

ATTRIBUTES = ("colour", "shape", "position", "background")
UNKNOWN = ""

_SMOOTHING = 1 / 80  # standard deviation of the Gaussian before anything is measured, in shares of the short side
_LEAST_CHROMA = 45.0  # of the object; drawn ones have 100 to 185, smoothed pure noise stays below 30
_OBJECT_SHARES = (0.02, 0.3)  # of the image's pixels; drawn objects cover 0.03 to 0.15
_LEAST_ALONE = 0.75  # share of all coloured pixels that hang together: two objects have about half each
_LEAST_FIT = 0.6  # overlap with the best outline for the pixels to be one object at all
_LEAST_SHAPE_FIT = 0.75  # … and for its shape to have a name
_LEAST_SHAPE_LEAD = 0.03  # over the second best outline
_LEAST_PURITY = 0.75  # share of the object's chroma that is nearest to its colour
_WIDEST_HUE = 30.0  # degrees between the object's hue and the named one
_LEAST_OFFSET = 0.12  # from the middle of the image, in shares of width or height; drawn objects have 0.22 to 0.26
_LEAST_OFFSET_LEAD = 0.05  # over the offset along the other axis
_WIDEST_LEVEL = 40.0  # between the background's grey level and the named one
_WIDEST_TINT = 30.0  # chroma of a background that still counts as grey
_LEAST_FLATNESS = 0.8  # share of the background's pixels within `_WIDEST_LEVEL` of its level


@dataclass(frozen=True)
class ParsedCaption:
    """What a caption of the drawn set says."""

    colour: str
    shape: str
    position: str
    background: str


@dataclass(frozen=True)
class Seen:
    """What the pixels show; "" where they do not tell. With no single object in sight all four are ""."""

    colour: str = UNKNOWN
    shape: str = UNKNOWN
    position: str = UNKNOWN
    background: str = UNKNOWN
    object_share: float = 0.0  # of the image's pixels that have the object's chroma
    fit: float = 0.0  # confidence: overlap (intersection over union) of those pixels with the best outline, 0 to 1


_CAPTION = re.compile(
    rf"a (?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)}) (?:on|at) the (?P<position>{'|'.join(PLACES)}), "
    rf"a (?P<background>{'|'.join(BACKGROUNDS)}) background\.?"
)


def parse_caption(text: str) -> ParsedCaption | None:
    """What the caption says, or None when it does not describe a drawn scene. Case and spacing do not matter."""
    match = _CAPTION.fullmatch(" ".join(text.lower().split()))
    return ParsedCaption(**match.groupdict()) if match else None


def shows(pixels: np.ndarray, text: str) -> dict[str, bool]:
    """For each attribute, whether the pixels show what the caption says. `pixels` as for `see`.

    Raises `UsageError` when the caption does not describe a drawn scene (`parse_caption` tells beforehand).
    """
    said = parse_caption(text)
    if said is None:
        raise UsageError(
            f"'{text}' does not describe a drawn scene",
            "the checker reads captions as `dit demo` writes them, nothing else",
        )
    seen = see(pixels)
    return {name: getattr(seen, name) == getattr(said, name) for name in ATTRIBUTES}


def _attributes_of(text: str) -> dict[str, str] | None:
    said = parse_caption(text)
    return None if said is None else asdict(said)


def scenes_to_ask_for(count: int, seed: int = 1) -> list[AskedScene]:
    """`count` of known combinations and as many of those that no data set holds, in no data set themselves."""
    asked = []
    for known, combinations in ((True, KNOWN), (False, NEW)):
        for number, scene in enumerate(plan_scenes(count, derive_seed("asked", seed, known), combinations)):
            name = f"{'known' if known else 'new'}-{seed}-{number:04d}"
            asked.append(AskedScene(name, caption(scene), np.asarray(draw_scene(scene)), known))
    return asked


# for validations of a model that draws such scenes
SCENE_CHECKER = CaptionChecker(ATTRIBUTES, _attributes_of, shows, scenes_to_ask_for)


def see(pixels: np.ndarray) -> Seen:
    """What the pixels, (H, W, 3) uint8 sRGB, show. Raises `BadDataError` for another shape or type."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise BadDataError(
            f"the checker reads (H, W, 3) uint8 pixels and got {pixels.shape} {pixels.dtype}",
            "convert the picture to 8-bit RGB",
        )
    height, width = pixels.shape[:2]
    smooth = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(min(width, height) * _SMOOTHING))
    chroma = _chroma(np.asarray(smooth, dtype=np.float32))  # (H, W) complex
    strength = np.abs(chroma)

    # The object covers more than a fiftieth of the image, so the 98th percentile lies inside it. Half of that is where
    # the object covers half of a pixel, however soft its edge is: the measured area does not grow with blur.
    peak = np.percentile(strength, 98)
    coloured = strength > max(peak, _LEAST_CHROMA) / 2
    inside = _largest_piece(coloured)
    share = float(inside.mean())
    alone = inside.sum() >= _LEAST_ALONE * coloured.sum()
    if peak < _LEAST_CHROMA or not alone or not _OBJECT_SHARES[0] <= share <= _OBJECT_SHARES[1]:
        return Seen(object_share=share)
    fits = {shape: _overlap(inside, shape) for shape in SHAPES}
    fit = max(fits.values())
    if fit < _LEAST_FIT:
        return Seen(object_share=share, fit=fit)
    return Seen(
        colour=_colour(chroma[inside]),
        shape=_shape(fits),
        position=_position(inside),
        background=_background(pixels[strength < peak / 4]),
        object_share=share,
        fit=fit,
    )


def _chroma(rgb: np.ndarray) -> np.ndarray:
    """RGB (…, 3) as complex numbers (…): the angle is the hue, the magnitude is 0 for grey. Mixing with grey keeps
    the angle.
    """
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return red - (green + blue) / 2 + 1j * (np.sqrt(3) / 2) * (green - blue)


_HUES = {
    name: chroma / abs(chroma)
    for name, chroma in ((name, complex(_chroma(np.array(rgb, float)))) for name, rgb in COLOURS.items())
}


def _colour(chroma: np.ndarray) -> str:
    """The name of the object's hue, from the chroma (pixels,) of the object."""
    names = list(_HUES)
    strength = np.abs(chroma)
    nearest = np.argmax(np.real(chroma[:, None] * np.conj([_HUES[name] for name in names])), axis=1)
    purities = np.bincount(nearest, weights=strength, minlength=len(names)) / strength.sum()
    winner = names[int(np.argmax(purities))]
    away = abs(np.angle(chroma.sum() * np.conj(_HUES[winner]), deg=True))
    return winner if purities.max() >= _LEAST_PURITY and away <= _WIDEST_HUE else UNKNOWN


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    """Of a mask (H, W) bool, the connected piece with the most pixels."""
    pieces = label(mask, connectivity=1)  # 0 outside
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return mask & (pieces == np.argmax(sizes))


def _overlap(inside: np.ndarray, shape: str) -> float:
    """Intersection over union of the object's pixels (H, W) bool with the outline of the same area and centre of
    mass.
    """
    area, mass_x, mass_y = _outline_moments(shape)
    rows, columns = np.nonzero(inside)
    size = float(np.sqrt(len(rows) / area))
    centre = (columns.mean() + 0.5 - mass_x * size, rows.mean() + 0.5 - mass_y * size)
    outline = np.asarray(draw_coverage(shape, inside.shape[1], inside.shape[0], centre, size)) >= 128
    return float((inside & outline).sum() / (inside | outline).sum())


def _outline_moments(shape: str) -> tuple[float, float, float]:
    """Area and centre of mass (x, y) of a shape of size 1: the shoelace formula."""
    corners = np.array(SHAPES[shape])
    following = np.roll(corners, -1, axis=0)
    cross = corners[:, 0] * following[:, 1] - following[:, 0] * corners[:, 1]
    mass = ((corners + following) * cross[:, None]).sum(axis=0) / (3 * cross.sum())
    return abs(cross.sum()) / 2, mass[0], mass[1]


def _shape(fits: dict[str, float]) -> str:
    second, best = sorted(fits, key=fits.__getitem__)[-2:]
    clear = fits[best] >= _LEAST_SHAPE_FIT and fits[best] - fits[second] >= _LEAST_SHAPE_LEAD
    return best if clear else UNKNOWN


def _position(inside: np.ndarray) -> str:
    """The place that the object's centre of mass lies towards, seen from the middle of the image."""
    rows, columns = np.nonzero(inside)
    height, width = inside.shape
    offset = np.array([(columns.mean() + 0.5) / width - 0.5, (rows.mean() + 0.5) / height - 0.5])
    lesser, greater = sorted(np.abs(offset))
    if greater < _LEAST_OFFSET or greater - lesser < _LEAST_OFFSET_LEAD:
        return UNKNOWN
    return max(POSITIONS, key=lambda name: float(offset @ (np.array(POSITIONS[name]) - 0.5)))


def _background(pixels: np.ndarray) -> str:
    """The name of the background's grey level, from its pixels (pixels, 3)."""
    if len(pixels) == 0:
        return UNKNOWN
    median = np.median(pixels, axis=0)
    level = median.mean()
    flatness = np.mean(np.abs(pixels.mean(axis=1) - level) <= _WIDEST_LEVEL)
    name = min(BACKGROUNDS, key=lambda name: abs(level - BACKGROUNDS[name][0]))
    plain = (
        abs(_chroma(median)) <= _WIDEST_TINT
        and abs(level - BACKGROUNDS[name][0]) <= _WIDEST_LEVEL
        and flatness >= _LEAST_FLATNESS
    )
    return name if plain else UNKNOWN
