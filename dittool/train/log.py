"""What a run writes down while it goes: log.jsonl, TensorBoard events, loss.png, a page, and Weights & Biases where
it is asked for.
"""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dittool.ckpt.run_log import plot_losses, read_log
from dittool.config.architectures import AnyConfig
from dittool.config.load import config_to_dict
from dittool.console import Talk
from dittool.devices import on_host
from dittool.errors import UsageError
from dittool.families.family import Loss
from dittool.runs.page import LivePage
from dittool.storage import read_json, write_atomic, write_json
from dittool.train.distributed import Ranks

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

_LOG, _BOARD, _WANDB = "writing log.jsonl", "writing TensorBoard's events", "logging to Weights & Biases"
_PAGE = "writing index.html"


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
        seen, self._unseen = on_host(self._unseen), []
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
    """Rows of figures by step. `log.jsonl` is the truth; TensorBoard and the plot show the same. Where one of them
    cannot be written, the others are, and it gets its rows as soon as it can.
    """

    def __init__(self, folder: Path, start_step: int, config: AnyConfig, side: SideWork) -> None:
        """Rows of steps after `start_step`, which a resumed run will make again, are cut off.

        Raises `UsageError` when `train.wandb` is given and the package is not there.
        """
        self._wandb = None if config.train.wandb is None else _wandb_run(folder, config)
        self._plot_path, self._side = folder / "loss.png", side
        self.rows: list[dict[str, Any]] = [row for row in read_log(folder) if row["step"] <= start_step]
        write_atomic(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self._file = _GrowingFile(folder / "log.jsonl")
        self._board = TensorBoardFile(folder / "tensorboard", start_step)
        self._page = LivePage(folder)
        side.log = self

    def write(self, step: int, figures: Mapping[str, object]) -> None:
        row = {"step": step, **figures}
        self.rows.append(row)
        numbers = {name: float(value) for name, value in figures.items() if isinstance(value, (int, float))}
        with self._side.attempted(_LOG, step, in_log=False):
            self._file.append((json.dumps(row) + "\n").encode())
        with self._side.attempted(_BOARD, step, in_log=False):
            self._board.add(step, numbers)
        if self._wandb is not None:
            with self._side.attempted(_WANDB, step, in_log=False):
                self._wandb.log(numbers, step=step)
        with self._side.attempted(_PAGE, step, in_log=False):
            self._page.renew(self.rows)

    def plot(self) -> None:
        """Draws loss.png from the rows so far."""
        if any("loss" in row for row in self.rows):
            plot_losses(self.rows, self._plot_path)

    def close(self) -> None:
        step = self.rows[-1]["step"] if self.rows else 0
        ends = ((_LOG, self._file.close), (_BOARD, self._board.close), ("the plot of the loss", self.plot))
        for what, end in (*ends, (_PAGE, partial(self._page.renew, self.rows, ended=True))):
            with self._side.attempted(what, step, in_log=False):
                end()
        if self._wandb is not None:
            with self._side.attempted(_WANDB, step, in_log=False):
                self._wandb.finish()


class _GrowingFile:
    """A file that grows by whole pieces. What a full disk takes only half of is cut off again, kept, and written with
    the next piece.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._size = self._file.seek(0, os.SEEK_END)
        self._waiting = b""

    def append(self, piece: bytes) -> None:
        """Raises OSError when the disk does not take all that waits."""
        self._waiting += piece
        try:
            written = self._file.write(self._waiting)
            if written != len(self._waiting):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        except OSError:
            with suppress(OSError):
                os.truncate(self._file.fileno(), self._size)
            raise
        self._size += written
        self._waiting = b""

    def close(self) -> None:
        self._file.close()


class TensorBoardFile:
    """An event file of scalars, written at once and by this thread: torch's writer has a thread of its own, in which
    errors get lost.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        """Of a run that is resumed: events of other files after `start_step` are not shown any more."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = _GrowingFile(folder / name)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if start_step:
            began = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=start_step + 1, session_log=began))

    def add(self, step: int, figures: dict[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for name, value in figures.items():
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Event) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.append(record.getvalue())

    def close(self) -> None:
        self._file.close()


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
