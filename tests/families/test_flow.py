"""Rectified flow's fixed evaluation."""

from __future__ import annotations

from collections import Counter

from dittool.data.provenance import Provenance
from dittool.data.shards.index import TRAIN
from dittool.data.shards.read import ShardSet
from dittool.families.flow import Evaluation


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
