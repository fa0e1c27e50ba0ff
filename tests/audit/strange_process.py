"""Processes that misbehave in one way each, by the name that they are asked for; they import nothing heavy."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import time


def main(asked: int, answering: int) -> None:
    faulthandler.enable(2)
    faulthandler.register(signal.SIGUSR1, 2)
    pipe = os.fdopen(asked)
    request = pipe.readline().strip()
    os.write(answering, b"begun\n")
    globals()[request]()
    os.write(answering, b"end\n")
    time.sleep(60)  # its answer is all that is waited for


def answers() -> None:
    pass


def prints() -> None:
    for number in range(100):
        print("line", number)
    os.write(1, b"past Python\n")
    sys.stdout.flush()


def leaves() -> None:
    os._exit(0)


def crashes() -> None:
    ctypes.string_at(0)


def hangs() -> None:
    while True:
        time.sleep(1)


def forks_and_hangs() -> None:
    os.fork()
    hangs()


def forks_without_end() -> None:
    while True:
        if os.fork() == 0:
            hangs()
        time.sleep(0.002)


def takes_memory() -> None:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1_000_000)))


def starts_a_program_that_takes_memory() -> None:
    code = "import os\nkept = []\nwhile True: kept.append(bytearray(os.urandom(1_000_000)))"
    subprocess.run([sys.executable, "-c", code])
