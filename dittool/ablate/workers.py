"""One process a device: the runs of a plan are shared out over several, each of which does one at a time and leaves
its files, which the first process then reads (`runs.py`).

A worker that dies is started again and goes on with its run; one that dies with it twice fails the row. When the first
process ends, however it ends, its workers save and end too, and until they have, the next call waits.
"""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from dittool.ablate.plan import BASE, Rows
from dittool.ablate.runs import GOES_ON, Job, Work
from dittool.console import SILENT
from dittool.devices import visible_gpus
from dittool.errors import DitError, Interrupted, described
from dittool.storage import LOCK_NAME
from dittool.train.signals import stop_on_signal
from dittool.validate.text_edit import CaptionChecker

_DEATHS = 2  # of a worker with the same work, after which that work has failed
_LOOK_EVERY = 0.5  # seconds between two looks for signals
_SPAWN = get_context("spawn")  # a fork of a process that runs threads can hang
_Pipe = connection.Connection
Task = Job | None  # None: the cost of an update of each row


@dataclass(frozen=True)
class _Reply:
    failed: Mapping[str, str]  # rows that failed, and why
    error: DitError | None = None  # what ends the plan
    interrupted: int = 0  # the signal that ended the run


@dataclass
class _Worker:
    device: str | None  # as CUDA_VISIBLE_DEVICES names it; None: no GPU
    process: BaseProcess
    pipe: _Pipe
    task: Task = None
    busy: bool = False


class Workers:
    """Processes that work on a plan. Use as a context manager: leaving it ends them, with their runs saved."""

    def __init__(self, work: Work, count: int) -> None:
        self._work, self._count = work, count
        self._workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        gpus = visible_gpus()
        self._wait_for_earlier_ones()
        for number in range(self._count):
            self._workers.append(self._started(gpus[number % len(gpus)] if gpus else None))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.process.terminate()  # a run that is trained is saved first
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def measure_costs(self) -> None:
        """On the first device, while the others rest."""
        for _ in self._done([None]):
            pass
        self._work.measure_costs()  # reads them

    def do(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Each job when it is done and known to `Work`, in the order in which they end."""
        left = []
        for job in jobs:
            if self._work.is_made(job):
                self._work.do(job)
                yield job
            else:
                left.append(job)
        for task in self._done(left):
            assert task is not None, "only jobs were given"
            self._work.do(task)
            yield task

    def _done(self, tasks: Iterable[Task]) -> Iterator[Task]:
        waiting, deaths = deque(tasks), Counter[Task]()
        with stop_on_signal() as stop:
            while waiting or any(worker.busy for worker in self._workers):
                if stop.signal_number is not None:
                    raise _interrupted(stop.signal_number)
                self._hand_out(waiting)
                for worker in self._ended():
                    worker.busy = False
                    if (reply := _reply_of(worker)) is None:
                        deaths[worker.task] += 1
                        self._died(worker, deaths[worker.task], waiting)
                        continue
                    if reply.error or reply.interrupted:
                        raise reply.error or _interrupted(reply.interrupted)
                    for row, reason in reply.failed.items():
                        if row not in self._work.failed:
                            self._work.fail(row, reason)
                    yield worker.task

    def _hand_out(self, waiting: deque[Task]) -> None:
        for worker in self._workers:
            while waiting and not worker.busy:
                task = waiting.popleft()
                if task is not None and not self._work.wants(task):
                    continue
                if task is not None:
                    where = "" if worker.device is None else f", device {worker.device}"
                    run = task.run
                    self._work.talk.note(f"{run.row}: seed {run.seed}, to {task.until:,} of {run.updates:,}{where}")
                worker.task, worker.busy = task, True
                with suppress(OSError):  # it is dead, which is seen by its silence
                    worker.pipe.send((task,))

    def _ended(self) -> list[_Worker]:
        """Those with an answer, or without a process."""
        ready = connection.wait([worker.pipe for worker in self._workers if worker.busy], timeout=_LOOK_EVERY)
        return [worker for worker in self._workers if worker.busy and worker.pipe in ready]

    def _died(self, worker: _Worker, deaths: int, waiting: deque[Task]) -> None:
        worker.process.join()
        code, task = worker.process.exitcode or 0, worker.task
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        new = self._started(worker.device)
        worker.process, worker.pipe = new.process, new.pipe
        if deaths < _DEATHS:
            self._work.talk.warn(f"a process ended with {how}; another goes on with its run")
            waiting.appendleft(task)
        elif task is None or task.run.row == BASE:
            raise DitError(
                f"a process ended with {how}, {deaths} times with the same work",
                "mostly that is the system's answer to too little memory: fewer processes, a smaller train.batch_size",
            )
        else:
            self._work.fail(task.run.row, f"its process ended with {how}, {deaths} times")

    def _started(self, device: str | None) -> _Worker:
        work = self._work
        ours, theirs = _SPAWN.Pipe()
        threads = max(1, torch.get_num_threads() // self._count)
        arguments = (work.rows, work.data, work.out, work.checker, threads, theirs)
        process = _SPAWN.Process(target=serve, args=arguments)
        with _visible(device):
            process.start()
        theirs.close()
        return _Worker(device, process, ours)

    def _wait_for_earlier_ones(self) -> None:
        with open(_lock_of(self._work.out), "a") as lock:
            waits = False
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                if not waits:
                    self._work.talk.note("processes of an earlier call save their runs")
                waits = True
                time.sleep(_LOOK_EVERY)


def serve(rows: Rows, data: Path, out: Path, checker: CaptionChecker | None, threads: int, pipe: _Pipe) -> None:
    """What a worker process runs: one task after the other, until there is none or the first process ends."""
    os.setsid()  # what a terminal sends to all processes the first one passes on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with open(_lock_of(out), "a") as lock, suppress(EOFError, OSError):
        fcntl.flock(lock, fcntl.LOCK_SH)
        while True:
            (task,) = pipe.recv()
            pipe.send(_reply_to(Work(rows, data, out, SILENT, checker=checker), task))


def _reply_to(work: Work, task: Task) -> _Reply:
    try:
        work.measure_costs() if task is None else work.do(task)
    except Interrupted as stop:
        return _Reply({}, interrupted=stop.exit_code - 128)
    except DitError as error:
        return _Reply({}, error)
    except Exception as error:
        return _Reply({}, DitError(described(error), "run again with DIT_DEBUG=1 for a traceback, and report it"))
    return _Reply(work.failed)


def _reply_of(worker: _Worker) -> _Reply | None:
    """None: its process died."""
    try:
        reply: Any = worker.pipe.recv()
    except (EOFError, OSError):
        return None
    assert isinstance(reply, _Reply)
    return reply


def _interrupted(number: int) -> Interrupted:
    return Interrupted("stopped, runs saved", GOES_ON, number)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a worker is started by a process of ours"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # a run that is trained is saved first


def _lock_of(out: Path) -> Path:
    return out / f"{LOCK_NAME}-workers"


@contextmanager
def _visible(device: str | None) -> Iterator[None]:
    """Inside, processes are started that see this GPU alone."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    try:
        yield
    finally:
        if device is not None:
            os.environ.pop("CUDA_VISIBLE_DEVICES")
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before
