"""A Python process that runs code which may hang, die, print, fork and fill the memory, and what became of it.

The process leads a session of its own, so that what it forks ends with it. It answers in lines through a pipe; what it
prints comes through another one. It ends itself when we are gone.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Literal

from dittool.errors import is_debugging
from dittool.storage import bytes_text

_LOOK_EVERY = 0.2  # seconds
_START = 120.0  # seconds until the first line: Python and torch are imported
MOST_PROCESSES = 200  # torch's compiler starts as many as there are cores
_SHOWN_LINES = 20
_KEPT_BYTES = 20_000  # of the end of what is printed
_LAST_WORDS = 1.0  # seconds in which a process that hangs says where it stands
_PLACE = re.compile(r'File "([^"]+)", line (\d+) in (\S+)')
_LIBRARIES = (str(Path(__file__).parents[2]), sysconfig.get_paths()["stdlib"], "<")


@dataclass(frozen=True)
class Limits:
    """What a process may take: time from its first line on, resident bytes of it and of what it started."""

    seconds: float = 900.0
    memory: int = field(default_factory=lambda: int(0.9 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))


def limits_of(seconds: float | None, gigabytes: float | None) -> Limits:
    """The limits that somebody chose, each other one as it is by default."""
    usual = Limits()
    return Limits(seconds or usual.seconds, usual.memory if gigabytes is None else int(gigabytes * 1e9))


@dataclass(frozen=True)
class Ending:
    """How a process ended, and in words that follow "the code"."""

    how: Literal["answered", "died", "time", "memory", "processes"]
    words: str = ""
    seconds: float = 0.0  # since its first line


def run_watched(
    module: str, request: str, limits: Limits, on_line: Callable[[str], bool], on_print: Callable[[str], None]
) -> Ending:
    """Runs `module.main(request_pipe, answer_pipe)` in a new Python.

    Args:
        request: the line that it reads from its first pipe.
        on_line: gets each line of the second one; true for the last, after which the process is ended.
        on_print: gets the first lines of what the process prints.
    """
    with _started(module, request) as child:
        return child.watched(limits, on_line, on_print)


@contextmanager
def _started(module: str, request: str) -> Iterator[_Child]:
    asked, asking = os.pipe()
    answers, answering = os.pipe()
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main({asked}, {answering})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(asked, answering),
        start_new_session=True,
    )
    os.close(asked)
    os.close(answering)
    try:
        with suppress(BrokenPipeError):
            os.write(asking, request.encode() + b"\n")  # and open: when it closes, the process ends itself
        yield _Child(process, answers)
    finally:
        _end(process)
        for pipe in (asking, answers):
            os.close(pipe)


class _Child:
    def __init__(self, process: subprocess.Popen[bytes], answers: int) -> None:
        self._process = process
        self._answers, self._open_answer, self._first = answers, b"", 0.0
        assert process.stdout is not None
        self._prints, self._open_print, self._printed, self._lines = process.stdout.fileno(), b"", b"", 0
        self._pipes = selectors.DefaultSelector()
        for pipe in (self._answers, self._prints):
            os.set_blocking(pipe, False)
            self._pipes.register(pipe, selectors.EVENT_READ)

    def watched(self, limits: Limits, on_line: Callable[[str], bool], on_print: Callable[[str], None]) -> Ending:
        try:
            ending = self._watched(limits, on_line, on_print)
            return replace(ending, seconds=monotonic() - self._first if self._first else 0.0)
        finally:
            if self._lines > _SHOWN_LINES and not is_debugging():
                on_print(f"… and {self._lines - _SHOWN_LINES:,} more lines")
            self._pipes.close()

    def _watched(self, limits: Limits, on_line: Callable[[str], bool], on_print: Callable[[str], None]) -> Ending:
        started = looked = monotonic()
        while True:
            ended = self._process.poll() is not None
            if self._read(0 if ended else _LOOK_EVERY, on_line, on_print):
                return Ending("answered")
            if ended:
                return Ending("died", self._how_it_died())
            if monotonic() > (self._first + limits.seconds if self._first else started + _START):
                return Ending("time", f"did not come to an end within {limits.seconds:g} s{self._where()}")
            if monotonic() - looked >= _LOOK_EVERY:
                looked = monotonic()
                if excess := _excess(self._process.pid, limits):
                    return excess

    def _read(self, wait: float, on_line: Callable[[str], bool], on_print: Callable[[str], None]) -> bool:
        """Hands on what has come; whether it was the last line. All that is there when the process has ended."""
        while ready := self._pipes.select(wait):
            for key, _ in ready:
                content = os.read(key.fd, 1 << 16)
                if not content:
                    self._pipes.unregister(key.fd)
                elif key.fd == self._prints:
                    self._take_prints(content, on_print)
                else:
                    self._first = self._first or monotonic()
                    *lines, self._open_answer = (self._open_answer + content).split(b"\n")
                    if any(on_line(line.decode(errors="replace")) for line in lines):
                        self._take_last_prints(on_print)
                        return True
            if wait:
                return False
        return False

    def _take_last_prints(self, on_print: Callable[[str], None]) -> None:
        """What was printed before the last line of the answer, and came by the other pipe."""
        with suppress(BlockingIOError):
            while content := os.read(self._prints, 1 << 16):
                self._take_prints(content, on_print)

    def _take_prints(self, content: bytes, on_print: Callable[[str], None]) -> None:
        *lines, rest = (self._open_print + content).split(b"\n")
        self._open_print = rest[-_KEPT_BYTES:]
        for line in filter(bytes.strip, lines):
            if self._lines < _SHOWN_LINES or is_debugging():
                on_print(line.decode(errors="replace"))
            self._lines += 1
        self._printed = (self._printed + content)[-_KEPT_BYTES:]

    def _how_it_died(self) -> str:
        code = self._process.returncode
        if code >= 0:
            return f"ended the process with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        killed = ", as a system does that is out of memory" if -code == signal.SIGKILL else ""
        return f"ended the process by {name}{killed}{_last_place(self._printed)}"

    def _where(self) -> str:
        """Asks a process that hangs for its place."""
        self._printed = b""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)
        until = monotonic() + _LAST_WORDS
        while monotonic() < until and not _last_place(self._printed):
            self._read(_LOOK_EVERY, lambda line: False, lambda line: None)
        return _last_place(self._printed)


def _last_place(printed: bytes) -> str:
    """` (model.py:12, in forward)`, the innermost line of a traceback of `faulthandler` that is no library's."""
    for path, line, function in _PLACE.findall(printed.decode(errors="replace")):
        if not path.startswith(_LIBRARIES):
            return f" ({Path(path).name}:{line}, in {function})"
    return ""


