"""A tiny checkpoint to draw with."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tiny_run) -> Path:
    return tiny_run / "checkpoints" / "checkpoint_final.pt"
