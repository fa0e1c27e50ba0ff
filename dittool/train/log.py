"""What a run writes down while it goes: log.jsonl, TensorBoard events, loss.png, and Weights & Biases where it is
asked for.
"""

from __future__ import annotations

import json
import resource
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dittool.ckpt.run_log import plot_losses, read_log
from dittool.config.architectures import AnyConfig
from dittool.config.load import config_to_dict
from dittool.errors import UsageError
from dittool.families.family import Loss
from dittool.storage import read_json, write_atomic, write_json
from dittool.train.distributed import Ranks


@dataclass(frozen=True)
class StepFigures:
    """What one step measured. Tensors stay on the device until a row of the log needs them."""

    loss: Tensor  # () mean over the step's samples
    grad_norm: Tensor  # () before clipping
    lr: float
    waited: float  # seconds spent waiting for data
    samples: int  # of all processes
    losses: list[Loss]  # one a micro-batch


class Meter:
    """Figures of the steps since the last row of the log."""

    def __init__(self, ranks: Ranks, figures: Callable[[Sequence[Loss], Ranks], dict[str, float]]) -> None:
        """`figures`: the family's own, of the losses of an interval."""
        self.loss: float | None = None  # mean of the last interval; None before the first ends
        self._ranks, self._figures = ranks, figures
        self._steps: list[StepFigures] = []
        self._since = time.monotonic()

    def add(self, figures: StepFigures) -> None:
        self._steps.append(figures)

    def summary(self) -> dict[str, float]:
        """Means over the interval, and the family's figures. Begins a new interval.

        Over the samples of all processes, which must ask together; waiting and memory are this process's own. Empty
        without a step.
        """
        if not self._steps:
            self._since = time.monotonic()
            return {}
        steps, elapsed = self._steps, max(time.monotonic() - self._since, 1e-9)
        losses = [loss for step in steps for loss in step.losses]
        self.loss = float(torch.stack([step.loss for step in steps]).mean())
        figures = {
            "loss": self.loss,
            "lr": steps[-1].lr,
            "grad_norm": float(torch.stack([step.grad_norm for step in steps]).mean()),
            "samples_per_second": sum(step.samples for step in steps) / elapsed,
            "steps_per_second": len(steps) / elapsed,
            "data_wait_share": sum(step.waited for step in steps) / elapsed,
            "peak_memory_gb": peak_memory_bytes(self._ranks.device) / 1e9,
        }
        figures |= self._figures(losses, self._ranks)
        self._steps, self._since = [], time.monotonic()
        return figures


class RunLog:
    """Rows of figures by step. `log.jsonl` is the truth; TensorBoard and the plot show the same."""

    def __init__(self, folder: Path, start_step: int, config: AnyConfig) -> None:
        """Rows of steps after `start_step`, which a resumed run will make again, are cut off.

        Raises `UsageError` when `train.wandb` is given and the package is not there.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._wandb = None if config.train.wandb is None else _wandb_run(folder, config)
        self._path = folder / "log.jsonl"
        self._plot_path = folder / "loss.png"
        self.rows: list[dict[str, Any]] = [row for row in read_log(folder) if row["step"] <= start_step]
        write_atomic(self._path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None)

    def write(self, step: int, figures: dict[str, Any]) -> None:
        row = {"step": step, **figures}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        numbers = {name: value for name, value in figures.items() if isinstance(value, (int, float))}
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def plot(self) -> None:
        """Draws loss.png from the rows so far."""
        if any("loss" in row for row in self.rows):
            plot_losses(self.rows, self._plot_path)

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
        self.plot()


def _wandb_run(folder: Path, config: AnyConfig) -> Any:
    """A run of Weights & Biases, or the one that this folder began before."""
    try:
        import wandb
    except ImportError as error:
        raise UsageError(
            f'train.wandb = "{config.train.wandb}": the package wandb is not installed',
            "pip install wandb, or take the key out of the preset",
        ) from error
    record = folder / "wandb.json"
    if not record.is_file():
        write_json(record, {"id": secrets.token_hex(8)})
    began = read_json(record)["id"]
    return wandb.init(
        project=config.train.wandb,
        name=folder.name,
        id=began,
        resume="allow",
        dir=str(folder),
        config=config_to_dict(config),
    )


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process has held so far: on a GPU of its memory, as torch counts it; on a CPU of the
    machine's, all included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
