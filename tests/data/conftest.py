"""A derived folder that tests may alter."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def older_derived(tiny_shards, tmp_path, forget_digests: Callable[[Path], None]) -> Path:
    """Features under a journal without digests, so that what a test changes in them is not noticed by its bytes."""
    folder = shutil.copytree(tiny_shards.store.folder, tmp_path / "derived")
    forget_digests(folder)
    return folder
