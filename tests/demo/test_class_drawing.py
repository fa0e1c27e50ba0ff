"""Class folders of drawn shapes: real ones are read back, others are not, and drawing again changes nothing."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dittool.demo.class_drawing import CLASSES, draw_class_folders, recognise


def images_of(folder, name: str) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / name).glob("*.png"))])


def test_every_class_has_images_that_are_recognised_as_it_and_as_no_other(tmp_path):
    draw_class_folders(tmp_path, 48, 0, 64)
    assert {path.name for path in tmp_path.iterdir()} == set(CLASSES)
    for name in CLASSES:
        drawn = images_of(tmp_path, name)
        assert recognise(drawn, name).both == 1.0
        colour, shape = name.split("-")
        other_colour, other_shape = (
            ("red" if colour != "red" else "blue"),
            ("circle" if shape != "circle" else "square"),
        )
        assert (
            recognise(drawn, f"{other_colour}-{shape}").colour == 0
            and recognise(drawn, f"{colour}-{other_shape}").shape == 0
        )


def test_backgrounds_vary_within_a_class(tmp_path):
    draw_class_folders(tmp_path, 144, 0, 64)
    assert recognise(images_of(tmp_path, "red-circle"), "red-circle").kinds == 3


def test_some_colours_alone_are_the_same_images(tmp_path):
    draw_class_folders(tmp_path / "all", 48, 0, 32)
    draw_class_folders(tmp_path / "red", 48, 0, 32, colours=["red"])
    names = {str(path.relative_to(tmp_path / "red")) for path in (tmp_path / "red").rglob("*.png")}
    assert (
        names == {str(path.relative_to(tmp_path / "all")) for path in (tmp_path / "all").glob("red-*/*.png")} and names
    )
    assert all((tmp_path / "red" / name).read_bytes() == (tmp_path / "all" / name).read_bytes() for name in names)


def test_noise_is_recognised_as_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    assert recognise(noise, "red-circle").both == 0


def test_drawing_again_touches_no_file(tmp_path):
    draw_class_folders(tmp_path, 12, 0, 64)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    draw_class_folders(tmp_path, 12, 0, 64)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} and len(before) == 12
