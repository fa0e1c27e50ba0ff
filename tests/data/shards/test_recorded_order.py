"""The order of samples is a promise: a run that is resumed under a later version goes on with the samples it would have
had. The digests below were recorded when samples were objects in a list (version 0.1), before they became columns.
"""

from __future__ import annotations

import hashlib
import json

import pytest

from dittool.data.provenance import Provenance
from dittool.data.shards.read import ShardSet
from dittool.data.shards.stream import BatchPlan, BatchStream

MIXED = (["128x128"] * 13 + ["160x96"] * 7 + ["96x160"] * 2) * 30  # buckets change every few samples
ONE = ["1024x1024"] * 5003
ROWS = ["128x128"] * 1000 + ["96x160"] * 700 + ["160x96"] * 33 + ["128x128"] * 412  # as rows of shards give them
SETS = {"mixed": MIXED, "one bucket": ONE, "rows": ROWS, "fewer than a batch": ["128x128"] * 3}
SIZES = {"128x128": 4, "160x96": 6, "96x160": 3}


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def order(plan: BatchPlan, first: int, count: int) -> str:
    return digest([[plan.batch(n), plan.samples_before(n), plan.epoch_of(n)] for n in range(first, first + count)])


RECORDED = {
    ("mixed", 1, 0, 0): "8365b67d184f2b93",
    ("mixed", 1, 7, 0): "0463af3dee51f975",
    ("mixed", 1, 0, 12345): "f6facf2227c29aa3",
    ("mixed", 4, 0, 0): "046b05ac4ee5e16a",
    ("mixed", 4, 0, 12345): "a1e850bf58c8dd5e",
    ("mixed", 64, 0, 0): "f7a5d2cc7d9a0231",
    ("mixed", 64, 7, 0): "3d9ea40a6a881006",
    ("mixed", 64, 0, 12345): "6f57d3f808bf601a",
    ("mixed", "by bucket", 0, 0): "962d11c2e74b80fc",
    ("mixed", "by bucket", 7, 0): "3acdaf73355555e2",
    ("mixed", "by bucket", 0, 12345): "6235bd8ce749501b",
    ("one bucket", 1, 0, 0): "8a446e80a3d9e428",
    ("one bucket", 1, 7, 0): "59e9d06ac71965a3",
    ("one bucket", 1, 0, 12345): "b4d161b4337239f5",
    ("one bucket", 4, 0, 0): "b6f1fea92d9f6522",
    ("one bucket", 4, 0, 12345): "e5c2a5a0b3cd6125",
    ("one bucket", 64, 0, 0): "6d2335583e16be7c",
    ("one bucket", 64, 7, 0): "f0003259a8eb94b2",
    ("one bucket", 64, 0, 12345): "b6d398f19963b58f",
    ("rows", 1, 0, 0): "ceb3fa31d8f01d68",
    ("rows", 1, 7, 0): "4bacfc96d45a9230",
    ("rows", 1, 0, 12345): "1488dd0a8ff04fbf",
    ("rows", 4, 0, 0): "b7cc5e1e536d6769",
    ("rows", 4, 0, 12345): "34a6084ab1e90282",
    ("rows", 64, 0, 0): "a8b15008ff3d5dda",
    ("rows", 64, 7, 0): "53b5ecb305075863",
    ("rows", 64, 0, 12345): "84cf320d59c9da45",
    ("rows", "by bucket", 0, 0): "a9a43703830c0398",
    ("rows", "by bucket", 7, 0): "42a3d42099e43cfc",
    ("rows", "by bucket", 0, 12345): "3067ee74f37388ea",
    ("fewer than a batch", 1, 0, 0): "cb88294945b1f2a3",
    ("fewer than a batch", 1, 7, 0): "184eb8f8add902f8",
    ("fewer than a batch", 1, 0, 12345): "7b4fb9de21957a4e",
    ("fewer than a batch", 4, 0, 0): "6ac9409f11cf8795",
    ("fewer than a batch", 4, 0, 12345): "320584810a329376",
    ("fewer than a batch", "by bucket", 0, 0): "6ac9409f11cf8795",
    ("fewer than a batch", "by bucket", 7, 0): "16492f5bf6c911f4",
    ("fewer than a batch", "by bucket", 0, 12345): "320584810a329376",
}


@pytest.mark.parametrize(("name", "size", "seed", "first"), RECORDED)
def test_a_thousand_batches_are_those_of_version_0_1(name, size, seed, first):
    sizes = SIZES if size == "by bucket" else size
    assert order(BatchPlan(SETS[name], sizes, seed), first, 1000) == RECORDED[name, size, seed, first]


RECORDED_IDS = {  # seed, rank, ranks, first micro-batch
    (0, 0, 1, 0): "12b3e1f03075faf0",
    (5, 0, 1, 0): "c37ba64b786a1a4a",
    (0, 0, 1, 1000): "d9890d593fa201c6",
    (0, 1, 2, 0): "0d754180fd256548",
    (0, 3, 4, 217): "fd5ea5b5372fe8fa",
    (5, 2, 4, 999): "aab6325859518748",
}


@pytest.mark.parametrize(("seed", "rank", "ranks", "first"), RECORDED_IDS)
def test_the_ids_of_a_set_are_those_of_version_0_1(tiny_shards, seed, rank, ranks, first):
    assert ids_of(tiny_shards, seed, rank, ranks, first) == RECORDED_IDS[seed, rank, ranks, first]


def ids_of(tiny_shards, seed, rank, ranks, first) -> str:
    shards = ShardSet.open(tiny_shards.folder)
    refs = shards.split("train")
    norm = Provenance.of(shards, refs, tiny_shards.config).norm
    stream = BatchStream(shards, refs, norm, 4, seed, patches=False, rank=rank, ranks=ranks)
    return digest([stream[number].ids for number in range(first, first + 30)])


def test_the_hash_of_the_order_is_that_of_version_0_1(tiny_shards):
    shards = ShardSet.open(tiny_shards.folder)
    refs = shards.split("train")
    text = "\n".join(f"{ref.id} {ref.bucket}" for ref in refs)
    assert Provenance.of(shards, refs, tiny_shards.config).order_hash == hashlib.sha256(text.encode()).hexdigest()
