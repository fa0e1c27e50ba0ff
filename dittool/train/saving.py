"""The checkpoints of a run while they are written: before the next step, or by a thread beside the steps that follow
(`checkpoint.background`).

One process writes one file. Processes that each hold a part of weights, average and moments (FSDP2) write their parts
side by side, and gather nothing (`ckpt/sharded.py`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dittool.ckpt.files import discard, rotate, save_checkpoint, saving_errors_explained
from dittool.ckpt.lazy_tensors import spec_of
from dittool.ckpt.load import named_tensors
from dittool.ckpt.save_sharded import begin_sharded, end_sharded, place_of_parts, sharded_path
from dittool.ckpt.sharded import Part, write_part
from dittool.console import Talk
from dittool.devices import with_tensors
from dittool.errors import StorageError
from dittool.train.copies import Copies
from dittool.train.distributed import gathered, own_tensors
from dittool.train.state import TrainState, saves_in_background
from dittool.whereabouts import remembered

_FAILED = "failed"  # what a process says of a part that it could not write
_PAUSE = 0.05  # seconds between two looks for a part
_PATIENCE = 60.0  # seconds for the others' parts, once this process ends for another reason
_UNSEEN = 35.0  # seconds until a new folder is seen by all clients of a network disk that is shared

Job = Callable[[], Path | None]  # writes; gives the checkpoint, in the first process


class Saving:
    """Saves a run's state, at most one at a time. All processes call the same, together."""

    def __init__(self, run: Path, state: TrainState, copies: Copies | None, talk: Talk) -> None:
        self.checkpoints = run / "checkpoints"
        self.saved: Path | None = None  # the newest of this call, in the first process
        self._state, self._ranks, self._copies, self._talk = state, state.ranks, copies, talk
        self._background = saves_in_background(state.config, state.device)
        self._host = HostCopies()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._leaving: float | None = None  # since when
        self._number, self._shared = 0, True  # of checkpoints in parts; whether all processes see one folder

    @property
    def failed(self) -> bool:
        """Whether the thread of this process has ended in an error that nobody has raised yet."""
        return self._failure is not None

    def save(self, summary: dict[str, Any], final: bool, wait: bool) -> None:
        """A checkpoint of the state as it is now.

        Args:
            summary: what its sidecar says, for people.
            wait: until it is written, also where a thread would write it.

        Raises what the one before raised in the background; `StorageError`, and `Interrupted` in the other processes.
        """
        self.finish()
        content = self._state.content()
        if (shards := self._state.data.folder) is not None:
            content["data"]["folder"] = remembered(shards, self.checkpoints)
        background = self._background and not wait
        job = self._job_of_parts(content, summary, final, background) if self._ranks.sharded else None
        if job is None:
            content = gathered(content)
            job = self._job_of_file(content, summary, final, background) if self._ranks.first else lambda: None
        if background:
            self._thread = threading.Thread(target=self._attempt, args=(job,), name="saving", daemon=True)
            self._thread.start()
            return
        with self._ranks.first_alone():
            self.saved = job() or self.saved

    def finish(self) -> None:
        """Waits for the checkpoint that is being written, if one is. Raises what its writing raised."""
        if self._thread is None:
            return
        with self._ranks.first_alone():
            self._thread.join()
            self._thread, failure, self._failure = None, self._failure, None
            if failure is not None:
                raise failure

    def close(self) -> None:
        """At the end of a run, however it ends: what is being written is written to its end, or said to have failed."""
        if self._thread is not None:
            self._leaving = time.monotonic()
            self._thread.join()
            if self._failure is not None:
                self._talk.warn(f"a checkpoint could not be saved: {self._failure}")

    def _attempt(self, job: Job) -> None:
        try:
            self.saved = job() or self.saved
        except BaseException as error:
            self._failure = error

    def _job_of_file(self, content: dict[str, Any], summary: dict[str, Any], final: bool, background: bool) -> Job:
        """One file, by the first process."""
        content, ready = self._held(content, background)

        def write() -> Path:
            ready()
            path = save_checkpoint(self.checkpoints, content, final=final, summary=summary)
            self._rotate()
            return path

        return write

    def _job_of_parts(
        self, content: dict[str, Any], summary: dict[str, Any], final: bool, background: bool
    ) -> Job | None:
        """This process's part, and in the first one the rest; None where the processes share no folder."""
        ranks, step = self._ranks, self._state.step
        path, described = sharded_path(self.checkpoints, step, final), with_tensors(content, spec_of)
        needed, kept = sum(spec.bytes for _, spec in named_tensors(described)), None
        if not self._shared:
            return None
        with ranks.first_alone() as alone:
            if alone:
                kept = begin_sharded(path, step, needed)
        if ranks.any(kept is not None):
            return lambda: kept
        if ranks.any(not _seen(place_of_parts(path))):
            self._shared = False
            if ranks.first:
                discard(place_of_parts(path))
            self._talk.warn(f"{path.parent}: not shared by all processes, so the first one gathers and saves all")
            return None
        own, ready = self._held(own_tensors(content, ranks.first), background)
        self._number += 1
        words = f"saving/{self._number}"

        def write() -> Path | None:
            ready()
            part = self._write_part(path, own, needed, words)
            if not ranks.first:
                return None
            try:
                parts = [part, *(self._part_of(rank, words, step) for rank in range(1, ranks.count))]
                end_sharded(path, described, parts, summary)
            except BaseException:
                discard(place_of_parts(path))
                raise
            self._rotate()
            return path

        return write

    def _write_part(self, path: Path, own: Mapping[str, Tensor], needed: int, words: str) -> Part:
        """Writes this process's tensors, and leaves word of it."""
        ranks, word = self._ranks, _FAILED
        try:
            with saving_errors_explained(path, needed):
                part = write_part(place_of_parts(path), ranks.rank, ranks.count, own)
            word = json.dumps(asdict(part))
            return part
        finally:
            ranks.leave_word(f"{words}/{ranks.rank}", word)

    def _part_of(self, rank: int, words: str, step: int) -> Part:
        """What another process says of its part. Raises `StorageError` when it failed, or is gone."""
        try:
            while (word := self._ranks.word(f"{words}/{rank}")) is None:
                if self._leaving is not None and time.monotonic() - self._leaving > _PATIENCE:
                    word = _FAILED
                    break
                time.sleep(_PAUSE)
        except dist.DistError:
            word = _FAILED
        if word == _FAILED:
            raise StorageError(
                f"process {rank} could not write its part of the checkpoint of step {step}", "its message says why"
            )
        return Part(**json.loads(word))

    def _rotate(self) -> None:
        keys = self._state.config.checkpoint
        rotate(self.checkpoints, keys.keep, keys.keep_every)
        if self._copies is not None:
            self._copies.renew()

    def _held(self, tensors: dict[str, Any], background: bool) -> tuple[dict[str, Any], Callable[[], None]]:
        """What is to be written, and what to call before: for a thread copies, as the next step changes the state."""
        return self._host.of(tensors) if background else (tensors, lambda: None)


