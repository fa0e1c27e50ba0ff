"""Time, memory, bytes and files of a set of many small images, by each way from images to shards.

    python -m tests.bench.bench_folders 2000 10000 [--folder /tmp/bench]

Drawings of the demo's, recoloured, at 64x64 under the built-in encoders. Each step is a process of its own; what is
printed is a row a step and count, and what 10 million images would take at the slope between the two largest counts.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dittool.demo.drawing import draw_dataset

SETTINGS = ("--preset", "demo", "-s", "data.area=None", "-s", 'data.buckets=["64x64"]', "--quiet")
DRAWN = 200  # scenes; the others are these with other colours
TEN_MILLION = 10_000_000


@dataclass(frozen=True)
class Cost:
    """Of one step."""

    step: str
    images: int
    seconds: float
    peak: int  # bytes of the process
    files: int
    bytes: int  # of the files, in whole blocks


def make_images(folder: Path, count: int) -> None:
    """`count` captioned pictures, no two alike."""
    draw_dataset(folder / "drawn", min(DRAWN, count), seed=0)
    paths, random = sorted((folder / "drawn").glob("*.png")), np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(count):
        path = paths[number % len(paths)]
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((64, 64)), np.float32)
        mixed = pixels @ (np.eye(3, dtype=np.float32) + random.normal(0, 0.3, (3, 3)).astype(np.float32))
        mixed += random.normal(0, 12, (8, 8, 3)).astype(np.float32).repeat(8, 0).repeat(8, 1)
        Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number:07d}.png")
        shutil.copy(path.with_suffix(".txt"), folder / "images" / f"{number:07d}.txt")


def run(step: str, images: int, made: Path, *words: object) -> Cost:
    """One `dit` command."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "dittool", *map(str, words)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{step}: exit code {process.returncode}")
    stats = [path.stat() for path in made.rglob("*") if path.is_file()]
    blocks = sum(stat.st_blocks * 512 for stat in stats)
    return Cost(step, images, seconds, usage.ru_maxrss * 1024, len(stats), blocks)


def measure(folder: Path, count: int) -> list[Cost]:
    make_images(folder, count)
    images, derived, shards, straight = (folder / name for name in ("images", "derived", "shards", "straight"))
    time.sleep(2.5)  # files that have just changed are read again
    embed = ("embed", images, "--out", derived, *SETTINGS)
    into = ("embed", images, "--into-shards", "--out", straight, *SETTINGS)
    return [
        run("embed", count, derived, *embed),
        run("embed, nothing to do", count, derived, *embed),
        run("shard", count, shards, "shard", derived, "--out", shards, "--quiet"),
        run("embed --into-shards", count, straight, *into),
        run("embed --into-shards, nothing to do", count, straight, *into),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", nargs="+", type=int)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    rows: list[Cost] = []
    print("| step | images | s | ms an image | peak MB | files | kB an image |")
    print("| --- " * 7 + "|")
    for count in sorted(arguments.counts):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
            for cost in measure(Path(place), count):
                rows.append(cost)
                figures = [f"{cost.seconds:.1f}", f"{1000 * cost.seconds / count:.2f}", f"{cost.peak / 1e6:.0f}"]
                figures += [f"{cost.files:,}", f"{cost.bytes / count / 1e3:.2f}"]
                print(f"| {cost.step} | {count:,} | {' | '.join(figures)} |", flush=True)
    for step in dict.fromkeys(row.step for row in rows):
        some = [row for row in rows if row.step == step][-2:]
        if len(some) == 2:
            more = some[1].images - some[0].images
            hours = (some[1].seconds - some[0].seconds) / more * TEN_MILLION / 3600
            memory = (some[1].peak - some[0].peak) / more * TEN_MILLION / 1e9
            print(f"{step}: 10 million images at this slope: {hours:.1f} h, {memory:.1f} GB of memory")


if __name__ == "__main__":
    main()
