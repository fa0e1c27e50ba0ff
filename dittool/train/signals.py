"""SIGTERM, SIGINT and SIGHUP: finish the step, save, then stop. A second signal ends the process at once.

SIGHUP comes when the terminal goes away, often twice: from the kernel and from the shell. Under `nohup` it is ignored,
and stays so.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dittool.console import abandon


class StopRequest:
    """Which signal asked for the end, if any did."""

    signal_number: int | None = None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Yields a request that the loop looks at between steps. Outside the main thread signals stay as they are."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            for stream in terminals:
                abandon(stream)  # a write to it would be an error in the middle of the step that is to be finished
        if request.signal_number is None:
            request.signal_number = number
        elif number != signal.SIGHUP:
            os._exit(128 + number)

    terminals = [stream for stream in (sys.stdout, sys.stderr) if stream.isatty()]
    heard = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    previous = {number: signal.signal(number, ask) for number in heard}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
