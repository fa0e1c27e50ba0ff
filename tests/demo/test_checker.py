"""The checker reads drawn scenes through codec, blur and noise, and sees nothing where there is nothing to see."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from dittool.demo.checker import ATTRIBUTES, ParsedCaption, Seen, parse_caption, see, shows
from dittool.demo.drawing import COLOURS, POSITIONS, caption, draw_coverage, draw_scene, plan_scenes
from dittool.errors import BadDataError, UsageError

SCENES = plan_scenes(144, seed=3)


def drawn(scene):
    return np.asarray(draw_scene(scene))


def gaussian_blur(pixels):
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3)))


def jpeg_quality_20(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=20)
    return np.asarray(Image.open(file))


def additive_noise(pixels):
    noisy = pixels + np.random.default_rng(0).normal(0, 12, pixels.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def truncated_dct(pixels, kept=(10, 3, 3)):
    """8×8 block DCT in YCbCr with the lowest frequencies kept: 16 coefficients a block."""
    frequency, place = np.mgrid[:8, :8]
    # rows are frequencies
    basis = np.cos(np.pi * (place + 0.5) * frequency / 8) * np.where(frequency == 0, np.sqrt(1 / 8), 0.5)
    height, width = (side // 8 * 8 for side in pixels.shape[:2])
    channels = []
    for channel, count in zip(Image.fromarray(pixels[:height, :width]).convert("YCbCr").split(), kept, strict=True):
        blocks = np.asarray(channel, float).reshape(height // 8, 8, width // 8, 8).transpose(0, 2, 1, 3)
        low = np.zeros(64)
        low[np.argsort((frequency + place).ravel(), kind="stable")[:count]] = 1
        blocks = basis.T @ ((basis @ blocks @ basis.T) * low.reshape(8, 8)) @ basis
        channels.append(
            Image.fromarray(
                np.clip(np.rint(blocks.transpose(0, 2, 1, 3).reshape(height, width)), 0, 255).astype(np.uint8)
            )
        )
    return np.asarray(Image.merge("YCbCr", channels).convert("RGB"))


def ghosted(pixels):
    other = np.asarray(draw_scene(SCENES[0]).resize(pixels.shape[1::-1]))
    return np.rint(0.85 * pixels + 0.15 * other).astype(np.uint8)


@pytest.mark.parametrize(
    "damage",
    [lambda pixels: pixels, gaussian_blur, jpeg_quality_20, additive_noise, truncated_dct, ghosted],
    ids=["clean", "blur", "jpeg", "noise", "dct", "ghost"],
)
def test_a_drawn_scene_is_read_back(damage):
    seen = [see(damage(drawn(scene))) for scene in SCENES]
    right = {
        name: np.mean([getattr(a, name) == getattr(b, name) for a, b in zip(SCENES, seen, strict=True)])
        for name in ATTRIBUTES
    }
    assert right["colour"] >= 0.99, right
    assert right["position"] >= 0.99, right
    assert right["background"] >= 0.98, right
    assert right["shape"] >= 0.95, right


def test_confidence_is_high_on_drawings_and_falls_with_damage():
    clean = np.mean([see(drawn(scene)).fit for scene in SCENES])
    damaged = np.mean([see(gaussian_blur(drawn(scene))).fit for scene in SCENES])
    assert clean > 0.98 > damaged > 0.9


def test_a_caption_is_read_whatever_its_case_and_spacing():
    expected = ParsedCaption("red", "circle", "left", "white")
    assert parse_caption("a red circle on the left, a white background") == expected
    assert parse_caption(" A red  circle on the LEFT, a white background.\n") == expected


@pytest.mark.parametrize("scene", SCENES[::12], ids=caption)
def test_what_a_scene_is_called_parses_back_to_the_scene(scene):
    assert parse_caption(caption(scene)) == ParsedCaption(scene.colour, scene.shape, scene.position, scene.background)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a black dog",
        "a red circle on the left",
        "a purple circle on the left, a white background",
        "a red circle on the left, a blue background",
        "a red circle on the left, a white background, and a dog",
    ],
)
def test_other_captions_are_not_read(text):
    assert parse_caption(text) is None


def test_a_true_caption_is_shown_in_every_attribute():
    assert shows(drawn(SCENES[5]), caption(SCENES[5])) == dict.fromkeys(ATTRIBUTES, True)


@pytest.mark.parametrize(
    "attribute, pairs",
    [
        ("colour", [("red", "blue"), ("green", "yellow"), ("red", "yellow")]),
        ("position", [("left", "right"), ("top", "bottom"), ("left", "top")]),
        ("shape", [("circle", "square"), ("square", "triangle"), ("circle", "triangle")]),
        ("background", [("white", "gray"), ("gray", "black")]),
    ],
)
def test_a_caption_wrong_in_one_word_is_not_shown_in_that_attribute_only(attribute, pairs):
    for pair in pairs:
        for word, other in (pair, pair[::-1]):
            scene = next(scene for scene in SCENES if getattr(scene, attribute) == word)
            expected = {name: name != attribute for name in ATTRIBUTES}
            assert shows(drawn(scene), caption(replace(scene, **{attribute: other}))) == expected


def test_a_caption_of_something_else_cannot_be_checked():
    with pytest.raises(UsageError, match="'a black dog' does not describe a drawn scene"):
        shows(drawn(SCENES[0]), "a black dog")


def nothing_seen(pixels):
    seen = see(pixels)
    return [getattr(seen, name) for name in ATTRIBUTES] == [""] * 4


@pytest.mark.parametrize("blur", [0, 1, 3, 6])
def test_noise_shows_nothing(blur):
    random = np.random.default_rng(0)
    for _ in range(20):
        noise = Image.fromarray(random.integers(0, 256, (128, 128, 3), dtype=np.uint8)).filter(
            ImageFilter.GaussianBlur(blur)
        )
        field = np.asarray(noise, float)
        stretched = 127 + (field - field.mean()) * 60 / field.std()
        assert nothing_seen(np.clip(stretched, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("rgb", [(232, 232, 232), (130, 130, 130), (30, 30, 30), (0, 0, 0), *COLOURS.values()])
def test_one_flat_colour_shows_nothing(rgb):
    assert nothing_seen(np.full((128, 160, 3), rgb, dtype=np.uint8))


def test_the_mean_of_the_data_set_and_its_mean_colour_show_nothing():
    mean = np.mean([np.asarray(draw_scene(scene).resize((128, 128))) for scene in SCENES], axis=0)
    assert nothing_seen(mean.astype(np.uint8))
    assert nothing_seen(np.broadcast_to(mean.mean(axis=(0, 1)), mean.shape).astype(np.uint8))


def test_two_objects_show_nothing():
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    for index, scene in enumerate(SCENES):
        rgb = SCENES[index - 1].object_rgb  # the same hue for some
        x, y = POSITIONS[opposite[scene.position]]
        size = scene.size * min(scene.width, scene.height)
        second = draw_coverage(
            SCENES[index - 1].shape, scene.width, scene.height, (x * scene.width, y * scene.height), size
        )
        image = draw_scene(scene)
        image.paste(rgb, mask=second)
        assert nothing_seen(np.asarray(image)), (scene, rgb)


def painted(rows, columns, rgb, background=(232, 232, 232)):
    """A box painted into 128x128 pixels without the drawing code."""
    pixels = np.full((128, 128, 3), background, dtype=np.uint8)
    pixels[rows, columns] = rgb
    return pixels


LOW, MIDDLE, HIGH = slice(10, 55), slice(42, 87), slice(73, 118)


@pytest.mark.parametrize(
    "rows, columns, place",
    [(MIDDLE, LOW, "left"), (MIDDLE, HIGH, "right"), (LOW, MIDDLE, "top"), (HIGH, MIDDLE, "bottom")],
)
@pytest.mark.parametrize(
    "rgb, colour",
    [((220, 20, 20), "red"), ((20, 170, 50), "green"), ((20, 40, 220), "blue"), ((240, 220, 20), "yellow")],
)
def test_words_mean_what_people_mean_by_them(rows, columns, place, rgb, colour):
    expected = dict.fromkeys(ATTRIBUTES, True)
    assert shows(painted(rows, columns, rgb), f"a {colour} square on the {place}, a white background") == expected
    assert (
        shows(painted(rows, columns, rgb, (20, 20, 20)), f"a {colour} square on the {place}, a black background")
        == expected
    )


def test_a_faint_tint_is_no_object():
    assert nothing_seen(painted(MIDDLE, LOW, (140, 120, 120), background=(130, 130, 130)))


def test_an_outline_without_a_filling_is_no_object():
    frame = painted(slice(24, 104), slice(5, 85), (220, 20, 20))
    frame[34:94, 15:75] = 232
    assert nothing_seen(frame)


def test_an_object_of_two_colours_has_a_position_and_no_colour():
    pixels = painted(MIDDLE, LOW, (220, 20, 20))
    pixels[64:87, LOW] = (240, 220, 20)
    assert (see(pixels).colour, see(pixels).position) == ("", "left")


def test_an_object_in_the_middle_has_a_colour_and_no_position():
    seen = see(drawn(replace(SCENES[0], centre=(0.5, 0.5))))
    assert (seen.colour, seen.position) == (SCENES[0].colour, "")


def test_an_object_between_two_hues_has_a_position_and_no_colour():
    seen = see(drawn(replace(SCENES[0], object_rgb=(60, 220, 220))))
    assert (seen.colour, seen.position) == ("", SCENES[0].position)


def test_a_background_with_a_hue_or_a_pattern_has_no_name():
    scene = next(scene for scene in SCENES if scene.background == "gray")
    tinted = replace(scene, background_rgb=(130, 130, 170))
    assert see(drawn(tinted)).background == ""
    pixels = drawn(scene).astype(int)
    pixels[::2] += 80
    pixels[1::2] -= 80
    assert see(np.clip(pixels, 0, 255).astype(np.uint8)).background == ""


def test_a_speck_is_no_object():
    assert nothing_seen(drawn(replace(SCENES[0], size=0.08)))


@pytest.mark.parametrize(
    "pixels", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)]
)
def test_pixels_of_another_shape_or_type_are_refused(pixels):
    with pytest.raises(BadDataError, match=r"reads \(H, W, 3\) uint8 pixels"):
        see(pixels)


def test_what_is_not_seen_is_the_default():
    assert see(np.zeros((64, 64, 3), np.uint8)) == Seen()
