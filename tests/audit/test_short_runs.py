"""A run of a few steps is a run: its keys act as they do in a long one."""

from __future__ import annotations

import pytest

from dittool.audit.specimens.our_keys import key_effect
from dittool.config.load import load_config


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (2, 0), (2, 1), (3, 2), (20, 19)])
@pytest.mark.parametrize("key", ["steps", "lr", "min_lr", "warmup_steps"])
def test_the_schedule_of_a_short_run_is_no_dead_key(steps, warmup, key):
    config = load_config("demo", [f"train.steps={steps}", f"train.warmup_steps={warmup}"])
    effect = key_effect("train", key, config, None)
    assert effect.kind == "acts" or effect.evidence == "has no other valid value here"
