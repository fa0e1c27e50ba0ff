"""Embedding, beside a bare loop over the encoder on the same decoded images. Run: python -m tests.bench.bench_embed

    overhead   a DINOv3 of ViT-S size with random weights, as the weight of a real encoder; time of `dit embed`'s pass
               (read, hash, decode, encode, write, fsync, journal) over the time of `encode` alone in the same batches.
               Aim: at most 1.10
    flat       many small images through the built-in encoders: images/s of each pass, and the memory of this process
               and its workers at ten moments, with the encoders' own loop beside it. Their encoders take a millisecond
               an image, so what is measured is the rest

Contenders run in one process and in turn; on a machine that does other work only the ratios mean anything.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dittool.config.load import load_config
from dittool.config.schema import Config
from dittool.console import Talk, Task
from dittool.data.features.embed import embed
from dittool.data.features.parts import Part
from dittool.data.features.passes import load_pass, plan_batches
from dittool.data.records import Record
from dittool.data.source.scan import load_pixels, scan
from dittool.encoders.torchvision_remedy import ensure_torchvision

WORDS = ("red", "blue", "green", "circle", "square", "left", "right", "above", "below", "small", "large")


class Stopwatch(Talk):
    """Times each piece of long work, from the outside."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def progress(self, label: str, total: int, unit: str = "") -> Iterator[Task]:
        started = time.perf_counter()
        yield Task()
        self.seconds[label] = time.perf_counter() - started


class MemorySampler:
    """Resident memory of this process and its children, four times a second. A context manager."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.25):
            self.megabytes.append(sum(map(_resident, [os.getpid(), *_children()])) / 1e6)

    def moments(self, count: int = 10) -> list[float]:
        """The highest of each tenth of the time."""
        return [max(part) for part in np.array_split(self.megabytes, count) if len(part)]


def _children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return 0


def draw(folder: Path, count: int, side: int) -> None:
    """Captioned images of smooth noise, as large as photographs are when compressed."""
    folder.mkdir()

    def one(number: int) -> None:
        chance = np.random.default_rng(number)
        small = chance.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:06d}.png")
        (folder / f"{number:06d}.txt").write_text(" ".join(chance.choice(WORDS, chance.integers(4, 20))))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(count)))


def bare_seconds(stage: str, config: Config, records: list[Record], source: Path, batches: int | None = None) -> float:
    """Time of the encoder alone on a pass's batches, decoded beforehand; of the first so many, scaled up to all."""
    ready = load_pass(stage, config)
    planned = plan_batches(stage, records, records, Part())
    chosen = planned[:batches]
    seconds = 0.0
    for batch in chosen:
        inputs = [record.caption if stage == "t5" else load_pixels(record, source) for record in batch]
        started = time.perf_counter()
        ready.encode(inputs)
        seconds += time.perf_counter() - started
    return seconds * sum(map(len, planned)) / sum(map(len, chosen))


def overhead(root: Path, images: int, rounds: int) -> None:
    ensure_torchvision()
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(0)
    size = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
    DINOv3ViTModel(DINOv3ViTConfig(patch_size=16, num_register_tokens=4, **size)).save_pretrained(root / "vit-s")
    config = load_config("demo", ["data.area=None", 'data.buckets=["256x256"]', f"encoders.image={root / 'vit-s'}"])
    draw(root / "photos", images, 512)
    records = scan(root / "photos", config.data.bucket_sizes())
    ratios = []
    for number in range(rounds):
        bare = bare_seconds("dinov3", config, records, root / "photos")
        watch = Stopwatch()
        embed(root / "photos", root / f"derived{number}", config, ["dinov3"], watch)
        ratios.append(watch.seconds["dinov3"] / bare)
        print(
            f"  {images} images of 512x512 → 256x256: encoder {bare:.1f} s, embed {watch.seconds['dinov3']:.1f} s,"
            f" ratio {ratios[-1]:.3f}"
        )
    print(f"overhead: median ratio {statistics.median(ratios):.3f} (aim: at most 1.10)")


def flat(root: Path, images: int) -> None:
    config = load_config("demo", ["data.area=None", 'data.buckets=["64x64"]'])
    draw(root / "small", images, 96)
    records = scan(root / "small", config.data.bucket_sizes())
    watch = Stopwatch()
    with MemorySampler() as memory:
        started = time.perf_counter()
        embed(root / "small", root / "derived", config, talk=watch)
        total = time.perf_counter() - started
    for stage in ("dinov3", "vae", "t5"):
        bare = bare_seconds(stage, config, records, root / "small", batches=20)
        took = watch.seconds[stage]
        print(
            f"  {stage:<7}{images / took:8.0f} items/s   encoder alone {images / bare:8.0f}   ratio {took / bare:.2f}"
        )
    moments = memory.moments()
    print(
        f"flat: {images} items, three passes, {total:.0f} s in all ({images / total:.0f} images/s, scan"
        f" {images / watch.seconds['scan']:.0f}/s)"
    )
    print(f"  memory by tenths of the time, MB: {' '.join(f'{value:.0f}' for value in moments)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--only", choices=("overhead", "flat"))
    parser.add_argument("--images", type=int, default=320, help="for overhead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small-images", type=int, default=20_000, help="for flat")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        if chosen.only != "flat":
            overhead(Path(folder), chosen.images, chosen.rounds)
        if chosen.only != "overhead":
            flat(Path(folder), chosen.small_images)


if __name__ == "__main__":
    main()
