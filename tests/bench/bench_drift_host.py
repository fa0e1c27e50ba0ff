"""What making the groups of a drifting step costs the host, at a preset's own sizes.

    python -m tests.bench.bench_drift_host [--preset drift-b2] [--classes 1000]

Without a GPU the meta device stands for one: it takes no memory and computes nothing, so that what remains is the work
of the host (numbers, places, launches; new samples come as they would from the workers). Its own normals, which torch
works out in Python there, are left out and counted as launches. Beside it the same on the CPU, where the device is the
host: with fewer classes, whose queues fit into memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor

from dittool.config.load import load_config
from dittool.families.drift_data import LatentStream
from dittool.objective.queues import SampleQueues
from dittool.train.distributed import Ranks

_STEP = 3.0  # seconds of drift-b2 on an H200, reckoned (shared figures; not measured)
_LAUNCH = 10e-6  # seconds of the host for a kernel
_ROUNDS = 10
_CLASSES_ON_CPU = 20


class NoiseSamples:
    """Stands for the shards: sample n is of class n modulo their number."""

    def __init__(self, classes: int, shape: tuple[int, ...]) -> None:
        self._classes, self._latent = classes, torch.randn(shape)

    def __getitem__(self, number: int) -> tuple[int, int, Tensor]:
        return number, number % self._classes, self._latent

    def id(self, number: int) -> str:
        return str(number)


def stream_on(preset: str, device: torch.device, classes: int) -> LatentStream:
    """A stream whose queues are full."""
    config = load_config(preset)
    model, drift = config.model, config.drift
    shape = (model.channels, *model.cells)
    stream = object.__new__(LatentStream)
    stream._config, stream._device, stream._position = config, device, 0
    stream.samples, stream.classes = NoiseSamples(classes, shape), [str(number) for number in range(classes)]
    stream.queues = SampleQueues(classes, drift.class_queue, drift.global_queue, shape, device)
    stream.fill()
    return stream


def seconds_a_step(stream: LatentStream, device: torch.device) -> float:
    """Median of some steps."""
    groups: Iterator[object] = stream.batches(0, _ROUNDS + 1, Ranks(0, 1, device))
    times = []
    stream._config = stream._config.model_copy(update={"train": stream._config.train.model_copy(update={"workers": 0})})
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        next(groups)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="drift-b2")
    parser.add_argument("--classes", type=int, default=1000)
    options = parser.parse_args()
    meta, cpu = torch.device("meta"), torch.device("cpu")
    with patch.object(Tensor, "normal_", lambda tensor, generator: tensor):
        stream = stream_on(options.preset, meta, options.classes)
        host = seconds_a_step(stream, meta)
    config = stream._config
    host += config.train.batch_size // config.drift.generated * _LAUNCH
    print(f"{options.preset}: host {host * 1e3:.1f} ms a step, {host / _STEP:.2%} of {_STEP:.0f} s")
    here = seconds_a_step(stream_on(options.preset, cpu, _CLASSES_ON_CPU), cpu)
    print(f"on this CPU, normals and gathers included: {here * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
