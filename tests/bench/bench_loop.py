"""What of a step is not forward, backward or update? Run: python -m tests.bench.bench_loop [--preset nano --area
256x256 --batch 4]

A run of `dittool.train.loop.train` on noise in the preset's sizes, rows of the log and TensorBoard included, pictures,
evaluation and checkpoints left out. Timers stand around the parts; what no timer saw is overhead: waiting for data, the
look whether loss and gradient are finite, counting, logging, progress. The first steps do not count. On a GPU each
timer waits for the device, which a run does not: there the share is an upper bound.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from dittool.config.load import load_config
from dittool.console import Console
from dittool.families import flow
from dittool.families.synthetic import write_noise
from dittool.train import loop
from dittool.train.estimate import wait_for
from dittool.train.optim import EmaModel

FIRST = 3  # steps that do not count: workers start, memory is taken


class Timers:
    """Seconds by part, over the steps that count."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.ends = device, Counter(), []

    def around(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            wait_for(self.device)
            start = time.perf_counter()
            result = run(*arguments, **named)
            wait_for(self.device)
            self.seconds[name] += time.perf_counter() - start
            return result

        return timed

    def step_ends(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            result = run(*arguments)
            wait_for(self.device)
            self.ends.append(time.perf_counter())
            if len(self.ends) == FIRST:
                self.seconds.clear()
            return result

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--area", default="256x256")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--set", "-s", action="append", default=[], help="further overrides of the preset")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    config = load_config(
        options.preset,
        [
            f"data.area={options.area}",
            f"train.batch_size={options.batch}",
            f"train.steps={options.steps}",
            "train.warmup_steps=1",
            "train.log_every=10",
            "train.eval_every=0",
            "train.sample_every=0",
            f"checkpoint.every={options.steps}",
            *options.set,
        ],
    )
    timers = Timers(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    parts = [
        (torch.Tensor, "backward", "backward"),
        (torch.nn.utils, "clip_grad_norm_", "clip"),
        (torch.optim.AdamW, "step", "optimizer"),
        (EmaModel, "update", "average"),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        write_noise(config, Path(scratch) / "shards")
        patches = [patch.object(owner, name, timers.around(part, getattr(owner, name))) for owner, name, part in parts]
        timed_family = replace(flow.FAMILY, loss=timers.around("forward", flow.FAMILY.loss))
        patches.append(patch.object(flow, "FAMILY", timed_family))
        patches.append(patch.object(loop, "train_step", timers.step_ends(loop.train_step)))
        for one in patches:
            one.start()
        loop.train(config, Path(scratch) / "shards", Path(scratch) / "run", talk=Console())
    steps, whole = len(timers.ends) - FIRST, timers.ends[-1] - timers.ends[FIRST - 1]
    print(f"{steps} steps, {whole / steps:.4f} s each, workers: {config.train.workers}")
    for part, seconds in timers.seconds.items():
        print(f"  {part:<10} {seconds / whole:6.2%}")
    print(f"  overhead   {1 - timers.seconds.total() / whole:6.2%}")


if __name__ == "__main__":
    main()
