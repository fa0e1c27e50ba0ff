"""How long a step waits for batches when the shards are behind 50 ms of latency, beside the same shards on a disk.

    python -m tests.bench.bench_remote SHARDS [--latency 0.05] [--step 0.5] [--batches 30] [--workers 2]

A step is a pause here, so that only waiting for data is measured. The cache is empty at first; its first pass reads by
ranges while whole shards come. Prints for each the time to the first batch and the mean and largest wait after it, as
shares of a step.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from dittool.address import place_of
from dittool.data.normalisation import LatentNorm
from dittool.data.shards.read import ShardSet
from dittool.data.shards.stream import BatchStream
from tests.data.remote.servers import http_server


def waits(place: Path, batches: int, step: float, workers: int) -> list[float]:
    """Seconds before each batch."""
    shards = ShardSet.open(place)
    channels = shards.widths.latent_channels
    norm = LatentNorm((0.0,) * channels, (1.0,) * channels)
    stream = BatchStream(shards, shards.split("train"), norm, 8, seed=0)
    found, begun = [], time.perf_counter()
    for _ in stream.batches(0, batches, workers, torch.device("cpu")):
        found.append(time.perf_counter() - begun)
        time.sleep(step)
        begun = time.perf_counter()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--step", type=float, default=0.5)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache, http_server(args.shards.resolve().parent) as (address, faults):
        os.environ["DIT_CACHE"] = cache
        faults.delay = args.latency
        url = place_of(f"{address}/{args.shards.resolve().name}")
        for name, place in (("disk", args.shards), ("empty cache", url), ("full cache", url)):
            first, *rest = waits(place, args.batches, args.step, args.workers)
            print(
                f"{name:12s} first batch {first:.2f} s, then mean wait {sum(rest) / len(rest) / args.step:.2%} of a"
                f" step, largest {max(rest) / args.step:.2%}; {len(faults.asked)} requests so far"
            )


if __name__ == "__main__":
    main()
