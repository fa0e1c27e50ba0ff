"""Rectified flow's fixed evaluation, and data that a configuration cannot be trained on."""

from __future__ import annotations

from collections import Counter

import pytest

from dittool.data.provenance import Provenance
from dittool.data.shards.index import TRAIN
from dittool.data.shards.read import ShardSet
from dittool.errors import UsageError
from dittool.families.flow import Evaluation, require_features


def test_the_evaluation_looks_at_every_bucket(tiny_shards, monkeypatch):
    """The first samples of an index are of one bucket."""
    monkeypatch.setattr("dittool.families.flow._LARGEST_EVALUATION", 8)
    shards = ShardSet.open(tiny_shards.folder)
    refs = shards.split(TRAIN)
    read = Counter()
    monkeypatch.setattr(ShardSet, "read", _counting(ShardSet.read, read))
    Evaluation(shards, refs, Provenance.of(shards, refs, tiny_shards.config).norm, tiny_shards.config)
    of_all = Counter(ref.bucket for ref in refs)
    assert len({ref.bucket for ref in refs[:8]}) < len(of_all)
    assert read.total() == 8 and all(abs(read[name] - 8 * n / len(refs)) <= 1 for name, n in of_all.items())


def _counting(read, counted):
    def reads(self, ref, *rest):
        counted[ref.bucket] += 1
        return read(self, ref, *rest)

    return reads


def test_patches_are_added_only_where_each_token_has_one(tiny_shards):
    shards = ShardSet.open(tiny_shards.folder)
    require_features(tiny_shards.config_with("model.patch_fusion=added"), shards)
    with pytest.raises(UsageError, match=r"112x160 has 10×7 patches \(fp16\) and 20×14 tokens") as raised:
        require_features(tiny_shards.config_with("model.patch_fusion=added", "model.patch_size=1"), shards)
    assert "model.patch_fusion=attended" in raised.value.hint
    require_features(tiny_shards.config_with("model.patch_size=1"), shards)  # attended to, any grid serves
