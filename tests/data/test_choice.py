"""Samples that stand for a set: of every bucket its share, whatever the order of the shards."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from dittool.data.choice import representative
from dittool.data.shards.columns import SampleRef, Samples
from dittool.seeding import derive_seed


def refs(**counts: int) -> list[SampleRef]:
    return [
        SampleRef(f"{bucket}-{n}", bucket, "holdout", "", {}) for bucket, many in counts.items() for n in range(many)
    ]


def chosen_of(some: list[SampleRef], count: int) -> Counter[str]:
    return Counter(ref.bucket for ref in representative(some, count, "test"))


def test_each_bucket_is_there_in_its_share():
    assert chosen_of(refs(wide=600, square=300, tall=100), 50) == {"wide": 30, "square": 15, "tall": 5}
    uneven = chosen_of(refs(wide=37, square=23, tall=11, tiny=1), 20)
    assert all(
        abs(uneven[name] - 20 * share / 72) <= 1
        for name, share in {"wide": 37, "square": 23, "tall": 11, "tiny": 1}.items()
    )


def test_the_choice_does_not_depend_on_the_order_and_is_another_one_for_another_purpose():
    some = refs(wide=60, square=30)
    assert representative(some, 12, "test") == representative(some[::-1], 12, "test")
    assert set(ref.id for ref in representative(some, 12, "test")) != {
        ref.id for ref in representative(some, 12, "other")
    }


def test_it_is_no_run_of_neighbours():
    numbers = sorted(int(ref.id.split("-")[1]) for ref in representative(refs(wide=1000), 20, "test"))
    assert max(numbers) > 500 and min(numbers) < 500


def test_a_small_set_is_taken_as_it_is():
    assert len(representative(refs(wide=3, tall=2), 64, "test")) == 5


@pytest.mark.parametrize("count", [1, 7, 40, 99, 500])
def test_numbers_alone_choose_what_sorting_all_samples_chose(count):
    some = refs(wide=60, square=30, tall=9, tiny=1)[::-1]
    buckets = defaultdict(list)
    for ref in sorted(some, key=lambda ref: derive_seed("test", ref.id)):
        buckets[ref.bucket].append(ref)
    placed = [((k + 0.5) / len(b), name, k) for name, b in sorted(buckets.items()) for k in range(len(b))]
    expected = [buckets[name][k] for _, name, k in sorted(placed)[:count]]
    assert representative(some, count, "test") == expected == representative(Samples.of(some), count, "test")
