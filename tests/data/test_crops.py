"""Random crops are recognised by content, the latent as stored and one window for all are not taken for them."""

from __future__ import annotations

import numpy as np
import pytest

from dittool.data.crops import Sketch, own_windows, sketch
from dittool.data.patch_storage import POOLED, encode_patches

GRID, LATENT, IMAGES = (8, 10), (16, 20), 60


def smooth_latent(chance: np.random.Generator) -> np.ndarray:
    """(4, 64, 80): waves of a few lengths, finely sampled so that parts can be cut out."""
    y, x = np.mgrid[0:1:64j, 0:1:80j]
    waves = [
        np.sin(2 * np.pi * (chance.normal(scale=1.5) * y + chance.normal(scale=1.5) * x + chance.uniform()))
        for _ in range(16)
    ]
    return np.stack(waves).reshape(4, 4, 64, 80).sum(axis=1)


def means(fine: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(C, rows, columns) of (C, h, w), by nearest places."""
    down = np.linspace(0, fine.shape[1] - 1, 4 * rows).round().astype(int)
    across = np.linspace(0, fine.shape[2] - 1, 4 * columns).round().astype(int)
    return fine[:, down][:, :, across].reshape(len(fine), rows, 4, columns, 4).mean(axis=(2, 4))


def sketches(window, storage: str = "fp16", noise: float = 0.3) -> list[Sketch]:
    """Patches of the window (top, left, tall, wide) that each image is given, beside the latent of all of it."""
    made, mix = [], np.random.default_rng(1).normal(size=(4, 12))
    for number in range(IMAGES):
        chance = np.random.default_rng(number)
        fine = smooth_latent(chance)
        top, left, tall, wide = window(chance)
        patches = means(fine[:, top : top + tall, left : left + wide], *GRID).reshape(4, -1).T @ mix
        patches = patches + noise * chance.normal(size=patches.shape)
        stored = encode_patches(patches, GRID, storage).astype(np.float32)
        made.append(sketch(stored, means(fine, *LATENT), GRID, storage))
    return made


def a_crop(chance):
    tall, wide = int(chance.integers(40, 58)), int(chance.integers(50, 72))
    return int(chance.integers(64 - tall + 1)), int(chance.integers(80 - wide + 1)), tall, wide


@pytest.mark.parametrize("storage", ["fp16", POOLED])
def test_random_crops_are_recognised(storage):
    found = own_windows(sketches(a_crop, storage))
    assert found.cropped and found.explained > found.fixed + 0.1 and found.deciding is None


@pytest.mark.parametrize("storage", ["fp16", POOLED])
def test_latents_as_stored_are_not_taken_for_crops(storage):
    found = own_windows(sketches(lambda chance: (0, 0, 64, 80), storage))
    assert not found.cropped and found.advantage < 0 and found.deciding is None
    assert storage == POOLED or found.as_stored > IMAGES / 2


def test_one_window_for_all_is_no_random_crop():
    found = own_windows(sketches(lambda chance: (6, 8, 52, 64)))
    assert not found.cropped and found.as_stored < IMAGES / 2 and found.fixed > found.explained - 0.02


def test_patches_that_know_nothing_of_the_latent_explain_nothing():
    found = own_windows(sketches(a_crop, noise=1e3))
    assert not found.cropped and found.explained < 0.1


def test_one_channel_has_no_other_half():
    one = sketches(a_crop)[0]
    assert own_windows([Sketch(one.features, one.maps[[0, 4]], one.grid)] * 4) is None
