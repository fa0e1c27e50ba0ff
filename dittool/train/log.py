"""What a run writes down while it goes: log.jsonl, loss.png, a page, and what its trackers take (trackers.py)."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dittool.ckpt.run_log import plot_losses, read_log
from dittool.config.architectures import AnyConfig
from dittool.console import Talk
from dittool.devices import on_host
from dittool.families.family import Loss
from dittool.runs.normal import Curves, curves_of, newly_outside
from dittool.runs.page import LivePage, preset_of
from dittool.storage import write_atomic
from dittool.train.distributed import Ranks
from dittool.train.growing_file import GrowingFile
from dittool.train.trackers import PatientTracker, trackers_of

_LOG, _PAGE = "writing log.jsonl", "writing index.html"
_NORMAL = "looking whether the run is normal"


@dataclass(frozen=True)
class StepFigures:
    """What one step measured. Tensors stay on the device until the host looks at them."""

    step: int  # its number, counted from 1
    loss: Tensor  # () mean over the step's samples
    grad_norm: Tensor  # () before clipping
    made: Tensor  # () bool: loss and gradient were finite; elsewhere the weights stayed as they were
    lr: float
    waited: float  # seconds spent waiting for data
    samples: int  # of all processes
    losses: list[Loss]  # one a micro-batch
    ids: list[str]  # of this process, one for each value of `losses`


class Meter:
    """Figures of the steps since the last row of the log, those without an update left out."""

    def __init__(self, ranks: Ranks, figures: Callable[[Sequence[Loss], Ranks], dict[str, float]]) -> None:
        """`figures`: the family's own, of the losses of an interval."""
        self.loss: float | None = None  # mean of the last interval; None before the first ends
        self.ema_distance: Tensor | None = None  # () of the averaged weights, where it is to be written down
        self._ranks, self._figures = ranks, figures
        self._unseen: list[StepFigures] = []
        self._steps: list[StepFigures] = []
        self._since = time.monotonic()

    def add(self, figures: StepFigures) -> None:
        self._unseen.append(figures)

    def look(self) -> list[StepFigures]:
        """Brings the figures of the steps since the last look onto the host, in one transfer. Returns those of steps
        without an update.
        """
        looked_at: list[Any] = [self._unseen, self.ema_distance]
        seen, self.ema_distance = on_host(looked_at)
        self._unseen = []
        self._steps += [step for step in seen if step.made]
        return [step for step in seen if not step.made]

    def summary(self) -> dict[str, float]:
        """Means over the interval up to the last look, and the family's figures. Begins a new interval.

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
        if self.ema_distance is not None:
            figures["ema_distance"] = float(self.ema_distance)
        figures |= self._figures(losses, self._ranks)
        self._steps, self._since = [], time.monotonic()
        return figures


class SideWork:
    """What a run does beside training: measure, draw, judge, write down. It can do without, so a failure is a warning
    with its count and a row of the log, and training goes on.
    """

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._failed: Counter[str] = Counter()  # by what failed
        self.log: RunLog | None = None

    def warn(self, step: int, text: str) -> None:
        self._talk.warn(f"step {step}: {text}")

    @contextmanager
    def attempted(self, what: str, step: int, in_log: bool = True) -> Iterator[None]:
        """Inside, an exception ends what is done there and nothing else. `in_log`: it gets a row of the log."""
        try:
            yield
        except Exception as error:
            self._failed[what] += 1
            reason = " ".join(str(error).split()) or type(error).__name__
            said = f"step {step}: {what} failed ({self._failed[what]} in this run): {reason}; training goes on"
            self._talk.warn(said)
            if in_log and self.log is not None:
                self.log.write(step, {"failed": what, "reason": reason})


class RunLog:
    """Rows of figures by step. `log.jsonl` is the truth; trackers, the plot and the page show the same. Where one of
    them cannot be written, the others are, and it gets its rows as soon as it can.
    """

    def __init__(self, folder: Path, start_step: int, config: AnyConfig, side: SideWork) -> None:
        """Rows of steps after `start_step`, which a resumed run will make again, are cut off.

        Raises `UsageError` when `train.trackers` or `train.wandb` names one that is not there.
        """
        self._trackers = trackers_of(config, folder, start_step)
        self._plot_path, self._side = folder / "loss.png", side
        self.rows: list[dict[str, Any]] = [row for row in read_log(folder) if row["step"] <= start_step]
        write_atomic(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self._file, self._unwritten = GrowingFile(folder / "log.jsonl"), b""
        self._page = LivePage(folder)
        self._curves: Curves | None = None
        with side.attempted(_NORMAL, start_step, in_log=False):
            self._curves = curves_of(folder, preset_of(config), config.train.steps, config.train.batch_size)
        side.log = self

    def write(self, step: int, figures: Mapping[str, object]) -> None:
        row = {"step": step, **figures}
        self.rows.append(row)
        numbers = {name: float(value) for name, value in figures.items() if isinstance(value, (int, float))}
        self._unwritten += (json.dumps(row) + "\n").encode()
        with self._side.attempted(_LOG, step, in_log=False):
            self._write_down()
        self._track(step, lambda tracker: tracker.numbers(step, numbers))
        with self._side.attempted(_NORMAL, step, in_log=False):
            for figure, said in newly_outside(self.rows, self._curves).items() if self._curves else ():
                self.write(step, {"outside_figure": figure, "outside": said})
                self._side.warn(step, said)
        with self._side.attempted(_PAGE, step, in_log=False):
            self._page.renew(self.rows)

    def picture(self, step: int, file: Path) -> None:
        """What was drawn after a step, for the trackers. A family that drew nothing has no such file."""
        if file.is_file():
            self._track(step, lambda tracker: tracker.picture(step, "samples", file))

    def plot(self) -> None:
        """Draws loss.png from the rows so far."""
        if any("loss" in row for row in self.rows):
            plot_losses(self.rows, self._plot_path)

    def close(self) -> None:
        step = self.rows[-1]["step"] if self.rows else 0
        ends = ((_LOG, self._write_down), (_LOG, self._file.close), ("the plot of the loss", self.plot))
        for what, end in (*ends, (_PAGE, partial(self._page.renew, self.rows, ended=True))):
            with self._side.attempted(what, step, in_log=False):
                end()
        self._track(step, lambda tracker: tracker.close())

    def _write_down(self) -> None:
        """The rows that the disk has not taken yet."""
        self._file.append(self._unwritten)
        self._unwritten = b""

    def _track(self, step: int, give: Callable[[PatientTracker], None]) -> None:
        for tracker in self._trackers:
            with self._side.attempted(tracker.title, step, in_log=False):
                give(tracker)


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process has held so far: on a GPU of its memory, as torch counts it; on a CPU of the
    machine's, all included.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
