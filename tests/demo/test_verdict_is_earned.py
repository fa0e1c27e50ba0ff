"""The demo from nothing to GO, and a model trained on shuffled conditions that must come out NO-GO. Minutes each:
`pytest -m slow`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.features.store import FeatureStore
from dittool.data.records import FEATURES
from dittool.data.shards.write import shard
from dittool.demo.checker import SCENE_CHECKER
from dittool.demo.drawing import draw_dataset
from dittool.train.loop import train
from dittool.validate.run import ValidateOptions, validate

pytestmark = pytest.mark.slow


def test_the_demo_says_go(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "dittool", "demo", "--out", str(tmp_path / "demo"), "--json"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    answer = json.loads(run.stdout)
    assert answer["verdict"] == "GO"
    assert all(criterion["passed"] is not False for criterion in answer["results"]["criteria"])
    html = (tmp_path / "demo" / "validation").rglob("report.html")
    assert "data:image" in next(iter(html)).read_text()


def test_a_model_trained_on_shuffled_conditions_is_no_go(tmp_path, forget_digests):
    """Every latent gets another image's caption and reference; the model can learn to draw, and not to obey."""
    config = load_config("demo", ["train.steps=600", "train.sample_every=0", "train.eval_every=0"])
    draw_dataset(tmp_path / "images", 400, seed=0)
    embed(tmp_path / "images", tmp_path / "derived", config)
    _shuffle_conditions(FeatureStore(tmp_path / "derived"))
    forget_digests(tmp_path / "derived")  # or sharding would notice
    shard(tmp_path / "derived", tmp_path / "shards")
    done = train(config, tmp_path / "shards", tmp_path / "run")
    outcome = validate(done.checkpoint, tmp_path / "shards", options=ValidateOptions(checker=SCENE_CHECKER))
    failed = {criterion.name for criterion in outcome.criteria if criterion.passed is False}
    assert outcome.verdict == "NO-GO"
    assert {"swap_closer", "edit_shown"} <= failed


def _shuffle_conditions(store: FeatureStore) -> None:
    conditions = [feature for feature in FEATURES if feature.stage != "vae"]
    records = store.read_records()
    rng = np.random.default_rng(0)
    for bucket in {record.bucket for record in records}:
        ids = [record.id for record in records if record.bucket == bucket]
        rng.shuffle(ids)
        for feature in conditions:
            arrays = [store.read(feature, record_id) for record_id in ids]
            for record_id, array in zip(ids[1:] + ids[:1], arrays, strict=True):
                store.write(feature, record_id, array)
