"""Pictures in files: named, never overwritten, holding their settings, and drawn again to the same bits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dittool.console import SILENT
from dittool.errors import BadDataError, UsageError
from dittool.sampling.draw import draw, draw_all
from dittool.sampling.grid import parse_grid
from dittool.sampling.picture_file import SETTINGS_KEY, read_settings, seen_from, write_picture
from dittool.sampling.request import DrawRequest, SampleOptions, plan
from dittool.whereabouts import remembered


@pytest.fixture
def reference(tiny_shards):
    return min(tiny_shards.images.glob("*.png"))


def request(checkpoint, **changes):
    plain = DrawRequest(checkpoint, "a red circle", None, count=1, seed=0, size=None, changes={})
    return dataclasses.replace(plain, **changes)


def again(path, talk=SILENT, out=None, **options):
    (asked,) = plan(SampleOptions(again=path, **options))
    return draw(asked, out or path.parent / "again", talk)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_settings_travel_inside_the_png(checkpoint, reference, tmp_path):
    drawn = draw(
        request(checkpoint, reference=reference, count=2, seed=7, changes={"steps": 3, "cfg_text": 1.5}), tmp_path
    )
    assert [image.path.name for image in drawn] == ["sample_seed000007.png", "sample_seed000008.png"]
    inside = json.loads(Image.open(drawn[1].path).text[SETTINGS_KEY])
    assert inside == json.loads(json.dumps(seen_from(tmp_path, drawn[1].settings)))
    assert (inside["seed"], inside["steps"], inside["cfg_text"], inside["prompt"], inside["weights"]) == (
        8,
        3,
        1.5,
        "a red circle",
        "ema",
    )
    assert (inside["evaluations"], inside["passes"]) == (3, 9)
    assert inside["reference_sha256"] and inside["checkpoint_sha256"]


def test_the_same_settings_draw_the_same_bytes(checkpoint, tmp_path):
    first, second = (draw(request(checkpoint), tmp_path / name)[0].path for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()


def test_one_of_many_is_what_its_seed_draws_alone(checkpoint, tmp_path):
    many = draw(request(checkpoint, count=6, seed=10), tmp_path)
    alone = draw(request(checkpoint, seed=15), tmp_path / "alone.png")
    assert np.abs(pixels(many[5].path).astype(int) - pixels(alone[0].path)).max() <= 1, "but for rounding"


def test_a_picture_in_a_folder_is_not_overwritten(checkpoint, tmp_path):
    first = draw(request(checkpoint), tmp_path)[0].path
    before = first.read_bytes()
    second = draw(request(checkpoint, prompt="a blue square"), tmp_path)[0].path
    assert second.name == "sample_seed000000_2.png" and first.read_bytes() == before


def test_one_file_for_several_images_is_refused(checkpoint, tmp_path):
    with pytest.raises(UsageError, match="one file for 2 images"):
        draw(request(checkpoint, count=2), tmp_path / "a.png")


def test_a_reference_that_is_no_image_is_named(checkpoint, tmp_path):
    (tmp_path / "page.png").write_text("<html>")
    for field in ("reference", "init"):
        with pytest.raises(BadDataError, match=r"page\.png") as raised:
            draw(request(checkpoint, **{field: tmp_path / "page.png"}), tmp_path)
        assert "name another" in raised.value.hint and "source" not in raised.value.hint


def test_nan_is_not_drawn(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "dittool.sampling.drawing.sample_latents",
        lambda _model, _conditions, noise, *_: torch.full_like(noise, torch.nan),
    )
    with pytest.raises(BadDataError, match="NaN"):
        draw(request(checkpoint), tmp_path)
    assert list(tmp_path.glob("*.png")) == []


def test_what_it_costs_and_an_unusual_size_are_told(checkpoint, tmp_path, listener):
    draw(request(checkpoint, size=(64, 96), changes={"steps": 3, "solver": "heun"}), tmp_path, listener)
    assert "6 evaluations, 12 model passes" in listener.notes[0]
    assert "64x96 is no size of the training" in listener.notes[1] and "128x128" in listener.notes[1]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a red circle", None),
        (
            "red " * 512 + "blue " * 4488,
            r"5,000 tokens and the text encoder takes 512: the last 22,440 of its 24,488 characters are cut and have no"
            r" effect, from 'blue blue",
        ),
        ("a \x07 red circle", r"U\+0007 at character 2 has no place in a caption"),
        ("a \u202e red circle", r"U\+202E at character 2"),
        ("  ", "the caption is empty"),
    ],
    ids=["plain", "long", "control", "reordering", "empty"],
)
def test_a_prompt_that_the_model_cannot_have_learned_is_told(checkpoint, tmp_path, listener, prompt, message):
    draw(request(checkpoint, prompt=prompt), tmp_path, listener)
    about_it = [line for line in listener.warnings if line.startswith("the prompt")]
    assert len(about_it) == (message is not None)
    assert message is None or re.search(message, about_it[0])


def test_a_scale_without_its_condition_and_a_condition_without_its_scale_are_told(
    checkpoint, reference, tmp_path, listener
):
    draw(request(checkpoint, changes={"cfg_dino": 4.0}), tmp_path, listener)
    draw(request(checkpoint, reference=reference, changes={"cfg_text": 0.0}), tmp_path, listener)
    assert listener.warnings == ["--cfg-dino has no effect without --ref", "--prompt has no effect at --cfg-text 0"]


def test_settings_that_a_grid_or_the_strength_make_void_are_told(checkpoint, reference, tmp_path, listener):
    grid = parse_grid(("cfg-text=1,2", "cfg-dino=0"))
    draw(request(checkpoint, grid=grid, changes={"cfg_text": 5.0}), tmp_path, listener)
    for strength in (0.0, 0.5, 1.0):
        draw(request(checkpoint, init=reference, strength=strength), tmp_path, listener)
    assert [warning.split(":")[0].split(",")[0] for warning in listener.warnings] == [
        "--cfg-text has no effect with --grid",
        "at --strength 0 nothing is drawn",
        "at --strength 1 nothing of --init is left but its size",
    ]


def test_an_interval_without_a_step_in_it_is_told(checkpoint, tmp_path, listener):
    for interval in ((0.2, 0.4), (0.2, 0.5)):  # two steps: t = 1 and 0.5
        draw(request(checkpoint, changes={"guidance_interval": interval}), tmp_path, listener)
    assert [warning[:35] for warning in listener.warnings] == ["--guidance-interval 0.2 0.4: no ste"]


def test_a_scale_asked_for_beside_the_grid_of_a_picture_is_told(checkpoint, tmp_path, listener):
    grid = parse_grid(("cfg-text=1,2", "cfg-dino=0"))
    (drawn,) = draw(request(checkpoint, grid=grid), tmp_path, listener)
    draw_all(plan(SampleOptions(again=drawn.path)), tmp_path, listener)
    assert listener.warnings == []
    draw_all(plan(SampleOptions(again=drawn.path, settings={"cfg_text": 5.0})), tmp_path, listener)
    assert [warning.split(",")[0] for warning in listener.warnings] == ["--cfg-text has no effect with --grid"]


# Drawn again


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 3, "seed": 4},
        {"count": 6},
        {"size": (96, 64), "changes": {"solver": "ab2", "steps": 4, "cfg_text": 1.7}},
        {"changes": {"guidance": "nested", "guidance_interval": (0.2, 0.8), "steps": 5}},
    ],
)
def test_a_picture_is_drawn_again_to_the_same_bits(checkpoint, reference, tmp_path, changes):
    drawn = draw(request(checkpoint, reference=reference, **changes), tmp_path)
    for image in drawn:
        (repeated,) = again(image.path)
        assert repeated.path.name == f"{image.path.stem}_again.png" and repeated.same_pixels is True
        assert np.array_equal(pixels(repeated.path), pixels(image.path))
        assert repeated.settings == image.settings


def test_a_picture_begun_from_an_image_is_drawn_again(checkpoint, reference, tmp_path):
    (image,) = draw(request(checkpoint, init=reference, strength=0.4, changes={"steps": 4}), tmp_path)
    (repeated,) = again(image.path)
    assert repeated.same_pixels is True and repeated.settings["strength"] == 0.4 and repeated.settings["init_sha256"]
    (whole,) = again(image.path, strength=0.0, out=tmp_path / "whole.png")
    assert whole.same_pixels is None and not np.array_equal(pixels(whole.path), pixels(image.path))


def test_a_grid_is_drawn_again(checkpoint, reference, tmp_path):
    (asked,) = plan(
        SampleOptions(
            prompt="a red circle",
            ref=reference,
            checkpoint=checkpoint,
            grid=("cfg-text=1,2.5", "cfg-dino=0,1,2"),
            seed=3,
        )
    )
    (image,) = draw(asked, tmp_path)
    assert image.path.name == "grid_seed000003.png" and image.settings["evaluations"] == 2 * 6
    (repeated,) = again(image.path)
    assert repeated.same_pixels is True


def test_a_cell_of_a_grid_is_the_picture_with_its_scales(checkpoint, reference, tmp_path):
    options = SampleOptions(
        prompt="a red circle", ref=reference, checkpoint=checkpoint, size="64x64", grid=("cfg-text=1,4", "cfg-dino=0,3")
    )
    (sheet,) = draw_all(plan(options), tmp_path / "grid.png")
    (single,) = draw(
        request(checkpoint, reference=reference, size=(64, 64), changes={"cfg_text": 4.0, "cfg_dino": 3.0}),
        tmp_path / "one.png",
    )
    whole, one = pixels(sheet.path), pixels(single.path)
    found = [
        (y, x)
        for y in range(len(whole) - 63)
        for x in range(whole.shape[1] - 63)
        if np.array_equal(whole[y, x : x + 64], one[0]) and np.array_equal(whole[y : y + 64, x : x + 64], one)
    ]
    assert len(found) == 1 and found[0][0] > whole.shape[0] / 2 and found[0][1] > whole.shape[1] / 2, (
        "below and to the right"
    )


def test_other_options_change_the_picture_and_nothing_else(checkpoint, reference, tmp_path):
    (image,) = draw(request(checkpoint, reference=reference, seed=5, changes={"steps": 3}), tmp_path)
    changed = again(image.path, count=2, settings={"cfg_text": 1.0}, prompt="a blue square")
    assert [one.settings["seed"] for one in changed] == [5, 6] and changed[0].same_pixels is None
    differs = {key for key in image.settings if image.settings[key] != changed[0].settings[key]}
    assert differs == {"prompt", "cfg_text", "batch"}


def test_it_says_when_the_checkpoint_or_the_reference_is_another(
    checkpoint, reference, tiny_shards, tmp_path, listener
):
    moved = tmp_path / "moved.pt"
    shutil.copy(checkpoint, moved)
    own = tmp_path / "reference.png"
    shutil.copy(reference, own)
    (image,) = draw(request(moved, reference=own), tmp_path / "a.png")
    shutil.copy(max(tiny_shards.images.glob("*.png")), own)
    shutil.copy(checkpoint.parent / "checkpoint_step0000003.pt", moved)
    (repeated,) = again(image.path, listener)
    assert repeated.same_pixels is False
    assert [text.split(" is not the ")[1].split()[0] for text in listener.warnings[:2]] == ["checkpoint", "reference"]
    assert "pixels differ" in listener.warnings[2]


def test_files_that_moved_are_asked_for_and_may_be_named(checkpoint, reference, tmp_path):
    own = tmp_path / "reference.png"
    shutil.copy(reference, own)
    (image,) = draw(request(checkpoint, reference=own), tmp_path / "a.png")
    own.unlink()
    with pytest.raises(UsageError, match=r"reference\.png, which is not there") as raised:
        again(image.path)
    assert "--ref" in raised.value.hint
    assert again(image.path, ref=reference)[0].same_pixels is True


def test_other_threads_or_libraries_are_named_when_the_pixels_differ(checkpoint, tmp_path, listener):
    (image,) = draw(request(checkpoint), tmp_path / "a.png")
    changed = pixels(image.path).copy()
    changed[0, 0] ^= 1
    write_picture(
        image.path,
        Image.fromarray(changed),
        {**image.settings, "made_with": {**image.settings["made_with"], "threads": 64}},
    )
    assert again(image.path, listener)[0].same_pixels is False
    assert "threads 1, then 64" in listener.warnings[0]


def test_what_is_read_back_is_what_was_written(checkpoint, tmp_path):
    (image,) = draw(request(checkpoint, changes={"guidance_interval": (0.1, 0.9), "cfg_text": 1 / 3}), tmp_path)
    inside = read_settings(image.path)
    assert inside.guidance_interval == [0.1, 0.9] and inside.cfg_text == 1 / 3


# As `dit sample` of 0.1.0 wrote them; what differs from run to run is left open
OF_VERSION_0_1 = (
    '{"checkpoint": "%s", "checkpoint_sha256": "%s", "step": 8, "weights": "ema", "prompt": "a red circle",'
    ' "reference": null, "reference_sha256": null, "init": null, "init_sha256": null, "strength": 1.0,'
    ' "size": "128x128", "solver": "heun", "steps": 2, "cfg_text": 0.5, "cfg_dino": 2.0, "guidance": "nested",'
    ' "shift": 1.0, "guidance_interval": [0.2, 0.8], "made_with": %s, "evaluations": 4, "passes": 6, "seed": 4,'
    ' "batch": [3, 2]}'
)


def test_a_picture_of_version_0_1_repeats_and_its_settings_are_written_as_then(checkpoint, tmp_path):
    made_with = json.dumps(draw(request(checkpoint), tmp_path / "now.png")[0].settings["made_with"])
    text = OF_VERSION_0_1 % (checkpoint, hashlib.sha256(checkpoint.read_bytes()).hexdigest(), made_with)
    write_picture(tmp_path / "then.png", Image.new("RGB", (128, 128)), json.loads(text))
    (repeated,) = again(tmp_path / "then.png")
    assert repeated.same_pixels is False, "those pixels were made up; all else is as it was"
    seen = json.dumps({**json.loads(text), "checkpoint": remembered(checkpoint, repeated.path.parent)})
    assert Image.open(repeated.path).text[SETTINGS_KEY] == seen
