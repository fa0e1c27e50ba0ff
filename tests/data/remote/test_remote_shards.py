"""Sets of shards behind an address: read as from a disk, cached, and every fault of a store with its own end."""

from __future__ import annotations

import errno
import os
import time

import numpy as np
import pytest

from dittool.address import Address, full_address, place_of, without_secrets
from dittool.data.remote import cache as cache_module
from dittool.data.remote.cache import Cache
from dittool.data.shards.read import ShardSet
from dittool.data.shards.verify import verify
from dittool.errors import BadDataError, StorageError, UsageError


def opened(address: str) -> ShardSet:
    return ShardSet.open(place_of(address))


def require_equal(ours: ShardSet, theirs: ShardSet) -> None:
    assert list(ours.samples) == list(theirs.samples)
    for mine, other in zip(ours.read_all(list(ours.samples)), theirs.read_all(list(theirs.samples)), strict=True):
        for feature, array in mine.arrays().items():
            np.testing.assert_array_equal(array, other.arrays()[feature])


def fetched(shards: ShardSet) -> None:
    """Waits until all shards are here."""
    end = time.monotonic() + 20
    while not all(shards.remote.here(row.path) for row in shards.index.shards):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_behind_http_samples_are_those_on_disk(served, tiny_shards):
    address, faults, _ = served
    shards = opened(address)
    require_equal(shards, ShardSet.open(tiny_shards.folder))
    fetched(shards)
    asked = len(faults.asked)
    require_equal(shards, ShardSet.open(tiny_shards.folder))
    assert len(faults.asked) == asked, "whole shards are here: nobody asks again"


def test_in_a_bucket_samples_are_those_on_disk(bucket, tiny_shards):
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).put(str(tiny_shards.folder), f"{bucket}/set", recursive=True)
    require_equal(opened(f"{bucket}/set"), ShardSet.open(tiny_shards.folder))
    assert verify(place_of(f"{bucket}/set")) == []


def test_a_slow_server_is_waited_for(served, tiny_shards):
    address, faults, _ = served
    faults.delay = 0.05
    require_equal(opened(address), ShardSet.open(tiny_shards.folder))


def test_answers_that_break_off_are_asked_for_again(served, tiny_shards):
    address, faults, _ = served
    faults.dropped.update({"index.json": 2, ".members.json": 2, ".tar": 3})
    require_equal(opened(address), ShardSet.open(tiny_shards.folder))
    assert not +faults.dropped


def test_a_server_that_always_breaks_off_ends_it(served):
    address, faults, _ = served
    faults.dropped["index.json"] = 1000
    with pytest.raises(StorageError, match=r"index.json: not to be had in 6 tries") as refused:
        opened(address)
    assert refused.value.exit_code == 5 and refused.value.hint


def test_a_truncated_object_is_refused(served):
    address, faults, _ = served
    faults.changed[".tar"] = lambda data: data[:600]
    shards = opened(address)
    with pytest.raises(StorageError, match="bytes came"):
        shards.read_all(list(shards.samples))


def flipped(data: bytes) -> bytes:
    return data[:-2000] + bytes([data[-2000] ^ 1]) + data[-1999:]


def test_a_changed_shard_ends_it_and_is_not_kept(served, cache):
    address, faults, _ = served
    faults.changed[".tar"] = flipped
    shards = opened(address)
    with pytest.raises(BadDataError, match=r"sha256 \w+…, the index says") as refused:
        shards.tar(shards.index.shards[0].path)
    assert refused.value.exit_code == 3 and not list(cache.glob("*.tar"))
    with pytest.raises(BadDataError, match="sha256"):  # what the thread finds ends the reading
        for _ in range(200):
            shards.read(shards.samples[0])
            time.sleep(0.02)


def test_a_changed_list_of_members_is_refused(served):
    address, faults, _ = served
    faults.changed[".members.json"] = lambda data: data.replace(b"[", b"[ ", 1)
    with pytest.raises(BadDataError, match="sha256"):
        opened(address)


