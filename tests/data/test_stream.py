"""Deterministic batches: every sample in its turn, the same order whatever the past, the workers and the ranks."""

from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise

import pytest
import torch

from dittool.data.stream import BatchPlan
from dittool.errors import BadDataError, UsageError

BUCKETS = ["128x128"] * 13 + ["160x96"] * 7 + ["96x160"] * 2  # the last is smaller than a batch


def batches(plan: BatchPlan, count: int) -> list[list[int]]:
    return [plan.batch(number) for number in range(count)]


def test_a_batch_holds_one_bucket_and_is_full():
    for batch in batches(BatchPlan(BUCKETS, 4, seed=0), 40):
        assert len(batch) == 4
        assert len({BUCKETS[i] for i in batch}) == 1


def test_the_order_depends_on_the_seed_and_on_nothing_that_was_asked_before():
    forwards = batches(BatchPlan(BUCKETS, 4, seed=0), 30)
    plan = BatchPlan(BUCKETS, 4, seed=0)
    assert [plan.batch(number) for number in reversed(range(30))] == forwards[::-1]
    assert batches(BatchPlan(BUCKETS, 4, seed=1), 30) != forwards


def test_no_sample_is_lost_or_favoured():
    """After 12 epochs every sample was seen 12 times, give or take the batch that is still open."""
    plan = BatchPlan(BUCKETS, 4, seed=0)
    count = next(n for n in range(1000) if plan.epoch_of(n) == 12)
    seen = Counter(i for batch in batches(plan, count) for i in batch)
    assert set(seen) == set(range(len(BUCKETS)))
    assert all(abs(times - 12) <= 2 for times in seen.values())


def test_epochs_differ_in_their_order():
    plan = BatchPlan(["128x128"] * 8, 4, seed=0)
    first, second = batches(plan, 2), [plan.batch(2), plan.batch(3)]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(8))
    assert first != second


def test_buckets_are_mixed_within_an_epoch():
    plan = BatchPlan(["128x128"] * 40 + ["160x96"] * 40, 4, seed=0)
    order = [plan.batch(n)[0] < 40 for n in range(20)]
    assert sum(a != b for a, b in pairwise(order)) > 4


def test_a_set_smaller_than_a_batch_still_gives_batches():
    assert sorted(Counter(BatchPlan(["128x128"] * 2, 8, seed=0).batch(0)).values()) == [4, 4]


def test_no_samples_are_an_error():
    with pytest.raises(BadDataError, match="no training samples"):
        BatchPlan([], 4, seed=0)


def test_ranks_split_the_batch_of_one_process(tiny_shards):
    whole, parts = tiny_shards.stream(ranks=1), [tiny_shards.stream(rank=rank, ranks=2) for rank in range(2)]
    for number in (0, 5, 17):
        both = [part[number] for part in parts]
        assert both[0].ids + both[1].ids == whole[number].ids
        for name in ("latents", "noise", "timestep_draw", "mode_draw"):
            assert torch.equal(torch.cat([getattr(batch, name) for batch in both]), getattr(whole[number], name))


def test_draws_belong_to_the_place_in_the_run_and_differ_between_steps(tiny_shards):
    stream = tiny_shards.stream()
    assert torch.equal(stream[3].noise, tiny_shards.stream()[3].noise)
    assert not torch.equal(stream[3].timestep_draw, stream[4].timestep_draw)


def test_worker_processes_change_nothing(tiny_shards):
    stream, cpu = tiny_shards.stream(), torch.device("cpu")
    alone, helped = (list(stream.loader(2, 8, workers, cpu)) for workers in (0, 2))
    for a, b in zip(alone, helped, strict=True):
        assert a.ids == b.ids and torch.equal(a.noise, b.noise) and torch.equal(a.latents, b.latents)


def test_the_loader_does_not_touch_the_global_random_state(tiny_shards):
    before = torch.get_rng_state()
    list(tiny_shards.stream().loader(0, 2, 0, torch.device("cpu")))
    assert torch.equal(torch.get_rng_state(), before)


def test_text_is_padded_to_the_longest_caption_rounded_up(tiny_shards):
    batch = tiny_shards.stream()[0]
    lengths = batch.conditions.text_mask.sum(dim=1)
    assert batch.conditions.text.shape[1] == -(-int(lengths.max()) // 8) * 8
    assert (batch.conditions.text[~batch.conditions.text_mask] == 0).all()


def test_a_batch_that_does_not_divide_among_ranks_is_refused(tiny_shards):
    with pytest.raises(UsageError, match="does not divide among 3"):
        tiny_shards.stream(ranks=3)
