"""Patches on disk: what each storage loses stays within what docs/storage.md says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dittool.data.features.store import FeatureStore
from dittool.data.patch_storage import STORAGES, decode_patches, encode_patches, stored_grid, stored_shape
from dittool.data.records import IMAGE_PATCHES
from dittool.errors import BadDataError

GRID = (6, 9)
WIDTH = 1024


def gaussian(rows=GRID[0] * GRID[1], width=WIDTH, spread=3.0):
    """Tokens whose sizes differ, as those of encoders do: (N, C) float32."""
    chance = np.random.default_rng(0)
    return (chance.normal(size=(rows, width)) * np.exp(chance.uniform(-spread, spread, (rows, 1)))).astype(np.float32)


def there_and_back(patches, grid, storage):
    return decode_patches(encode_patches(patches, grid, storage), storage)


def relative_error(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def mean_of_four(patches, grid):
    """The slow and plain way."""
    rows, columns = grid
    cells = patches.reshape(rows, columns, -1).astype(np.float64)
    return np.stack(
        [cells[r : r + 2, c : c + 2].mean(axis=(0, 1)) for r in range(0, rows, 2) for c in range(0, columns, 2)]
    )


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("grid", [(6, 9), (1, 1), (2, 2), (1, 5), (7, 3)])
def test_the_shape_is_known_beforehand(storage, grid):
    stored = encode_patches(gaussian(grid[0] * grid[1], 8), grid, storage)
    assert stored.shape == stored_shape(grid, 8, storage)
    back = decode_patches(stored, storage)
    assert back.dtype == np.float32 and back.shape == (stored_grid(grid, storage)[0] * stored_grid(grid, storage)[1], 8)


def test_the_grid_of_pooled_patches_is_half_of_it_rounded_up():
    assert stored_grid((64, 64), "pooled") == (32, 32) and stored_grid((5, 7), "pooled") == (3, 4)
    assert all(stored_grid((5, 7), storage) == (5, 7) for storage in ("fp16", "fp32", "int8"))


def test_fp32_loses_nothing():
    assert np.array_equal(there_and_back(gaussian(), GRID, "fp32"), gaussian())


def test_int8_errs_by_half_a_level_at_most_and_a_token_does_not_disturb_another():
    patches = gaussian()
    error = np.abs(there_and_back(patches, GRID, "int8") - patches)
    level = np.abs(patches).max(axis=1, keepdims=True) / 127
    assert (error <= level * 0.5 * (1 + 2e-3)).all()  # the scale is rounded up to float16: two thousandths at most
    alone = encode_patches(patches[:1], (1, 1), "int8")
    assert np.array_equal(encode_patches(patches, GRID, "int8")[:1], alone)


def test_int8_keeps_a_scale_a_token_in_two_bytes_behind_its_values():
    stored = encode_patches(np.array([[1.27, -0.64, 0.0]], np.float32), (1, 1), "int8")
    assert stored.dtype == np.int8 and stored.tolist()[0][:3] == [127, -64, 0]
    assert float(stored[:, 3:].copy().view("<f2")[0, 0]) == pytest.approx(0.01, rel=1e-3)


def test_tokens_of_zeros_and_of_tiny_values_survive_int8():
    tiny = np.full((2, 4), 1e-5, np.float32)
    tiny[0] = 0
    assert np.allclose(there_and_back(tiny, (1, 2), "int8"), tiny, atol=6e-8)


@pytest.mark.parametrize("grid", [(6, 9), (4, 4), (1, 5), (5, 1)])
def test_pooled_is_the_mean_of_two_by_two_and_at_the_edge_of_what_is_there(grid):
    patches = gaussian(grid[0] * grid[1], 16, spread=0.1)
    assert np.allclose(there_and_back(patches, grid, "pooled"), mean_of_four(patches, grid), rtol=1e-3, atol=1e-3)


def test_pooling_does_not_overflow_where_four_large_values_add_up():
    large = np.full((4, 8), 60_000, np.float32)
    assert np.array_equal(there_and_back(large, (2, 2), "pooled"), np.full((1, 8), 60_000, np.float32))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_and_spoils_only_its_token(storage, value):
    patches = gaussian(16, 8, spread=0.1)
    patches[5, 3] = value
    finite = np.isfinite(there_and_back(patches, (4, 4), storage)).all(axis=1)
    assert (~finite).sum() == 1


@pytest.mark.parametrize("storage", ["fp16", "int8", "pooled"])
def test_what_is_too_large_for_the_storage_does_not_pass_for_a_number(storage):
    assert not np.isfinite(there_and_back(np.full((1, 4), 1e8, np.float32), (1, 1), storage)).any()


def test_patches_that_do_not_fill_their_grid_are_refused():
    with pytest.raises(ValueError, match=r"5×9 = 45"):
        encode_patches(gaussian(), (5, 9), "fp16")
    with pytest.raises(ValueError, match="'fp8' is no patch storage"):
        encode_patches(gaussian(), GRID, "fp8")


@pytest.mark.parametrize(
    ("stored_as", "read_as"), [("fp16", "int8"), ("int8", "fp16"), ("int8", "pooled"), ("fp32", "fp8")]
)
def test_an_array_of_another_storage_is_refused(stored_as, read_as):
    stored = encode_patches(gaussian(), GRID, stored_as) if stored_as in STORAGES else None
    with pytest.raises(BadDataError, match=read_as):
        decode_patches(stored, read_as)


def documented(column):
    """storage → the number in a column of docs/storage.md's table."""
    page = (Path(__file__).parents[2] / "docs" / "storage.md").read_text()
    header = next(line for line in page.splitlines() if line.startswith("| storage"))
    index = [cell.strip() for cell in header.split("|")].index(column)
    rows = [
        [cell.strip() for cell in line.split("|")]
        for line in page.splitlines()
        if re.match(r"\| `(fp16|fp32|int8)`", line)
    ]
    return {row[1].strip("`"): float(row[index]) for row in rows}


@pytest.mark.parametrize("storage", ["fp16", "fp32", "int8"])
def test_the_documented_bound_holds_for_gaussian_and_for_real_features(storage, tiny_shards):
    bound = documented("error, at most")[storage]
    assert relative_error(there_and_back(gaussian(), GRID, storage), gaussian()) <= bound
    store = FeatureStore(tiny_shards.folder.parent / "derived")
    for record in store.read_records():
        patches = store.read(IMAGE_PATCHES, record.id).astype(np.float32)
        assert relative_error(there_and_back(patches, (len(patches), 1), storage), patches) <= bound


@pytest.mark.parametrize("storage", ["fp16", "fp32", "int8"])
def test_the_documented_size_is_the_size(storage):
    stored = encode_patches(gaussian(4096), (64, 64), storage)
    assert round(stored.nbytes / 1e6, 2) == documented("MB at 1024²")[storage]
