"""Where patches lie, told from content: every known way of misplacing them is recognised, and noise is not."""

from __future__ import annotations

import numpy as np
import pytest

from dittool.data.alignment import IDENTITY, align, observe

GRID, SIZE = (5, 7), (112, 80)  # (rows, columns), (width, height) in pixels
IMAGES = 40


@pytest.fixture(scope="module")
def latents():
    """(2, 10, 14) each: smooth, as pictures are."""
    chance = np.random.default_rng(0)
    coarse = chance.normal(size=(IMAGES, 2, 5, 7))
    return [np.kron(one, np.ones((1, 2, 2))) + 0.1 * chance.normal(size=(2, 10, 14)) for one in coarse]


def patches_of(latent):
    """(rows, columns, 6): what an encoder might see of each cell, mixed by fixed weights."""
    mix = np.random.default_rng(1).normal(size=(2, 6))
    cells = latent.reshape(2, latent.shape[1] // 2, 2, latent.shape[2] // 2, 2).mean(axis=(2, 4))
    return np.moveaxis(cells, 0, -1) @ mix


def found(latents, misplace):
    return align(
        [
            observe(misplace(patches_of(latent)).reshape(-1, 6), latent, GRID, SIZE, 256, seed)
            for seed, latent in enumerate(latents)
        ]
    )


def raster(by):
    return lambda patches: np.roll(patches.reshape(-1, 6), by, axis=0)


@pytest.mark.parametrize(
    ("arrangement", "misplace"),
    [
        (IDENTITY, lambda patches: patches),
        ("shifted by +4", raster(4)),
        ("shifted by -1", raster(-1)),
        ("flipped left to right", lambda patches: patches[:, ::-1]),
        ("flipped top to bottom", lambda patches: patches[::-1]),
        ("column by column", lambda patches: patches.swapaxes(0, 1)),
    ],
)
def test_the_arrangement_that_was_made_is_the_one_found(latents, arrangement, misplace):
    result = found(latents, misplace)
    assert result.best == arrangement
    assert result.scores[arrangement] > 0.4  # half of the statistics are magnitudes, which these patches do not hold
    assert arrangement == IDENTITY or result.advantage[arrangement] > 5


def test_patches_that_know_nothing_of_the_latent_explain_nothing(latents):
    chance = np.random.default_rng(2)
    result = found(latents, lambda patches: chance.normal(size=patches.shape))
    assert max(result.scores.values()) < 0.05


def test_brightness_of_the_whole_image_does_not_count(latents):
    """Each image's patches say how bright it is and nothing about places."""
    result = found(latents, lambda patches: patches.mean(axis=(0, 1), keepdims=True) + 0 * patches)
    assert max(result.scores.values()) < 0.05


def test_large_grids_are_thinned_alike_in_patches_and_latent():
    chance = np.random.default_rng(3)
    latents = [np.kron(chance.normal(size=(2, 20, 30)), np.ones((1, 2, 2))) for _ in range(IMAGES)]
    seen = [
        observe(patches_of(latent).reshape(-1, 6), latent, (20, 30), (480, 320), 100, seed)
        for seed, latent in enumerate(latents)
    ]
    assert {len(image.features) for image in seen} == {len(image.targets) for image in seen} == {100}
    assert align(seen).best == IDENTITY
