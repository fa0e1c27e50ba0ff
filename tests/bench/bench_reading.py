"""Reading batches, beside a plain sequential read of the same bytes and beside the webdataset library. Run: python
tests/bench/bench_reading.py

What is compared, always on the same tars:

    raw      bytes only: each tar from front to back in large blocks, against ShardSet.read (shuffled over the whole
             set, by our index, headers of tar and npy checked, arrays of the stored type)
    tensors  batches of float32 tensors of all four features, text padded to the batch's longest. `plain` reads each tar
             from front to back in blocks of a batch and hands the arrays to our collate: no shuffling. `batches` is
             BatchStream's own way to a batch, without its noise. `library` is
             webdataset.WebDataset(…).decode().batched(…), with a collate that gives the same tensors; not shuffled

Each figure is a median over rounds in which the contenders take turns; on a machine that does other work only the
ratios mean anything. Files come from the page cache.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dittool.data.identity import IdentityCard
from dittool.data.normalisation import LatentNorm
from dittool.data.records import FEATURES, IMAGE_CLS, IMAGE_PATCHES, LATENT, RECORD_MEMBER, TEXT
from dittool.data.shards.columns import SampleRef
from dittool.data.shards.index import ShardIndex, index_shard, write_index
from dittool.data.shards.read import Sample, ShardSet
from dittool.data.shards.statistics import SetStatistics
from dittool.data.shards.stream import BatchPlan, collate
from dittool.data.shards.writer import tar_member
from dittool.encoders.cards import FeatureWidths, ImageCard, TextCard, VaeCard
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.untrusted.npy import npy_bytes, parse_npy
from dittool.untrusted.tar import Member, tar_members

BATCH, PER_SHARD, BUCKET = 8, 32, "512x512"


def make_set(folder: Path, samples: int) -> None:
    """Shards of random features of the sizes that the nano-patches preset has at 512²: DINOv3-L, T5-large, Flux
    latents.
    """
    chance, rows = np.random.default_rng(0), []
    (folder / f"bucket_{BUCKET}").mkdir(parents=True)
    pool = chance.standard_normal((1024 + 64, 1024), dtype=np.float32).astype(np.float16)
    for number in range(samples // PER_SHARD):
        tar = folder / f"bucket_{BUCKET}" / f"shard-{number:06d}.tar"
        with tar.open("wb") as file:
            for item in range(PER_SHARD):
                shift = int(chance.integers(64))
                arrays = {
                    IMAGE_CLS: pool[shift],
                    IMAGE_PATCHES: pool[shift : shift + 1024],
                    LATENT: pool[:64].reshape(16, 64, 64) + np.float16(shift),
                    TEXT: pool[: 20 + shift],
                }
                key = f"sample-{number:04d}-{item:04d}"
                for name, data in [
                    (RECORD_MEMBER, b"{}"),
                    *((feature.member, npy_bytes(array)) for feature, array in arrays.items()),
                ]:
                    file.writelines(tar_member(f"{key}.{name}", data))
            file.write(bytes(1024))
        rows.append(index_shard(folder, tar, BUCKET, "train"))
    encoders = (
        ImageCard("", "", "", "fp16", width=1024, patch_size=16, registers=0),
        TextCard("", "", "", "fp16", width=1024, max_tokens=512),
        VaeCard("", "", "", "fp32", channels=16, stride=8, scale=1.0, shift=0.0),
    )
    ones = {"latent": (1.0,) * 16, "cls": (1.0,) * 1024, "patch": (1.0,) * 1024}
    channels = {f"{name}_{what}": values for name, values in ones.items() for what in ("mean", "std")}
    statistics = SetStatistics(samples, **channels, tokens_mean=52.0, tokens_max=84)
    widths = FeatureWidths(1024, 1024, latent_channels=16)
    write_index(folder, ShardIndex(IdentityCard((BUCKET,), "fp16", encoders), "", "", widths, statistics, tuple(rows)))


def plain(folder: Path, tensors: bool) -> int:
    """Bytes of a sequential read; with `tensors`, each block of members becomes a batch."""
    total = 0
    for tar, members in PLACES.items():
        with tar.open("rb", buffering=0) as file:
            for start in range(0, len(members), BLOCK):
                part = members[start : start + BLOCK]
                first, end = part[0].offset, part[-1].offset + part[-1].size
                block = memoryview(np.empty(end - first, dtype=np.uint8))
                file.seek(first)
                total += file.readinto(block)
                if tensors:
                    collate(_samples(part, block, first), NORM, 16)
    return total


def _samples(members: list[Member], block: memoryview, first: int) -> list[Sample]:
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for member in members:
        if member.suffix != RECORD_MEMBER:
            data = block[member.offset - first : member.offset - first + member.size]
            arrays.setdefault(member.key, {})[member.suffix] = parse_npy(data, member.key)
    return [
        Sample(SampleRef(key, BUCKET, "train", "", {}), *(one[feature.member] for feature in FEATURES))
        for key, one in arrays.items()
    ]


BLOCK = 5 * BATCH  # members read at once: a batch's worth
PLACES: dict[Path, list[Member]] = {}
NORM = LatentNorm((0.1,) * 16, (0.4,) * 16)


def batches(shards: ShardSet, tensors: bool) -> int:
    plan, count = BatchPlan([ref.bucket for ref in shards.samples], BATCH, 0), 0
    for number in range(len(shards.samples) // BATCH):
        samples = [shards.read(shards.samples[index]) for index in plan.batch(number)]
        if tensors:
            collate(samples, NORM, 16)
        count += len(samples)
    return count


def library(folder: Path) -> int:
    import webdataset

    def join(samples: list[dict]) -> tuple:
        lengths = [len(sample["t5h.npy"]) for sample in samples]
        text = torch.zeros(len(samples), -(-max(lengths) // 8) * 8, 1024)
        for row, sample in zip(text, samples, strict=True):
            row[: len(sample["t5h.npy"])] = torch.from_numpy(sample["t5h.npy"])
        stacked = [
            torch.stack([torch.from_numpy(sample[feature.member]) for sample in samples]).float()
            for feature in FEATURES[:3]
        ]
        return text, NORM.apply(stacked[2]), stacked[0], stacked[1]

    urls = [str(tar) for tar in sorted(folder.rglob("*.tar"))]
    pipeline = webdataset.WebDataset(urls, shardshuffle=False).decode().batched(BATCH, collation_fn=join)
    return sum(len(batch[0]) for batch in pipeline)


def medians(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, after one round that does not count; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    ensure_torchvision()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        make_set(folder, options.samples)
        PLACES.update({tar: tar_members(tar) for tar in folder.rglob("*.tar")})
        shards = ShardSet.open(folder)  # like the plain read's own list of members, made once
        size = sum(tar.stat().st_size for tar in PLACES)
        took = medians(
            {
                "raw plain": lambda: plain(folder, tensors=False),
                "raw batches": lambda: batches(shards, tensors=False),
                "plain": lambda: plain(folder, tensors=True),
                "batches": lambda: batches(shards, tensors=True),
                "library": lambda: library(folder),
            },
            options.rounds,
        )
    print(
        f"{options.samples} samples, {size / 1e6:.0f} MB, batches of {BATCH}, one process; medians of {options.rounds}"
        " rounds"
    )
    for name, seconds in took.items():
        print(f"  {name:<12}{seconds:8.3f} s {size / seconds / 1e9:7.2f} GB/s")
    print(
        f"raw:     our samples against a plain sequential read:  {took['raw plain'] / took['raw batches']:.2f} of its"
        " speed (aim 0.8)"
    )
    print(
        f"tensors: our batches against a plain sequential read:  {took['plain'] / took['batches']:.2f} of its speed"
        " (aim 0.8)"
    )
    print(
        f"tensors: our batches against webdataset's pipeline:    {took['library'] / took['batches']:.2f} times as fast"
        " (aim 2)"
    )


if __name__ == "__main__":
    main()
