"""A derived folder that tests may alter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def older_derived(tiny_shards, tmp_path) -> Path:
    """Features under a journal that keeps no digests, as the first ones did: what a test changes in them is not noticed by its bytes."""
    folder = shutil.copytree(tiny_shards.store.folder, tmp_path / "derived")
    journal = folder / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        for made in line["made"].values():
            del made["files"]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
