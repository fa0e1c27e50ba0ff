"""Checkpoints in parts without several processes: a state cut as FSDP2 cuts it, each part written in its turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dittool.ckpt.lazy_tensors import spec_of
from dittool.ckpt.load import load_checkpoint, named_tensors
from dittool.ckpt.save_sharded import begin_sharded, end_sharded, place_of_parts, sharded_path
from dittool.ckpt.sharded import write_part
from dittool.devices import with_tensors

SPLIT = ("model", "ema", "optimizer")  # what lies over the processes; the rest is in each


def part_of(state: dict[str, Any], number: int, count: int) -> dict[str, Tensor]:
    """The tensors that process `number` holds."""
    own = {}
    for name, tensor in named_tensors(state):
        if not (name.startswith(SPLIT) and tensor.dim()):
            if number == 0:
                own[name] = tensor
        elif number < len(rows := tensor.chunk(count)):
            own[name] = rows[number]
    return own


def save_in_parts(folder: Path, state: dict[str, Any], count: int = 2, final: bool = False) -> Path:
    """As `count` processes would save it, one after the other."""
    path = sharded_path(folder, state["step"], final)
    if (kept := begin_sharded(path, state["step"], 0)) is not None:
        return kept
    place = place_of_parts(path)
    parts = [write_part(place, number, count, part_of(state, number, count)) for number in range(count)]
    end_sharded(path, with_tensors(state, spec_of), parts, {"loss": 0.5})
    return path


def in_parts(checkpoint: Path, count: int = 2) -> Path:
    """A `.pt` of a run, replaced by the same in parts."""
    state, final = load_checkpoint(checkpoint), checkpoint.stem.endswith("final")
    checkpoint.unlink()
    checkpoint.with_suffix(".json").unlink()
    return save_in_parts(checkpoint.parent, state, count, final)
