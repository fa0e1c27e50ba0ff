"""SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2: finish the step, save, then stop. A second SIGTERM or SIGINT ends the
process at once.

SIGUSR1 or SIGUSR2 is what SLURM sends some time before it sends SIGTERM. SIGHUP comes when the terminal goes away,
often twice: from the kernel and from the shell. Under `nohup` it is ignored, and stays so. torchrun hands a signal on
that its processes may have got already, and when it is ended by one that it does not handle, they are left without it:
that counts as a signal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dittool.console import abandon

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_ANNOUNCING = (signal.SIGUSR1, signal.SIGUSR2)  # SIGTERM comes later, and still is the first to ask
_IMPATIENT = (signal.SIGTERM, signal.SIGINT)  # that come behind another end the process
_ECHO = 5.0  # seconds within which torchrun hands on what a terminal or a batch system sent to the whole group


class StopRequest:
    """Which signal asked for the end, if any did."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._launcher = os.getppid() if under_torchrun() else None

    @property
    def wanted(self) -> bool:
        """Whether the run shall end after this step: a signal came, or torchrun is gone."""
        if self.signal_number is None and self._launcher not in (None, os.getppid()):
            self.signal_number = signal.SIGTERM
        return self.signal_number is not None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Yields a request that the loop looks at between steps. Outside the main thread signals stay as they are."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    asked_at: float | None = None

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal asked_at
        if number == signal.SIGHUP:
            for stream in terminals:
                abandon(stream)  # a write to it would be an error in the middle of the step that is to be finished
        if number in _IMPATIENT and asked_at is not None:
            if not (under_torchrun() and time.monotonic() - asked_at < _ECHO):
                os._exit(128 + number)
        elif asked_at is None and number not in _ANNOUNCING:
            asked_at = time.monotonic()
        if request.signal_number is None:
            request.signal_number = number

    terminals = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]
    heard = [stop for stop in STOPPING if stop != signal.SIGHUP or signal.getsignal(stop) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, ask) for number in heard}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def launcher_warning() -> str | None:
    """What torchrun was not told: which signals to hand on, and how long a run may take to save its state."""
    if not under_torchrun():
        return None
    handled = os.environ.get("TORCHELASTIC_SIGNALS_TO_HANDLE", "").split(",")
    missing = [stop.name for stop in STOPPING if stop.name not in handled]
    lacks = [f"{' and '.join(missing)} will end torchrun before the run is saved by it"] if missing else []
    if not _patience_given():
        lacks.append("30 s after a signal it kills what has not saved")
    if not lacks:
        return None
    names = ",".join(stop.name for stop in STOPPING)
    return (
        f"torchrun: {'; '.join(lacks)}; start it as: torchrun --signals-to-handle {names} --shutdown-timeout 600"
        " … -m dittool train …"
    )


def _patience_given() -> bool:
    """Whether torchrun was started with a `--shutdown-timeout`; where one cannot look, it was."""
    if any(name in os.environ for name in ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "PET_SHUTDOWN_TIMEOUT")):
        return True
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return True
    return any(word.replace(b"_", b"-").startswith(b"--shutdown-timeout") for word in words)
