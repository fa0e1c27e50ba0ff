"""Items of a dataset in a given order, prepared ahead by worker processes. What goes wrong there is said, and soon.

A worker puts each item into shared memory itself before it queues it. Left to torch that happens in a thread that drops
what it cannot send, and the training process waits for ever. The death of a worker is noticed between steps alone:
torch would raise it in the midst of an update, where the state is no state to save.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dittool.errors import DitError, StorageError, is_out_of_descriptors, no_descriptor_left
from dittool.storage import bytes_text

_MOST_AHEAD = 4  # items that each worker prepares in advance
_MOST_AHEAD_BYTES = 4 << 30  # of all workers together, where one item of each is less
_SHARED_MEMORY = "/dev/shm"
_PATIENCE = 45.0  # seconds without any item before a run ends, and those that its bytes take at …
_SLOWEST = 10e6  # … so many bytes a second from all workers together
_SPARE = 4  # descriptors that a worker needs to hand over an item

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Items(Protocol[T_co]):
    """Anything whose item n can be made in any process."""

    def __getitem__(self, number: int, /) -> T_co: ...


def items_ahead(item_bytes: int, workers: int) -> int:
    """Items that each worker prepares in advance, by the bytes of the largest."""
    return max(1, min(_MOST_AHEAD, _MOST_AHEAD_BYTES // max(item_bytes * workers, 1)))


def read_ahead(
    items: Items[T],
    numbers: range,
    workers: int,
    *,
    pin_memory: bool = False,
    item_bytes: int = 0,
    tries: float = 0.0,
) -> Iterator[T]:
    """The items of these numbers, in order.

    Args:
        workers: processes that prepare them; 0: this one does.
        item_bytes: of the largest item. Fewer are prepared in advance where they are large, and the longest wait, else
            45 s, is longer.
        tries: seconds that all tries of a request may take, where items come from elsewhere.

    Raises what `items` raises, and `StorageError` when a worker has died, has no descriptor or no shared memory left,
    or when nothing comes.
    """
    patience = _PATIENCE + tries + item_bytes * max(workers, 1) / _SLOWEST
    others = set(multiprocessing.active_children())
    with _failures_explained(patience):
        ready = iter(
            DataLoader(
                _Prepared(items),
                batch_size=None,
                sampler=numbers,
                num_workers=workers,
                pin_memory=pin_memory,
                prefetch_factor=items_ahead(item_bytes, workers) if workers else None,
                timeout=patience if workers else 0,
                worker_init_fn=_end_without_descriptors,
                generator=torch.Generator(),  # the loader would else draw from the global one
            )
        )
    own = set(multiprocessing.active_children()) - others
    while True:
        try:
            with _failures_explained(patience), _deaths_noticed(), _no_longer_than(patience + 1 if workers else 0):
                item: T | _Failed = next(ready)
        except StopIteration:
            return
        except StorageError:
            for worker in own:  # one that stands still would be waited for when the loader is closed
                worker.kill()
            raise
        if isinstance(item, _Failed):
            raise item.error
        yield item


def tensor_bytes(item: object) -> int:
    """Bytes of all tensors in a dataclass, list, tuple or dict, however deep."""
    if isinstance(item, Tensor):
        return item.nbytes
    parts: Any = vars(item).values() if is_dataclass(item) else item.values() if isinstance(item, dict) else item
    return sum(map(tensor_bytes, parts)) if is_dataclass(item) or isinstance(item, (list, tuple, dict)) else 0


class _Prepared(Dataset):
    """The items, each ready to be sent where a worker makes it; in place of one that cannot be, the reason."""

    def __init__(self, items: Items[Any]) -> None:
        self._items = items

    def __getitem__(self, number: int) -> Any:
        if get_worker_info() is None:
            return self._items[number]
        try:
            item = self._items[number]
        except (DitError, OSError) as error:
            return _Failed(error)
        try:
            return _Sent(item)
        except (RuntimeError, OSError) as error:
            if is_out_of_descriptors(error):
                return _Failed(no_descriptor_left("a process that reads batches"))
            if "shared memory" not in str(error):
                raise
            return _Failed(_no_shared_memory(tensor_bytes(item)))


class _Sent:
    """An item whose tensors lie in shared memory already: queueing it cannot fail any more."""

    def __init__(self, item: object) -> None:
        # read again by the process that started this worker, and by nobody else: no file, no socket
        self._pickled = bytes(ForkingPickler.dumps(item))
        with ExitStack() as spare:  # the thread that hands tensors over needs some descriptors
            for _ in range(_SPARE):
                spare.enter_context(open(os.devnull))

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        return pickle.loads, (self._pickled,)


class _Failed:
    """Why there is no item."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _end_without_descriptors(_worker: int) -> None:
    """In a worker, the thread that hands tensors over would try for ever to open what it cannot."""

    def end(_kind: type[BaseException], error: BaseException, _trace: object) -> None:
        if is_out_of_descriptors(error):
            os._exit(errno.EMFILE)

    sys.excepthook = end


def _no_shared_memory(needed: int) -> StorageError:
    there = shutil.disk_usage(_SHARED_MEMORY)
    return StorageError(
        f"{_SHARED_MEMORY}: a batch of {bytes_text(needed)} does not fit, {bytes_text(there.free)} of"
        f" {bytes_text(there.total)} free",
        "make it larger (docker run --shm-size=8g or --ipc=host), make the batch smaller, or read without worker"
        " processes: -s train.workers=0",
    )


@contextmanager
def _failures_explained(patience: float) -> Iterator[None]:
    """Inside, what torch says of its workers becomes a `StorageError`."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise no_descriptor_left("a process that reads batches broke off while it handed one over; mostly") from error
    except (RuntimeError, OSError) as error:
        if is_out_of_descriptors(error) or f"exit code {errno.EMFILE}." in str(error):
            raise no_descriptor_left("a process that reads batches") from error
        text = str(error).partition("\n")[0]
        if isinstance(error, TimeoutError) or text.startswith(("DataLoader timed out", "Pin memory thread")):
            raise StorageError(
                f"no batch came from the processes that read them for {patience:.0f} s",
                "is the disk of the shards there, and fast enough? Look with dit shard --verify, or read without"
                " worker processes: -s train.workers=0",
            ) from error
        if not text.startswith("DataLoader worker"):
            raise
        raise StorageError(
            f"a process that reads batches is gone: {text}",
            "memory or /dev/shm ran full (see df /dev/shm), or something ended it: go on with fewer workers, -s"
            " train.workers=N",
        ) from error


_raise_of_a_death: Any = None  # torch's handler of SIGCHLD, which it installs once in a process


@contextmanager
def _deaths_noticed() -> Iterator[None]:
    """Inside, the death of a worker is raised, also one since the last time; outside it is not."""
    global _raise_of_a_death
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        if _raise_of_a_death is not None:
            signal.signal(signal.SIGCHLD, _raise_of_a_death)
            _raise_of_a_death(signal.SIGCHLD, None)
        yield
    finally:
        if callable(handler := signal.getsignal(signal.SIGCHLD)):
            _raise_of_a_death = handler
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """Inside, TimeoutError is raised after so many seconds (0: never), whatever the main thread waits for: torch's own
    time-out does not hold while a tensor is fetched from the worker that made it.
    """

    def end(*_: object) -> None:
        raise TimeoutError

    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
