"""The drawn data set: captions tell the truth, the spread is even, and the seed decides everything."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from PIL import Image

from dittool.console import Talk
from dittool.demo.drawing import (
    BACKGROUNDS,
    COLOURS,
    COMBINATIONS,
    KNOWN,
    NEW,
    POSITIONS,
    SHAPES,
    caption,
    draw_dataset,
    draw_scene,
    plan_scenes,
)
from dittool.errors import UsageError

SCENES = plan_scenes(144, seed=7)


def named(scene):
    return scene.colour, scene.shape, scene.position, scene.background


def test_a_caption_names_what_is_drawn():
    scene = replace(SCENES[0], colour="red", shape="circle", position="left", background="white")
    assert caption(scene) == "a red circle on the left, a white background"
    assert caption(replace(scene, position="top")) == "a red circle at the top, a white background"


def test_no_word_names_both_an_object_and_a_background():
    assert not set(COLOURS) & set(BACKGROUNDS)


def test_backgrounds_have_no_hue_and_objects_do():
    assert all(max(rgb) == min(rgb) for rgb in BACKGROUNDS.values())
    assert all(max(rgb) - min(rgb) > 100 for rgb in COLOURS.values())


def test_every_combination_appears_once_before_any_appears_twice():
    assert set(map(named, SCENES)) == set(product(COLOURS, SHAPES, POSITIONS, BACKGROUNDS))


def test_a_quarter_of_the_combinations_is_kept_out_though_every_two_words_are_seen_together():
    assert sorted(KNOWN + NEW) == sorted(COMBINATIONS)
    assert len(NEW) * 4 == len(COMBINATIONS)
    for first, second in combinations(range(4), 2):
        pairs = {(one[first], one[second]) for one in COMBINATIONS}
        assert {(one[first], one[second]) for one in KNOWN} == pairs
    for place in range(4):  # and no word is rarer in what is new
        assert len(set(Counter(one[place] for one in NEW).values())) == 1


def test_a_data_set_holds_no_new_combination(tmp_path):
    assert {named(scene) for scene in draw_dataset(tmp_path, 110, seed=0)} == set(KNOWN)


@pytest.mark.parametrize("of", [COMBINATIONS, KNOWN], ids=["all", "known"])
def test_every_value_gets_its_even_share(of):
    scenes = plan_scenes(400, 0, of)
    for attribute, values in (
        ("colour", COLOURS),
        ("shape", SHAPES),
        ("position", POSITIONS),
        ("background", BACKGROUNDS),
    ):
        counts = Counter(getattr(scene, attribute) for scene in scenes)
        assert set(counts) == set(values)
        assert max(counts.values()) - min(counts.values()) < 0.1 * len(scenes), (attribute, counts)


def test_images_come_in_square_landscape_portrait_and_wide_at_areas_between_128_and_192_squared():
    aspects = Counter(
        min((1, 3 / 2, 2 / 3, 16 / 9), key=lambda aspect: abs(aspect - scene.width / scene.height))
        for scene in SCENES[:140]
    )
    assert aspects == {1: 56, 3 / 2: 35, 2 / 3: 35, 16 / 9: 14}
    assert all(126**2 < scene.width * scene.height < 194**2 for scene in SCENES)


@pytest.mark.parametrize("scene", SCENES[::6], ids=caption)
def test_the_pixels_show_the_object_at_its_place_and_the_background_around_it(scene):
    pixels = np.asarray(draw_scene(scene))
    assert pixels.shape == (scene.height, scene.width, 3)
    x, y = POSITIONS[scene.position]
    assert tuple(pixels[int(y * scene.height), int(x * scene.width)]) == scene.object_rgb
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border == scene.background_rgb).all(), "the object reaches the border"


def test_edges_are_antialiased():
    scene = next(scene for scene in SCENES if scene.shape == "circle")
    assert len(np.unique(np.asarray(draw_scene(scene)).reshape(-1, 3), axis=0)) > 5


def test_images_of_one_caption_differ_in_what_the_caption_does_not_say():
    by_name: dict[tuple, list] = {}
    for scene in plan_scenes(288, seed=7):
        by_name.setdefault(named(scene), []).append(scene)
    for first, second in by_name.values():
        assert first.size != second.size
        assert first.centre != second.centre
        assert (first.object_rgb, first.background_rgb) != (second.object_rgb, second.background_rgb)


def test_the_seed_decides_everything_and_a_larger_set_begins_with_the_smaller():
    assert plan_scenes(300, seed=7)[:144] == SCENES
    assert plan_scenes(144, seed=8) != SCENES


def test_each_image_is_written_with_its_caption(tmp_path):
    scenes = draw_dataset(tmp_path / "images", 5, seed=7)
    names = [f"scene-000{number}" for number in range(1, 6)]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == sorted(
        name + end for name in names for end in (".png", ".txt")
    )
    for name, scene in zip(names, scenes, strict=True):
        assert (tmp_path / "images" / f"{name}.txt").read_text() == caption(scene) + "\n"
        with Image.open(tmp_path / "images" / f"{name}.png") as image:
            assert image.mode == "RGB"
            assert np.array_equal(np.asarray(image), np.asarray(draw_scene(scene)))


def test_drawing_twice_gives_the_same_bytes(tmp_path):
    draw_dataset(tmp_path, 4, seed=7)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    draw_dataset(tmp_path, 4, seed=7)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"mine")
    (tmp_path / ".directory").write_bytes(b"hidden files are no images")
    with pytest.raises(
        UsageError, match=r"holds other files than this drawing's \(1 of them, the first is holiday\.jpg\)"
    ):
        draw_dataset(tmp_path, 2, seed=7)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".directory", "holiday.jpg"]


def test_a_smaller_set_does_not_mix_with_a_larger_one(tmp_path):
    draw_dataset(tmp_path, 3, seed=7)
    with pytest.raises(UsageError, match=r"scene-0003\.png"):
        draw_dataset(tmp_path, 2, seed=7)


def test_no_images_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot draw 0 images"):
        draw_dataset(tmp_path, 0, seed=7)


def test_progress_is_reported_image_by_image(tmp_path):
    heard = []

    class Listener(Talk):
        def advance(self, count=1, **figures):
            heard.append(count)

        def progress(self, label, total, unit=""):
            heard.append(total)
            return nullcontext(self)

    draw_dataset(tmp_path, 3, seed=7, talk=Listener())
    assert heard == [3, 1, 1, 1]
