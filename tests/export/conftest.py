"""Checkpoints to export, and a reader without dit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dittool.ckpt.files import save_checkpoint
from dittool.config.load import config_from_dict
from dittool.data.provenance import Provenance
from dittool.export.export import ExportRequest, export
from dittool.families.family import family_of
from tests.encoders.conftest import folders

__all__ = ["folders"]  # tiny encoders of the published classes

READER = Path(__file__).with_name("reader_without_dit.py")
Jobs = list[tuple[Path, list[dict[str, object]]]]


@pytest.fixture(scope="session")
def checkpoint(tiny_run) -> Path:
    return tiny_run / "checkpoints/checkpoint_final.pt"


@pytest.fixture(scope="session")
def generator(class_run) -> Path:
    return class_run / "checkpoints/checkpoint_final.pt"


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory) -> Path:
    """A folder of diffusers. Read only."""
    return export(ExportRequest(checkpoint, tmp_path_factory.mktemp("exported") / "model")).folder


def changed(checkpoint: Path, folder: Path, **model: object) -> Path:
    """A checkpoint of the same data whose network has other keys of `[model]`, and weights that all have an effect."""
    state = torch.load(checkpoint, weights_only=True)
    state["config"]["model"] |= model
    config = config_from_dict(state["config"], "a changed configuration")
    network = family_of(config).build(config, Provenance.from_json(state["data"], "the data").widths)
    drawn = torch.Generator().manual_seed(0)
    weights = {name: 0.2 * torch.randn(part.shape, generator=drawn) for name, part in network.state_dict().items()}
    return save_checkpoint(folder, state | {"model": weights, "ema": weights}, final=True)


@pytest.fixture
def read_without_dit(tmp_path) -> Callable[[Jobs], dict[str, np.ndarray]]:
    """The pictures that diffusers draws from folders, in a process that cannot import dittool."""

    def read(jobs: Jobs) -> dict[str, np.ndarray]:
        (tmp_path / "jobs.json").write_text(json.dumps([[str(folder), calls] for folder, calls in jobs], default=str))
        surroundings = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-I", READER, tmp_path / "jobs.json", tmp_path / "pictures.npz"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return dict(np.load(tmp_path / "pictures.npz"))

    return read
