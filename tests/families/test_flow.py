"""Rectified flow's fixed evaluation, and data that a configuration cannot be trained on."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from dittool.data.provenance import Provenance
from dittool.data.shards.index import TRAIN
from dittool.data.shards.read import ShardSet
from dittool.encoders.known import known_widths
from dittool.errors import UsageError
from dittool.families.flow import require_features
from dittool.families.flow_evaluation import FlowEvaluation
from dittool.models.build import build_model
from dittool.objective.flow import MODES


def test_the_evaluation_looks_at_every_bucket(tiny_shards, monkeypatch):
    """The first samples of an index are of one bucket."""
    monkeypatch.setattr("dittool.families.flow_evaluation._LARGEST", 8)
    shards = ShardSet.open(tiny_shards.folder)
    refs = shards.split(TRAIN)
    read = Counter()
    monkeypatch.setattr(ShardSet, "read", _counting(ShardSet.read, read))
    FlowEvaluation(shards, refs, Provenance.of(shards, refs, tiny_shards.config).norm, tiny_shards.config)
    of_all = Counter(ref.bucket for ref in refs)
    assert len({ref.bucket for ref in refs[:8]}) < len(of_all)
    assert read.total() == 8 and all(abs(read[name] - 8 * n / len(refs)) <= 1 for name, n in of_all.items())


def test_an_evaluation_is_made_up_of_its_parts(tiny_shards):
    shards, config = ShardSet.open(tiny_shards.folder), tiny_shards.config
    refs = shards.split(TRAIN)
    evaluation = FlowEvaluation(shards, refs, Provenance.of(shards, refs, config).norm, config)
    widths = known_widths(config.encoders.image, config.encoders.text, config.encoders.vae)
    model = build_model(config, widths.text, widths.image, widths.latent_channels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)  # or every gate is shut, and no condition makes a difference
    found, cpu = evaluation.losses(model, torch.device("cpu")), torch.device("cpu")
    assert list(found.figures) == ["eval_loss"] and found.figures["eval_loss"] == evaluation.loss(model, cpu)
    quantiles = [found.parts[f"eval_loss_q{q}"] for q in range(10, 100, 10)]
    assert sum(quantiles) / 9 == pytest.approx(found.figures["eval_loss"])
    assert found.parts["eval_loss_both"] == found.parts["eval_loss_q50"]
    assert len({found.parts[f"eval_loss_{mode}"] for mode in MODES}) == 4


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