def test_a_missing_object_is_named(served):
    address, _, folder = served
    next(folder.rglob("*.members.json")).unlink()
    with pytest.raises(BadDataError, match=r"members.json: no such object"):
        opened(address)
    (folder / "index.json").unlink()
    with pytest.raises(BadDataError, match=r"/set/index.json: no such object"):
        opened(address)


def test_wrong_credentials_are_said_once_and_without_the_secret(served):
    address, faults, _ = served
    faults.refused = "sig=RIGHT"
    with pytest.raises(StorageError, match="access refused") as refused:
        opened(f"{address}?sig=WRONG")
    assert "WRONG" not in f"{refused.value.message} {refused.value.hint}"
    assert len(faults.asked) == 1, "what is refused is not tried again"
    shards = opened(f"{address}?sig=RIGHT")
    assert "RIGHT" not in f"{shards.folder} {shards!r}"
    shards.read(shards.samples[0])


def test_wrong_keys_of_a_bucket_are_said(bucket, monkeypatch):
    from dittool.data.remote import requests

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    requests._opened.cache_clear()
    with pytest.raises(StorageError, match="access refused") as refused:
        opened(f"{bucket}/set")
    assert refused.value.exit_code == 5


def test_a_cache_that_is_too_small_is_no_obstacle(served, tiny_shards, cache, monkeypatch):
    address, _, _ = served
    largest = max(row.bytes for row in ShardSet.open(tiny_shards.folder).index.shards)
    monkeypatch.setenv("DIT_CACHE_BYTES", str(largest + 20_000))
    shards = opened(address)
    for _ in range(3):
        require_equal(shards, ShardSet.open(tiny_shards.folder))
    assert sum(path.stat().st_size for path in cache.glob("*.tar")) <= largest + 20_000
    for row in shards.index.shards:  # one makes way for the other
        assert shards.tar(row.path).stat().st_size == row.bytes
    monkeypatch.setenv("DIT_CACHE_BYTES", "10kB")
    with pytest.raises(StorageError, match=r"the cache may hold\s+10.0 kB") as full:
        (other := opened(address)).tar(other.index.shards[0].path)
    assert "DIT_CACHE_BYTES" in full.value.hint


def test_a_full_disk_is_no_obstacle_until_a_whole_shard_is_needed(served, tiny_shards, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache_module, "_reserve", full)
    shards = opened(served[0])
    require_equal(shards, ShardSet.open(tiny_shards.folder))
    with pytest.raises(StorageError, match="No space left") as refused:
        shards.tar(shards.index.shards[0].path)
    assert "DIT_CACHE" in refused.value.hint


def test_two_jobs_fetch_a_shard_once(served):
    import multiprocessing

    address, faults, _ = served
    faults.delay = 0.1
    row = opened(address).index.shards[0]
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        paths = pool.starmap(fetch_one, [(address, row.path)] * 2)
    assert paths[0] == paths[1]
    assert faults.asked.count(f"/set/{row.path}") == 1


def fetch_one(address: str, shard: str) -> str:
    return str(opened(address).tar(shard))


def test_an_address_keeps_its_slashes_and_not_its_secrets():
    address = place_of("https://me:word@host/a//set/?sig=x%2Fy")
    assert isinstance(address, Address)
    assert str(address / "index.json") == "https://host/a/set/index.json"
    assert full_address(address / "b" / "c.tar") == "https://me:word@host/a/set/b/c.tar?sig=x%2Fy"
    said = without_secrets("403 url='https://me:word@host/a?X-Amz-Signature=ab&c=1' secret_key=abc")
    assert said == "403 url='https://host/a?…' secret_key=…"
    with pytest.raises(UsageError, match="a key or a query"):
        place_of("s3://KEY:SECRET@bucket/set")


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs fsspec and s3fs") as missing:
        opened("s3://bucket/set")
    assert "pip install 'dit[remote]'" in missing.value.hint


def test_bytes_of_the_cache_are_checked(monkeypatch):
    monkeypatch.setenv("DIT_CACHE_BYTES", "much")
    with pytest.raises(UsageError, match="no number of bytes"):
        Cache.of_environment()
