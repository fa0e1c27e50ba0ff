"""Models of strangers whose code does what it should not: it ends the process, hangs, forks, prints, takes memory,
changes seeds and torch itself. Each does nothing else wrong.
"""

from __future__ import annotations

import ctypes
import os
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import foreign_models


class _Wrapped(nn.Module):
    """A sound model, and beside its forward something that happens."""

    in_training_only = True

    def __init__(self, depth: int = 2, use_checkpoint: bool = False) -> None:
        super().__init__()
        self.model = foreign_models.fused(depth=depth)

    def forward(self, x, t, y):
        if self.training or not self.in_training_only:
            self.happens()
        return self.model(x, t, y)

    def happens(self) -> None:
        pass


class Exits(_Wrapped):
    in_training_only = False

    def happens(self):
        sys.exit(0)


class LeavesAtOnce(_Wrapped):
    in_training_only = False

    def happens(self):
        os._exit(0)


class Leaves(_Wrapped):
    def happens(self):
        os._exit(3)


class Hangs(_Wrapped):
    def happens(self):
        while True:
            time.sleep(1)


class Crashes(_Wrapped):
    def happens(self):
        ctypes.string_at(0)


class Eats(_Wrapped):
    def happens(self):
        self.kept = []
        while True:
            self.kept.append(torch.ones(5_000_000))
            time.sleep(0.02)


class Forks(_Wrapped):
    in_training_only = False

    def happens(self):
        if not hasattr(self, "forked"):
            self.forked = os.fork()  # its copy goes on judging, too


class ForksWithoutEnd(_Wrapped):
    def happens(self):
        while True:
            if os.fork() == 0:
                time.sleep(60)
            time.sleep(0.002)


class Prints(_Wrapped):
    in_training_only = False

    def happens(self):
        print('{"finding": {}}', flush=True)
        os.write(1, b"written past Python\n")


class WritesIntoEveryPipe(_Wrapped):
    """Among them the one through which findings are sent: text, numbers, bytes and a rule that there is not."""

    in_training_only = False

    def happens(self):
        for pipe in range(3, 30):
            with suppress(OSError):
                if stat.S_ISFIFO(os.fstat(pipe).st_mode):
                    os.write(pipe, b'1\n"text"\n\xff\xfe\n{"rule": "Z9"}\n')


class Seeds(_Wrapped):
    in_training_only = False

    def happens(self):
        torch.manual_seed(0)


class Replaces(_Wrapped):
    def __init__(self, depth: int = 2, use_checkpoint: bool = False) -> None:
        super().__init__(depth, use_checkpoint)
        torch.Tensor.sum = None
        os.write = None
