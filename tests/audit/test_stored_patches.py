"""Patches that were stored smaller, in a derived folder and in shards: the rules judge what a model would be given."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.features.store import FeatureStore
from dittool.data.patch_storage import INT8, POOLED, encode_patches
from dittool.data.records import IMAGE_PATCHES
from dittool.data.shards.write import shard
from dittool.data.source.scan import load_pixels
from tests.audit.misplaced import MISPLACED, builtin_eyes, textured
from tests.audit.older import judge, judge_all

IMAGES = 48


@pytest.fixture(scope="module", params=[INT8, POOLED])
def storage(request):
    return request.param


@pytest.fixture(scope="module")
def root(storage, tmp_path_factory):
    """A folder with images/, derived/ and shards/ in which nothing is wrong."""
    root = tmp_path_factory.mktemp(storage)
    (root / "images").mkdir()
    for number in range(IMAGES):
        Image.fromarray(textured(number, 176, 176)).save(root / "images" / f"{number:02d}.png")
        (root / "images" / f"{number:02d}.txt").write_text(f"picture number {number}")
    embed(
        root / "images", root / "derived", load_config("demo", [f"data.patch_storage={storage}", "data.area=176x176"])
    )
    shard(root / "derived", root / "shards")
    return root


@pytest.mark.parametrize("folder", [pytest.param("derived", marks=pytest.mark.slow), "shards"])
def test_clean_features_pass(root, storage, folder):
    found = judge(root / folder, "D1", "D2", "D3", "D4", "D6", "D7", "D8")
    expected = dict.fromkeys(found, "pass") | ({"D2": "skip"} if storage == POOLED else {})
    assert {code: finding.status for code, finding in found.items()} == expected, found
    assert found["D1"].evidence.endswith("widths image 64, text 64, channels 16")


def test_registers_among_the_patches_are_found(root, storage, tmp_path):
    """Misplaced before they were stored, so pooled ones hold a register and three patches in one token."""
    store, eyes = FeatureStore(shutil.copytree(root / "derived", tmp_path / "derived")), builtin_eyes()
    for record in store.read_records():
        pixels = load_pixels(record, root / "images")
        misplaced = encode_patches(MISPLACED["registers stored as patches"](eyes, pixels), eyes.grid(pixels), storage)
        np.save(store.path(IMAGE_PATCHES, record.id), misplaced)
    found = judge(tmp_path / "derived", "D1", "D2", "D3", "D6")
    assert found["D3"].status == "fail" and "shifted by +4 explains" in found["D3"].evidence, found
    assert found["D1"].status == found["D6"].status == "pass"
    assert found["D2"].status == ("skip" if storage == POOLED else "fail")


def test_patches_of_other_images_are_found(root, storage, tmp_path):
    """Each sample has the patches of the one before it."""
    store = FeatureStore(shutil.copytree(root / "derived", tmp_path / "derived"))
    paths = [store.path(IMAGE_PATCHES, record.id) for record in store.read_records()]
    stored = [np.load(path) for path in paths]
    for path, other in zip(paths, [stored[-1], *stored[:-1]], strict=True):
        np.save(path, other)
    found = judge_all(tmp_path / "derived", "D10")
    wrong = [finding.evidence for finding in found if finding.status == "fail"]
    assert len(wrong) == 1 and wrong[0].startswith("latents and patches: of 48 samples"), found
    assert not [finding for finding in judge_all(root / "derived", "D10") if finding.status == "fail"]
