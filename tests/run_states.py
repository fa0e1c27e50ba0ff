"""What a run leaves, for tests of exactness: its last state, two states bit by bit, and the run as it was at an
earlier step.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from dittool.ckpt.files import list_checkpoints
from dittool.ckpt.load import load_checkpoint
from dittool.families.family import family_of
from dittool.train.distributed import Ranks
from dittool.train.state import TrainState


def final_state(run: Path) -> dict[str, Any]:
    return load_checkpoint(next(file.path for file in list_checkpoints(run / "checkpoints") if file.final))


def fresh_state(config, folder: Path) -> TrainState:
    """Model, average and optimizer before the first step, alone on the CPU, with the data that its family opens."""
    ranks = Ranks(0, 1, torch.device("cpu"))
    return TrainState(config, family_of(config).open_data(config, folder, ranks), ranks)


def same_tensors(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])) for name in a)


def assert_same_bits(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Weights, average, random state, moments and counts; of a generator also the queues."""
    assert a.keys() == b.keys()
    for part in {"model", "ema", "rng", "queues"} & a.keys():
        assert same_tensors(a[part], b[part]), part
    for index, moments in a["optimizer"]["state"].items():
        assert same_tensors(moments, b["optimizer"]["state"][index]), index
    assert (a["step"], a["samples_seen"]) == (b["step"], b["samples_seen"])


def stopped_at(run: Path, step: int, out: Path) -> Path:
    """The run as it lay on disk when the checkpoint of `step` was its newest."""
    shutil.copytree(run, out)
    for checkpoint in list_checkpoints(out / "checkpoints"):
        if checkpoint.step > step:
            checkpoint.path.unlink()
            checkpoint.path.with_suffix(".json").unlink()
    return out
