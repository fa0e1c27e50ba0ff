"""The commands that are advised for a damaged derived folder, run as they stand: they mend it and lose nothing."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.features.store import FeatureStore
from tests.data.features.derived_folder import digests


def twice(derived: Path) -> None:
    path = derived / "records.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines(keepends=True)[0])


def gone(derived: Path) -> None:
    next((derived / "vae_latents").iterdir()).unlink()


def replaced(derived: Path) -> None:
    path = next((derived / "dinov3").iterdir())
    np.save(path, 2 * np.load(path))


def of_another_encoder(derived: Path) -> None:
    """As two people leave it who embedded into one folder with other texts, and whose cards were mixed up."""
    path, store = max((derived / "t5_hidden").iterdir()), FeatureStore(derived)
    np.save(path, np.load(path)[:, :-1])
    records = store.read_records()
    (derived / "journal.rows").unlink()
    for stage in ("dinov3", "vae", "t5"):
        store.append_journal(stage, [record for record in records if record.used])


@pytest.mark.parametrize("damage", [twice, gone, replaced, of_another_encoder])
def test_the_advised_command_mends_the_folder(images, tmp_path, dit, damage):
    derived, shards = tmp_path / "my derived", tmp_path / "shards"
    embed(images, derived, load_config("demo", ["data.area=96x96"]))
    before = digests(derived)
    assert dit("shard", derived, "--out", shards).code == 0
    index = (shards / "index.json").read_bytes()
    damage(derived)
    refused = dit("shard", derived, "--out", shards)
    assert refused.code == 3
    advised = refused.err.splitlines()[-1]
    for command in advised[min(at for word in ("rm ", "dit ") if (at := advised.find(word)) >= 0) :].split(" && "):
        program, *words = shlex.split(command)
        if program == "rm":
            Path(*words).unlink()
        else:
            assert program == "dit" and dit(*words).code == 0, command
    assert digests(derived) == before
    assert dit("shard", derived, "--out", shards, "--json").code == 0
    assert json.loads((shards / "index.json").read_bytes()) == json.loads(index)