class HostCopies:
    """Copies of a state in the host's memory, each time in the same place; of a device's tensors pinned, so that the
    device copies while the host goes on.
    """

    def __init__(self) -> None:
        self._places: list[Tensor] = []

    def of(self, state: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
        """The state in this place, whole once what is returned beside it was called. The copies of before are lost."""
        number, on_device = 0, False

        def copied(tensor: Tensor) -> Tensor:
            nonlocal number, on_device
            place = self._place(number, tensor)
            number, on_device = number + 1, on_device or tensor.is_cuda
            return place.copy_(tensor.detach(), non_blocking=True)

        held = with_tensors(state, copied)
        if not on_device:
            return held, lambda: None
        event = torch.cuda.Event()
        event.record()
        return held, event.synchronize

    def _place(self, number: int, tensor: Tensor) -> Tensor:
        if number == len(self._places) or not _alike(self._places[number], tensor):
            new = torch.empty_like(tensor.detach(), device="cpu", pin_memory=tensor.is_cuda)
            self._places[number : number + 1] = [new]
        return self._places[number]


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride()


def _seen(place: Path) -> bool:
    """Whether this process sees a folder that the first one has made."""
    begun = time.monotonic()
    while not place.is_dir():
        if time.monotonic() - begun > _UNSEEN:
            return False
        time.sleep(_PAUSE)
    return True
