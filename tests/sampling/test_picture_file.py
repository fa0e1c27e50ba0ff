"""Settings inside a PNG: what cannot be used is refused by name, whoever wrote it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from dittool.errors import BadDataError, UsageError
from dittool.sampling.picture_file import Output, read_settings, same_pixels, write_picture

SETTINGS = {
    "checkpoint": "runs/a/checkpoints/checkpoint_final.pt",
    "checkpoint_sha256": "0" * 64,
    "prompt": "a red circle",
    "reference": None,
    "reference_sha256": None,
    "size": "64x64",
    "seed": 6,
    "batch": [5, 4],
    "solver": "euler",
    "steps": 3,
    "cfg_text": 3.0,
    "cfg_dino": 2.0,
    "guidance": "additive",
    "guidance_interval": [0.0, 1.0],
    "shift": 1.0,
}


def written(tmp_path, settings):
    write_picture(tmp_path / "a.png", Image.new("RGB", (8, 8)), settings)
    return tmp_path / "a.png"


def test_settings_are_read_back(tmp_path):
    inside = read_settings(written(tmp_path, SETTINGS | {"a key of a later version": 1}))
    assert (inside.seed, inside.batch, inside.prompt) == (6, [5, 4], "a red circle")


def test_a_picture_from_before_there_were_intervals_and_batches_is_read(tmp_path):
    inside = read_settings(
        written(tmp_path, {key: value for key, value in SETTINGS.items() if key not in ("batch", "guidance_interval")})
    )
    assert inside.batch is None and inside.guidance_interval == [0.0, 1.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"solver": "magic"}, "solver"),
        ({"solver": None}, "solver"),
        ({"steps": 0}, "steps"),
        ({"steps": 10**12}, "steps"),
        ({"cfg_text": -1.0}, "cfg_text"),
        ({"cfg_text": "3"}, "cfg_text"),
        ({"guidance_interval": [0.9, 0.1]}, "ends before it begins"),
        ({"guidance_interval": [0.1]}, "guidance_interval"),
        ({"strength": 1.5}, "strength"),
        ({"size": "64"}, "WIDTHxHEIGHT"),
        ({"seed": -1}, "seed"),
        ({"batch": [7, 4]}, "seed 6 is none of a batch"),
        ({"batch": [0, 10**9]}, "more than 64"),
        ({"grid": ["cfg-text=1", "steps=1"]}, "'steps' is no axis"),
        ({"checkpoint_sha256": "zz"}, "checkpoint_sha256"),
        ({"shift": 0.0}, "shift"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(tmp_path, change, said):
    with pytest.raises(BadDataError, match=r"a\.png: the settings inside cannot be used") as raised:
        read_settings(written(tmp_path, SETTINGS | change))
    assert said in raised.value.message and "\n" not in raised.value.message


def test_a_picture_without_settings_is_refused(tmp_path):
    with pytest.raises(BadDataError, match="no settings inside"):
        read_settings(written(tmp_path, None))
    with pytest.raises(BadDataError, match="cannot be used"):
        read_settings(written(tmp_path, [1, 2]))


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + b"\0" * 100])
def test_what_is_no_png_is_refused(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadDataError, match="not a readable PNG"):
        read_settings(tmp_path / "a.png")


def test_a_cut_png_is_refused_or_whole(tmp_path):
    whole = written(tmp_path, SETTINGS).read_bytes()
    for length in range(8, len(whole), 7):
        (tmp_path / "cut.png").write_bytes(whole[:length])
        try:
            read_settings(tmp_path / "cut.png")
        except BadDataError as error:
            assert "cut.png" in error.message


def test_a_missing_picture_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_settings(tmp_path / "a.png")


def test_text_that_is_no_json_is_refused(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("dit", "{" + json.dumps("x"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(BadDataError, match="cannot be used"):
        read_settings(tmp_path / "a.png")


def test_pixels_are_compared_one_by_one(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    path = written(tmp_path, SETTINGS)
    assert same_pixels(path, pixels)
    pixels[3, 3, 1] = 1
    assert not same_pixels(path, pixels)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp"])
def test_every_format_holds_its_settings_and_is_recognised_when_it_is_drawn_again(tmp_path, name):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    write_picture(tmp_path / name, Image.fromarray(pixels), SETTINGS)
    assert read_settings(tmp_path / name).prompt == "a red circle"
    assert same_pixels(tmp_path / name, pixels)
    assert not same_pixels(tmp_path / name, 255 - pixels)


def test_settings_that_do_not_fit_into_a_jpeg_are_an_error_that_names_png(tmp_path):
    with pytest.raises(UsageError, match="do not fit") as raised:
        write_picture(tmp_path / "a.jpg", Image.new("RGB", (8, 8)), SETTINGS | {"prompt": "word " * 20_000})
    assert ".png" in raised.value.hint and list(tmp_path.iterdir()) == []


def test_where_pictures_go(tmp_path):
    (tmp_path / "is_a_folder.jpg").mkdir()
    assert Output.of(tmp_path / "is_a_folder.jpg", 4).file is None
    assert Output.of(tmp_path / "v1.5", 4).folder == tmp_path / "v1.5"
    assert Output.of(tmp_path / "a.webp", 1).file == tmp_path / "a.webp"
    with pytest.raises(UsageError, match="one file for 2 images"):
        Output.of(tmp_path / "a.jpg", 2)
    with pytest.raises(UsageError, match=r"written as \.png, \.jpg, \.jpeg, \.webp"):
        Output.of(tmp_path / "a.tiff", 1)
    assert not (tmp_path / "v1.5").exists()


def test_no_input_and_no_strangers_picture_is_written_over(tmp_path):
    photo, drawn = tmp_path / "photo.jpg", tmp_path / "drawn.png"
    Image.new("RGB", (8, 8)).save(photo)
    write_picture(drawn, Image.new("RGB", (8, 8)), SETTINGS)
    for force in (False, True):
        with pytest.raises(UsageError, match="it is the input"):
            Output.of(photo, 1, [photo], force)
    with pytest.raises(UsageError, match="another origin"):
        Output.of(photo, 1)
    assert Output.of(photo, 1, force=True).file == photo
    assert Output.of(drawn, 1).file == drawn
