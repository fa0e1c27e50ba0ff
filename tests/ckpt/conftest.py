"""A small training state, as the loop would save it, and files made of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dittool.ckpt.files import save_checkpoint


def small_state(step: int, seed: int = 0) -> dict[str, Any]:
    """Everything that a checkpoint has, after one optimizer update of a tiny model."""
    torch.manual_seed(seed + step)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return {
        "format_version": 1,
        "config": {"description": "tiny", "train": {"lr": 1e-3, "steps": 10}},
        "model": model.state_dict(),
        "ema": {name: tensor + 1 for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "step": step,
        "samples_seen": 8 * step,
        "rng": {"torch": torch.get_rng_state()},
        "data": {"identity_hash": "abc", "dims": {"text": 4, "image": 4, "latent_channels": 16}},
    }


@pytest.fixture
def state() -> Callable[..., dict[str, Any]]:
    return small_state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's checkpoints folder with the steps 1 to 4."""
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    for step in (1, 2, 3, 4):
        save_checkpoint(checkpoints, small_state(step))
    return checkpoints


@pytest.fixture
def valid(tmp_path, state) -> Path:
    return save_checkpoint(tmp_path / "valid", state(1))


@pytest.fixture
def tripwire(monkeypatch):
    """Fails the test when anything that a pickle could call is called."""
    b"x".decode("raw-unicode-escape")  # Python imports a codec on its first use, by exec

    def sprung(*_arguments, **_options):
        pytest.fail("the file's code was run")

    for name in ("system", "popen", "execv", "_exit"):
        monkeypatch.setattr(os, name, sprung)
    monkeypatch.setattr("builtins.eval", sprung)
    monkeypatch.setattr("builtins.exec", sprung)
