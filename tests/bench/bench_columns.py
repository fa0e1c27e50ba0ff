"""An index of millions of samples without their tars: start-up, batches a second, memory of 1 + 8 × 4 processes.

    python -m tests.bench.bench_columns [--samples 1000000] [--ranks 8] [--workers 4]

Numbers alone: columns are written as `dit shard`'s lists would give them (five members, ids of 20 characters, shards of
1,000 in 20 buckets). Each process maps them, hashes the order, and works out batches of 64 with the places of their
samples. Memory is PSS (a shared page counts its part) and USS (what the process has alone), from smaps_rollup; what a
process had before it opened the set is taken off.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dittool.data.shards.columns import Columns, Members, Samples
from dittool.data.shards.order import BatchPlan

BUCKETS = [f"{width}x{height}" for width in (512, 640, 768, 896, 1024) for height in (512, 768, 1024, 1280)]
SIZES = {"json": 700, "dinov3.npy": 1700, "dinov3_patches.npy": 2_100_000, "vae.npy": 524_416, "t5h.npy": 130_000}
PER_SHARD, BATCH = 1000, 64


def listed(samples: int) -> Iterator[tuple[str, str, str, list[tuple[str, Members]]]]:
    for shard in range(samples // PER_SHARD):
        bucket, offset, some = BUCKETS[shard * len(BUCKETS) * PER_SHARD // samples], 0, []
        for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
            members = {}
            for suffix, size in SIZES.items():
                members[suffix] = (offset, size)
                offset += size + 512
            some.append((f"image_{number:014d}", members))
        yield f"bucket_{bucket}/shard-{shard:06d}.tar", bucket, "train", some


def memory() -> dict[str, float]:
    """PSS and USS of this process in MB."""
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        found[name.rstrip(":")] = int(value) / 1000
    return {"pss": found["Pss"], "uss": found["Private_Clean"] + found["Private_Dirty"]}


def look(path: Path, number: int, batches: int, ready, done, found) -> None:
    before, start = memory(), time.perf_counter()
    columns = Columns.mapped(path)
    samples = Samples(columns, columns.shards)
    digest = samples.order_sha256() if number == 0 else ""
    plan = BatchPlan(samples, BATCH, 0)
    ids = [samples[row].id for row in plan.batch(number)]
    opened, start = time.perf_counter() - start, time.perf_counter()
    for batch in range(number * batches, (number + 1) * batches):
        ids = [samples[row].id for row in plan.batch(batch)]
    speed = batches / (time.perf_counter() - start)
    ready.wait()  # all processes stand at their largest
    after = memory()
    done.wait()
    used = {f"{kind}_mb": round(after[kind] - before[kind], 1) for kind in after}
    found.put({"start_s": round(opened, 2), "batches_s": round(speed), **used, "digest": digest, "last": ids[-1]})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batches", type=int, default=100)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "synthetic.columns", time.perf_counter()
        os.environ["XDG_CACHE_HOME"] = folder
        columns = Columns.build(listed(args.samples))
        with open(path, "wb") as file:
            columns.write(file)
        made = time.perf_counter() - start
        del columns
        count = 1 + args.ranks * args.workers
        ready, done, found = context.Barrier(count), context.Barrier(count), context.Queue()
        processes = [
            context.Process(target=look, args=(path, number, args.batches, ready, done, found))
            for number in range(count)
        ]
        for process in processes:
            process.start()
        rows = [found.get() for _ in processes]
        for process in processes:
            process.join()
        summary = {
            "samples": args.samples,
            "processes": count,
            "bytes_a_sample": round(path.stat().st_size / args.samples, 1),
            "making_s": round(made, 1),
            "slowest_start_s": max(row["start_s"] for row in rows),
            "batches_s_each": sorted(row["batches_s"] for row in rows)[count // 2],
            "pss_mb_all": round(sum(row["pss_mb"] for row in rows)),
            "uss_mb_largest": max(row["uss_mb"] for row in rows),
        }
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
