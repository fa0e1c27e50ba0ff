"""Patches are stored only where training reads them, and every reader knows that there are none."""

from __future__ import annotations

import json

import pytest

from dittool.config.architectures import with_patch_storage
from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.features.store import FeatureStore
from dittool.data.shards.read import ShardSet
from dittool.data.shards.verify import verify
from dittool.data.shards.write import shard
from dittool.errors import BadDataError
from dittool.train.loop import train


@pytest.fixture(scope="module")
def config(tiny_shards):
    return load_config("demo", [*tiny_shards.overrides, "model.patches=false", "repa.weight=0"])


@pytest.fixture(scope="module")
def made(tiny_shards, config, tmp_path_factory):
    """(derived folder, shards) of a configuration that reads no patches. Read only."""
    root = tmp_path_factory.mktemp("without")
    embed(tiny_shards.images, root / "derived", config)
    shard(root / "derived", root / "shards")
    return root / "derived", root / "shards"


def test_auto_stores_them_where_the_model_or_the_alignment_reads_them(config):
    assert with_patch_storage(config).data.patch_storage == "none"
    assert with_patch_storage(load_config("demo", [])).data.patch_storage == "fp16"
    aligned = load_config("nano", ["repa.weight=0.5"])
    assert with_patch_storage(aligned).data.patch_storage == "fp16"
    assert with_patch_storage(load_config("nano", ["data.patch_storage=int8"])).data.patch_storage == "int8"
    # a folder that holds them goes on holding them, and one that lacks them is not read by who needs them
    assert with_patch_storage(config, "fp16").data.patch_storage == "fp16"
    assert with_patch_storage(load_config("demo", []), "none").data.patch_storage == "fp16"


def test_neither_folder_nor_shards_hold_patches_and_all_else_is_the_same(made, tiny_shards):
    derived, folder = made
    assert not (derived / "dinov3_patches").exists()
    shards, others = ShardSet.open(folder), ShardSet.open(tiny_shards.folder)
    assert verify(folder) == [] and shards.patch_storage == "none"
    for ref, other in zip(shards.samples, others.samples, strict=True):
        one, two = shards.read(ref), others.read(other)
        assert ref.id == other.id and one.patches is None and "dinov3_patches.npy" not in ref.members
        assert (one.cls == two.cls).all() and (one.latent == two.latent).all() and (one.text == two.text).all()
    assert shards.statistics.patch_mean == () and shards.statistics.cls_mean == others.statistics.cls_mean


def test_the_audit_says_which_rules_need_patches(made, dit):
    for folder in made:
        found = json.loads(dit("audit", folder, "--json").out)
        status = {finding["code"]: finding for finding in found["findings"] if finding["code"] in ("D1", "D2", "D3")}
        assert found["ok"] and [status[code]["status"] for code in ("D1", "D2", "D3")] == ["pass", "skip", "skip"]
        assert all("no patches are stored" in one["evidence"] for one in status.values())
        assert any(
            f["code"] == "D10" and f["status"] == "skip" and "no patches" in f["evidence"] for f in found["findings"]
        )


def test_a_model_that_reads_none_trains_and_one_that_does_is_refused(made, config, tmp_path, tiny_shards):
    train(config, made[1], tmp_path / "run")
    with pytest.raises(BadDataError, match="its samples have no patches"):
        train(tiny_shards.config, made[1], tmp_path / "other")


def test_a_folder_without_them_is_embedded_further_only_by_who_reads_none(made, config, tiny_shards):
    derived, _ = made
    assert sum(embed(tiny_shards.images, derived, config).made.values()) == 0
    with pytest.raises(BadDataError, match=r"patch_storage: 'fp16' here, 'none' there"):
        embed(tiny_shards.images, derived, tiny_shards.config)
    assert sum(embed(tiny_shards.images, tiny_shards.store.folder, config).made.values()) == 0
    assert FeatureStore(tiny_shards.store.folder).patch_storage == "fp16"
