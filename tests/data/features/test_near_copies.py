"""Near copies: found when a picture was saved again in another way, not where pictures are merely alike."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dittool.data.features.near_copies import differences, perceptual_hashes, proposed_pairs
from dittool.data.source.thumbnail import thumbnail_of
from dittool.demo.drawing import draw_scene, plan_scenes


def textured(seed: int) -> Image.Image:
    """A picture in which something varies everywhere, as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    picture = coarse.resize((240, 180), Image.Resampling.BICUBIC)
    x, y = rng.integers(0, 120), rng.integers(0, 90)
    ImageDraw.Draw(picture).ellipse((x, y, x + 80, y + 60), fill=tuple(map(int, rng.integers(0, 256, 3))))
    return picture


def through(picture: Image.Image, kind: str, **options: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Image.open(file).convert("RGB")


def resized(picture: Image.Image, factor: float) -> Image.Image:
    return picture.resize((int(picture.width * factor), int(picture.height * factor)), Image.Resampling.LANCZOS)


def brighter(picture: Image.Image) -> Image.Image:
    return picture.point(lambda level: level + 5)


SAVED_AGAIN = {
    "JPEG 90": lambda picture: through(picture, "JPEG", quality=90),
    "JPEG 60": lambda picture: through(picture, "JPEG", quality=60),
    "WebP": lambda picture: through(picture, "WEBP", quality=75),
    "three quarters": lambda picture: resized(picture, 0.75),
    "half": lambda picture: resized(picture, 0.5),
    "half, JPEG 90": lambda picture: through(resized(picture, 0.5), "JPEG", quality=90),
    "brighter by 5": brighter,
}
PICTURES = {
    "textured": lambda count: [textured(seed) for seed in range(count)],
    "drawn": lambda count: [draw_scene(scene) for scene in plan_scenes(count, 0)],
}


def thumbnails(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([thumbnail_of(np.array(picture)) for picture in pictures])


def confirmed(rows: np.ndarray, is_new: np.ndarray | None = None) -> set[tuple[int, int]]:
    is_new = np.ones(len(rows), bool) if is_new is None else is_new
    pairs = proposed_pairs(perceptual_hashes(rows), is_new).pairs
    return {tuple(pair) for pair in pairs[differences(rows[pairs[:, 0]], rows[pairs[:, 1]]) <= 1].tolist()}


@pytest.mark.parametrize("saved_again", SAVED_AGAIN.values(), ids=SAVED_AGAIN)
@pytest.mark.parametrize("pictures", PICTURES.values(), ids=PICTURES)
def test_each_copy_is_found_and_nothing_else_is(pictures, saved_again):
    originals = pictures(40)
    rows = thumbnails([*originals, *map(saved_again, originals)])
    assert confirmed(rows) == {(number, number + 40) for number in range(40)}


def test_different_drawings_of_the_same_captions_are_no_copies():
    rows = thumbnails(PICTURES["drawn"](200))
    proposed = proposed_pairs(perceptual_hashes(rows), np.ones(200, bool)).pairs
    assert len(proposed) > 500  # which the hash alone would merge
    assert not confirmed(rows)


def test_a_small_object_that_moved_makes_another_picture():
    empty = Image.new("RGB", (160, 160), (200, 200, 200))
    both = []
    for place in (40, 80):
        picture = empty.copy()
        ImageDraw.Draw(picture).rectangle((place, 60, place + 16, 76), fill=(200, 30, 30))
        both.append(picture)
    assert not confirmed(thumbnails(both))


def test_pairs_of_older_pictures_are_not_looked_at_again():
    rows = thumbnails([textured(0), textured(0), textured(0)])
    assert confirmed(rows, np.array([False, False, True])) == {(0, 2), (1, 2)}


@pytest.mark.parametrize("count", [3000, 120_000])
def test_hashes_that_differ_in_a_few_bits_are_proposed_whatever_their_number(count):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for place, bits in enumerate((1, 3, 5)):
        flipped = sum(1 << int(bit) for bit in rng.choice(64, bits, replace=False))
        hashes[-1 - place] = hashes[place] ^ np.uint64(flipped)
    pairs = {tuple(pair) for pair in proposed_pairs(hashes, np.ones(count, bool)).pairs.tolist()}
    assert {(0, count - 1), (1, count - 2), (2, count - 3)} <= pairs
    assert len(pairs) < count / 20


def test_very_many_equal_hashes_are_told_and_do_not_take_for_ever():
    proposed = proposed_pairs(np.zeros(5000, np.uint64), np.ones(5000, bool))
    assert proposed.unfinished > 0
    assert len(proposed.pairs) < 5000**2 / 2


def test_no_thumbnails_have_no_copies():
    nothing = np.empty((0, 16, 16, 3), np.uint8)
    assert len(proposed_pairs(perceptual_hashes(nothing), np.empty(0, bool)).pairs) == 0
