"""Drawn shards with a hold-out that is large enough to judge by, and no LPIPS weights lying about."""

from __future__ import annotations

import pytest

from dittool.config.load import load_config
from dittool.data.shards.read import ShardSet
from tests.validate.oracle import Oracle

SIMPLE = ("model.depth=2", "model.width=32", "model.heads=2", "sample.steps=2", "flow.shift=1.0")


@pytest.fixture(autouse=True)
def _no_cached_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """(shards, source folder) of 32 drawn images, embedded as `dit demo` embeds them, a third of them held out."""
    from dittool.data.features.embed import embed
    from dittool.data.shards.write import shard
    from dittool.demo.drawing import draw_dataset

    root = tmp_path_factory.mktemp("drawn")
    draw_dataset(root / "images", 32, seed=0)
    embed(root / "images", root / "derived", load_config("demo", SIMPLE))
    shard(root / "derived", root / "shards", holdout=0.33)
    return ShardSet.open(root / "shards"), root / "images"


@pytest.fixture(scope="session")
def oracle(drawn):
    """`oracle(cut=(), shuffled=False, overrides=())`: a model of known quality."""

    def make(*overrides: str, **faults: object) -> Oracle:
        return Oracle(drawn[0], load_config("demo", [*SIMPLE, *overrides]), **faults)

    return make


@pytest.fixture(scope="session")
def perfect(drawn, oracle, tmp_path_factory):
    """The validation of a model without fault. Read only."""
    from tests.validate.oracle import judge

    return judge(oracle(), drawn[0], tmp_path_factory.mktemp("perfect") / "step0001234")
