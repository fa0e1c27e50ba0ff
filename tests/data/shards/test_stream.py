"""Deterministic batches: every sample in its turn, the same order whatever the past, the workers and the ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain, pairwise

import numpy as np
import pytest
import torch

from dittool.config.load import load_config
from dittool.data.provenance import Provenance
from dittool.data.shards.read import ShardSet
from dittool.data.shards.read_ahead import items_ahead, tensor_bytes
from dittool.data.shards.stream import BatchPlan, BatchStream, collate, sizes_within
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


def assert_parts_make_the_whole(whole, parts, numbers) -> None:
    for number in numbers:
        shares, batch = [part[number] for part in parts], whole[number]
        assert [sample_id for share in shares for sample_id in share.ids] == batch.ids
        for name in ("latents", "noise", "timestep_draw", "mode_draw"):
            assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(batch, name))


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_split_the_batch_of_one_process(tiny_shards, ranks):
    assert_parts_make_the_whole(
        tiny_shards.stream(), [tiny_shards.stream(rank=rank, ranks=ranks) for rank in range(ranks)], (0, 5, 17)
    )


# Batches by token budget: each bucket has its own size

BUCKET_NAMES = [bucket.name for bucket in load_config("demo").data.bucket_sizes()]
SIZES = {"128x128": 4, "160x96": 6, "96x160": 3}


def test_a_budget_gives_each_bucket_the_samples_that_fit():
    """Tokens of 16 pixels: 64, 60 and 60 of them."""
    buckets = ["128x128", "160x96", "1024x1024"]
    assert sizes_within(256, buckets, cell=16) == {"128x128": 4, "160x96": 4, "1024x1024": 1}
    assert sizes_within(599, ["160x96"], cell=16) == {"160x96": 9}
    assert sizes_within(600, ["160x96"], cell=16) == {"160x96": 10}
    assert sizes_within(599, buckets, cell=16, multiple=4) == {"128x128": 8, "160x96": 8, "1024x1024": 4}


def test_batches_of_a_budget_are_full_of_one_bucket_and_lose_no_sample():
    plan = BatchPlan(BUCKETS, SIZES, seed=0)
    count = next(n for n in range(1000) if plan.epoch_of(n) == 12)
    seen = Counter()
    for batch in batches(plan, count):
        (bucket,) = {BUCKETS[i] for i in batch}
        assert len(batch) == SIZES[bucket]
        seen.update(batch)
    assert set(seen) == set(range(len(BUCKETS)))
    assert all(abs(times - 12) <= 3 for times in seen.values())


@pytest.mark.parametrize("sizes", [4, SIZES])
def test_the_global_index_of_a_sample_is_the_count_of_those_before_it(sizes):
    plan = BatchPlan(BUCKETS, sizes, seed=3)
    before = 0
    for number in range(60):
        assert plan.samples_before(number) == before
        before += len(plan.batch(number))
    # asked for at once, as after a resume
    assert BatchPlan(BUCKETS, sizes, seed=3).samples_before(59) == plan.samples_before(59)


def test_a_budget_gives_the_same_batches_to_any_ranks_and_workers(tiny_shards):
    sizes = {bucket: 8 if bucket == "128x128" else 4 for bucket in BUCKET_NAMES}
    whole = stream_of(tiny_shards, sizes)
    for ranks in (2, 4):
        assert_parts_make_the_whole(
            whole, [stream_of(tiny_shards, sizes, rank, ranks) for rank in range(ranks)], (0, 3, 9)
        )
    helped = list(whole.batches(2, 8, 2, torch.device("cpu")))
    assert [batch.ids for batch in helped] == [whole[number].ids for number in range(2, 8)]


def test_no_two_samples_of_a_budgeted_run_draw_the_same_noise(tiny_shards):
    whole = stream_of(tiny_shards, {bucket: 8 if bucket == "128x128" else 2 for bucket in BUCKET_NAMES})
    draws = [draw for number in range(20) for draw in whole[number].timestep_draw.tolist()]
    assert len(set(draws)) == len(draws)


def test_a_bucket_that_does_not_divide_among_ranks_is_named(tiny_shards):
    with pytest.raises(UsageError, match="6 samples of bucket 128x128 in a batch do not divide among 4"):
        stream_of(tiny_shards, {bucket: 6 if bucket == "128x128" else 4 for bucket in BUCKET_NAMES}, 0, 4)


def stream_of(tiny_shards, sizes, rank=0, ranks=1) -> BatchStream:
    shards = ShardSet.open(tiny_shards.folder)
    refs = shards.split("train")
    return BatchStream(
        shards, refs, Provenance.of(shards, refs, tiny_shards.config).norm, sizes, seed=0, rank=rank, ranks=ranks
    )


def test_draws_belong_to_the_place_in_the_run_and_differ_between_steps(tiny_shards):
    stream = tiny_shards.stream()
    assert torch.equal(stream[3].noise, tiny_shards.stream()[3].noise)
    assert not torch.equal(stream[3].timestep_draw, stream[4].timestep_draw)


def test_worker_processes_change_nothing(tiny_shards):
    stream, cpu = tiny_shards.stream(), torch.device("cpu")
    alone, helped = (list(stream.batches(2, 8, workers, cpu)) for workers in (0, 2))
    for a, b in zip(alone, helped, strict=True):
        assert a.ids == b.ids and torch.equal(a.noise, b.noise) and torch.equal(a.latents, b.latents)


def test_the_loader_does_not_touch_the_global_random_state(tiny_shards):
    before = torch.get_rng_state()
    list(tiny_shards.stream().batches(0, 2, 0, torch.device("cpu")))
    assert torch.equal(torch.get_rng_state(), before)


def test_text_is_padded_to_the_longest_caption_rounded_up(tiny_shards):
    batch = tiny_shards.stream()[0]
    lengths = batch.conditions.text_mask.sum(dim=1)
    assert batch.conditions.text.shape[1] == -(-int(lengths.max()) // 8) * 8
    assert (batch.conditions.text[~batch.conditions.text_mask] == 0).all()


def test_only_a_batch_with_padding_has_a_mask(tiny_shards):
    """Where there is none, attention may take its fastest kernels."""
    shards = ShardSet.open(tiny_shards.folder)
    norm = Provenance.of(shards, shards.split("train"), tiny_shards.config).norm
    sample = shards.read(next(ref for ref in shards.split("train") if ref.bucket == "128x128"))
    full, longer = (replace(sample, text=np.ones((length, sample.text.shape[1]), np.float16)) for length in (8, 9))
    assert collate([full, full], norm, 16)[1].text_mask is None
    assert collate([full, longer], norm, 16)[1].text_mask.sum(dim=1).tolist() == [8, 9]


def test_a_batch_is_pinned_whole_where_there_is_a_gpu(tiny_shards, monkeypatch):
    """Else the DataLoader leaves it where it is and every copy to the device waits."""
    batch = tiny_shards.stream()[0]
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda tensor: tensor + 1 if tensor.is_floating_point() else ~tensor
    )
    pinned = batch.pin_memory()
    for name in ("latents", "noise"):
        assert torch.equal(getattr(pinned, name), getattr(batch, name) + 1)
    assert torch.equal(pinned.conditions.patches, batch.conditions.patches + 1) and pinned.ids == batch.ids


def test_a_batch_that_does_not_divide_among_ranks_is_refused(tiny_shards):
    with pytest.raises(UsageError, match="4 samples in a batch do not divide among 3"):
        tiny_shards.stream(ranks=3)


def test_a_batch_travels_as_it_is_stored_and_becomes_what_a_conversion_beforehand_gave(tiny_shards):
    stream = tiny_shards.stream()
    stored, batch = stream.stored(3), stream[3]
    c = stored.batch.conditions
    assert {tensor.dtype for tensor in (stored.batch.latents, c.text, c.cls, c.patches)} == {torch.float16}
    samples = [stream._shards.read(ref) for name in batch.ids for ref in stream._refs if ref.id == name]
    latents = stream._norm.apply(torch.stack([torch.from_numpy(sample.latent).float() for sample in samples]))
    patches = torch.stack([torch.from_numpy(sample.patches).float() for sample in samples])
    assert torch.equal(batch.latents, latents) and torch.equal(batch.conditions.patches, patches)
    assert batch.conditions.text.dtype == batch.conditions.cls.dtype == torch.float32
    moved = stored.to(torch.device("meta"))
    assert moved.latents.is_meta and moved.latents.dtype == torch.float32


def test_the_largest_batch_is_counted_as_it_travels_and_as_it_is_used(tiny_shards):
    stream = tiny_shards.stream()
    used, handed_over = stream.largest_batch
    found = [stream.stored(number).batch for number in range(12)]
    sizes = [tensor_bytes((b.latents, b.conditions, b.noise, b.timestep_draw, b.mode_draw)) for b in found]
    assert max(sizes) <= handed_over <= 1.1 * max(sizes) and handed_over < 0.75 * used


def test_large_batches_are_prepared_fewer_at_a_time():
    assert items_ahead(0, 4) == items_ahead(1 << 20, 4) == 4
    assert items_ahead(1 << 29, 4) == 2 and items_ahead(1 << 32, 4) == 1
