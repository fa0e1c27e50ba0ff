"""An average of a length that is chosen after training, out of the averages in a run's checkpoints.

An average of relative width σ is a power function of the past: update n of t has the weight
(n/t)^(γ+1) − ((n−1)/t)^(γ+1), with γ from σ (`objective/schedule.py`). A sum of such functions, of two widths at
several checkpoints, comes near that of any width at any step; with the same factors the averages themselves are summed
(arXiv 2312.02696, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dittool.ckpt.files import list_checkpoints
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.opened import open_checkpoint
from dittool.ckpt.write import write_pt
from dittool.errors import BadDataError, DitError
from dittool.objective.schedule import power_exponent
from dittool.storage import output_folder

_BINS = 4096  # of the past that weights are compared in
_MOST_REST = 0.05  # of the wanted function's norm that may be left
_NOT_TAKEN = ("optimizer", "rng", "snapshots", "queues")  # of a checkpoint: only training needs them


@dataclass(frozen=True)
class Snapshot:
    """One average in one checkpoint."""

    path: Path
    step: int
    width: float
    begun: int  # the first updates, which it sees as one


@dataclass(frozen=True)
class ChosenAverage:
    """A checkpoint's content with another average, and what it was made of."""

    content: dict[str, Any]
    step: int
    snapshots: int
    rest: float  # of the wanted function's norm that no sum of snapshots gives


def chosen_average(checkpoints: Path, width: float, step: int | None = None) -> ChosenAverage:
    """The average of a relative width at a step, by default the last one, from a folder of checkpoints.

    Raises `BadDataError` where they hold no averages, or too few of them.
    """
    found = [snapshot for snapshot in snapshots(checkpoints) if step is None or snapshot.step <= step]
    if not found or (step is not None and found[-1].step != step):
        which = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        raise BadDataError(
            f"{checkpoints}: {which} with averages is not there",
            "train with -s 'ema.averages=[0.05, 0.1]' and keep checkpoints with checkpoint.keep_every",
        )
    last = found[-1]
    factors, rest = combination(found, width)
    if rest > _MOST_REST:
        raise BadDataError(
            f"{checkpoints}: {len(found)} averages leave {rest:.0%} of one of width {width:g} open, at most"
            f" {_MOST_REST:.0%} may be",
            "choose a width nearer to theirs, or keep more checkpoints: checkpoint.keep_every",
        )
    total: dict[str, Tensor] = {}
    for snapshot, factor in zip(found, factors, strict=True):
        opened = open_checkpoint(snapshot.path)
        weights = opened.load(opened.entries["snapshots"]["weights"][f"{snapshot.width:g}"])
        for name, tensor in weights.items():
            total[name] = factor * tensor.double() + total.get(name, 0.0)
    content = {key: value for key, value in load_checkpoint(last.path).items() if key not in _NOT_TAKEN}
    content["ema"] = {name: tensor.to(content["ema"][name].dtype) for name, tensor in total.items()}
    return ChosenAverage(content, last.step, len(found), rest)


def snapshots(checkpoints: Path) -> list[Snapshot]:
    """All averages in the checkpoints of a folder, by step. Raises `UnsafeFileError` and `BadDataError`."""
    found = []
    for file in list_checkpoints(checkpoints):
        held = open_checkpoint(file.path).entries.get("snapshots")
        if file.sidecar is not None and file.step and isinstance(held, dict):
            found += [Snapshot(file.path, file.step, float(name), held["begun"]) for name in held["weights"]]
    return found


def combination(found: Sequence[Snapshot], width: float) -> tuple[list[float], float]:
    """Factors that sum to 1, and the share of the wanted function's norm that is left: least squares over the past of
    the last snapshot.
    """
    last = found[-1]
    edges = np.unique(
        np.concatenate([np.linspace(last.begun, last.step, _BINS).round(), [one.step for one in found]])
    )  # whole updates
    lengths = np.diff(edges, prepend=edges[0] - 1)

    def profile(width: float, step: int) -> np.ndarray:
        held = (np.minimum(edges, step) / step) ** (power_exponent(width) + 1)  # of all updates up to an edge
        return np.diff(held, prepend=0.0) / np.sqrt(lengths)

    wanted = profile(width, last.step)
    base = profile(last.width, last.step)
    others = np.stack([profile(one.width, one.step) - base for one in found[:-1]], axis=1)
    factors = np.linalg.lstsq(others, wanted - base, rcond=1e-9)[0]
    rest = float(np.linalg.norm(others @ factors + base - wanted) / np.linalg.norm(wanted))
    return [*factors.tolist(), 1 - float(factors.sum())], rest


def write_chosen_average(path: Path, found: ChosenAverage, width: float) -> None:
    """As a checkpoint to draw with and to judge. Raises OSError with nothing lost."""
    output_folder(path.parent)
    made_of = {"width": width, "snapshots": found.snapshots, "rest": found.rest}
    write_pt(path, {**found.content, "chosen_average": made_of})


def is_chosen_average(path: Path) -> bool:
    """Whether a file is one that `write_chosen_average` wrote."""
    try:
        return "chosen_average" in open_checkpoint(path).entries
    except DitError:
        return False