def _excess(session: int, limits: Limits) -> Ending | None:
    processes = _resident(session)
    if len(processes) > MOST_PROCESSES:
        return Ending("processes", f"started {len(processes)} processes")
    used = sum(processes.values())
    if used > limits.memory and len(processes) > 1:  # pages that they share were counted for each
        used = sum(_proportional(process, size) for process, size in processes.items())
    if used > limits.memory:
        return Ending("memory", f"took {bytes_text(used)} of memory, of {bytes_text(limits.memory)} that it may have")
    return None


def _resident(session: int) -> dict[int, int]:
    """Resident bytes of each process of a session."""
    if not Path("/proc/self/stat").exists():
        listed = subprocess.run(["ps", "-A", "-o", "pid=,sess=,pgid=,rss="], capture_output=True, text=True).stdout
        rows = [line.split() for line in listed.splitlines()]
        return {int(row[0]): int(row[3]) * 1024 for row in rows if str(session) in row[1:3]}
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()  # from the state on, proc(5)
                if int(fields[3]) == session:
                    found[int(folder.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return found


def _proportional(process: int, resident: int) -> int:
    """Bytes with its share of the pages that it shares."""
    with suppress(OSError, IndexError, ValueError):
        return int(Path(f"/proc/{process}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0]) * 1024
    return resident


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all of its session, also what is forked meanwhile."""
    for _ in range(50):
        for end in (signal.SIGSTOP, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, end)
        process.poll()
        left = _resident(process.pid)
        for other in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(other, signal.SIGKILL)
        if not left.keys() - {process.pid}:
            break
        sleep(0.02)
    process.wait()
    if process.stdout:
        process.stdout.close()
