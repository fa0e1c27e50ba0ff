"""`dit embed --verify`: what is gone, cut off, replaced or made from something else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.features.store import FeatureStore
from dittool.data.features.verify import verify
from dittool.data.records import STAGES


def damage(path, array=None, content=None):
    if array is not None:
        np.save(path, array)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("feature", "change", "said"),
    [
        ("vae_latents", lambda a: a[:, :-1], "digest"),
        ("dinov3", lambda a: np.full_like(a, np.nan), "digest"),
    ],
)
def test_verification_sees_a_file_that_was_replaced(images, tmp_path, feature, change, said):
    derived = tmp_path / "derived"
    embed(images, derived, load_config("demo"))
    path = max((derived / feature).iterdir())
    damage(path, change(np.load(path)))
    assert [(fault.where, said in fault.what) for fault in verify(derived).faults] == [(str(path), True)]


@pytest.mark.parametrize(
    ("feature", "change", "said"),
    [
        ("vae_latents", lambda a: a[:, :-1], "expected (16, "),
        ("dinov3_patches", lambda a: a[:-1], "expected ("),
        ("t5_hidden", lambda a: a[:0], "expected 1 to 512 rows"),
        ("dinov3", lambda a: a.astype(np.float32), "holds float32"),
        (
            "dinov3",
            lambda a: np.where(np.arange(64) == 3, np.nan, a).astype(np.float16),
            "1 of 64 values are not finite",
        ),
    ],
)
def test_verification_needs_no_digest_to_see_a_wrong_array(images, tmp_path, feature, change, said):
    derived = tmp_path / "derived"
    embed(images, derived, load_config("demo"))
    store = FeatureStore(derived)
    for stage in STAGES:
        store.append_journal(stage, store.read_records())  # as an older version wrote it
    path = max((derived / feature).iterdir())
    damage(path, change(np.load(path)))
    faults = verify(derived).faults
    assert len(faults) == 1 and faults[0].where == str(path) and said in faults[0].what


def test_verification_lists_what_is_gone_cut_off_or_made_from_something_else(images, tmp_path, dit):
    derived = tmp_path / "derived"
    embed(images, derived, load_config("demo"), ["dinov3", "t5"])
    assert dit("embed", "--verify", "--out", derived, "--pass", "t5", "--pass", "dinov3").code == 0
    assert "never run" in dit("embed", "--verify", "--out", derived).out
    first, second = sorted((derived / "dinov3").iterdir())[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    records = FeatureStore(derived).read_records()
    FeatureStore(derived).write_records([*records[:-1], replace(records[-1], caption="another")])
    found = dit("embed", "--verify", "--out", derived, "--pass", "t5", "--pass", "dinov3", "--json")
    assert found.code == 1
    assert [Path(fault["where"]).name for fault in json.loads(found.out)["faults"]] == [
        first.name,
        second.name,
        f"{records[-1].id}.npy",
    ]
