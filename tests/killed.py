"""Kills at file events. An audit hook in a child process counts what Python does to the files of one folder, and ends
the process at the n-th event, as kill -9 would; the code under test needs no help for it. Run as a program this file is
the parent of those children.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate")
_ENDED = "ended by itself: "  # among what the command itself prints
KILLED = 9  # the exit code of a process that was ended so


def killed_at(events: Iterable[int], folder: Path, *command: object) -> dict[int, tuple[int, int]]:
    """Runs a command line of `dit` once for each event, to be killed at it. OUT in the command stands for
    `folder`/killedN, N the event.

    Returns {event: (events in all, exit code)} of the runs that came to their end before.
    """
    words = [sys.executable, __file__, folder, json.dumps([str(word) for word in command]), *events]
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=True, env=dict(os.environ, OMP_NUM_THREADS="1")
    )
    ended = [line.removeprefix(_ENDED).split() for line in done.stdout.splitlines() if line.startswith(_ENDED)]
    return {int(event): (int(count), int(code)) for event, count, code in ended}


def die_at(event: int, out: str) -> list[int]:
    """Installs the hook in this process. Returns the list whose one number counts."""
    count = [0]

    def hook(name: str, arguments: tuple) -> None:
        if name in FILE_EVENTS and str(arguments[0]).startswith(out):
            count[0] += 1
            if count[0] == event:
                os._exit(KILLED)  # nothing is flushed, nothing is cleaned up

    sys.addaudithook(hook)
    return count


def main(folder: str, command: list[str], events: list[int]) -> None:
    import torch.utils.tensorboard  # noqa: F401  what is slow to import is imported once, for all the children

    import dittool.data.features.embed
    import dittool.encoders.image
    import dittool.encoders.text
    import dittool.encoders.vae
    import dittool.sampling.draw
    import dittool.sampling.preview
    import dittool.train.loop
    import dittool.validate.run  # noqa: F401
    from dittool.cli import run

    for event in events:
        child = os.fork()
        if child == 0:
            out = f"{folder}/killed{event}"
            count = die_at(event, out)
            code = run([word.replace("OUT", out) for word in command])
            print(f"\n{_ENDED}{event} {count[0]} {code}", flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), list(map(int, sys.argv[3:])))
