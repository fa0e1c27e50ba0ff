"""Looking for near copies in many images: time beside sorting the same hashes once, and memory. Run: python -m
tests.bench.bench_near_copies [--images 1000000]

Hashes are drawn, a hundredth of them near copies of another (three bits changed): pictures are not needed to see what
their number costs.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from dittool.data.features.near_copies import proposed_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    count = parser.parse_args().images
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    copies = count // 100
    planted = hashes[:copies].copy()
    for _ in range(3):
        planted ^= np.uint64(1) << rng.integers(0, 64, copies, dtype=np.uint64)
    hashes[-copies:] = planted
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    np.argsort(hashes)
    sorting = time.process_time() - started
    started = time.process_time()
    proposed = proposed_pairs(hashes, np.ones(count, bool))
    seconds = time.process_time() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found = ((proposed.pairs[:, 1] - proposed.pairs[:, 0]) == count - copies).sum()
    print(f"{count:,} hashes: {seconds:.1f} s of a processor, {seconds / sorting:.0f} times one sort of them")
    print(f"memory {grown / 1024:.0f} MiB more, {grown * 1024 / count:.0f} bytes a hash")
    print(f"{found:,} of {copies:,} planted pairs proposed, {len(proposed.pairs) - found:,} others")


if __name__ == "__main__":
    main()
