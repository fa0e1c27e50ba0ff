"""Columns: what a list of samples was, in numbers that processes share."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle

import numpy as np
import pytest

from dittool.data.shards import index as index_room
from dittool.data.shards import order
from dittool.data.shards.columns import Columns, SampleRef, Samples
from dittool.data.shards.index import members_path
from dittool.data.shards.read import ShardSet
from dittool.errors import BadDataError

REFS = [
    SampleRef("a", "64x64", "train", "x.tar", {"json": (512, 3), "vae.npy": (1536, 100)}),
    SampleRef("ünï code\nline", "64x64", "train", "x.tar", {"vae.npy": (2**40, 200), "json": (4096, 0)}),
    SampleRef("c", "96x32", "holdout", "y.tar", {}),
    SampleRef("d", "64x64", "train", "z.tar", {"t5h.npy": (0, 7)}),
    SampleRef("e", "64x64", "train", "z.tar", {"t5h.npy": (9, 7)}),
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Small sets are shared too, in this cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_room, "_SHARED_FROM", 1)
    return tmp_path / "cache" / "dittool"


def test_columns_give_back_the_samples_as_a_list_does():
    samples = Samples.of(REFS)
    assert list(samples) == REFS and [samples[i] for i in range(5)] == REFS and samples[-1] == REFS[-1]
    assert samples[1:4] == REFS[1:4] and len(samples) == 5
    assert list(samples.of_split("train")) == [REFS[0], REFS[1], REFS[3], REFS[4]]
    assert samples.bucket_counts() == {"64x64": 4, "96x32": 1}
    with pytest.raises(IndexError):
        samples[5]


def test_the_largest_member_of_a_bucket_is_the_first_of_its_size():
    assert Samples.of(REFS).largest("t5h.npy") == {"64x64": REFS[3], "96x32": REFS[2]}


def test_a_file_of_columns_is_the_columns(tmp_path):
    path = tmp_path / "a.columns"
    with open(path, "wb") as file:
        Samples.of(REFS).columns.write(file)
    mapped = Columns.mapped(path)
    assert list(Samples(mapped, mapped.shards)) == REFS
    assert len(pickle.dumps(mapped)) < 500  # a process that is started anew maps the file itself


def test_a_set_is_listed_once_and_mapped_from_then_on(cache, copy, monkeypatch):
    first = list(ShardSet.open(copy).samples)
    monkeypatch.setattr(index_room, "_listed", None)  # whoever would list it again fails
    assert list(ShardSet.open(copy).samples) == first
    assert len(list(cache.glob("*.columns"))) == 1


def test_a_changed_list_of_members_is_read_again(cache, copy):
    ShardSet.open(copy)
    path = members_path(next(copy.rglob("*.tar")))
    members = json.loads(path.read_text())
    members.popitem()
    path.write_text(json.dumps(members))
    with pytest.raises(BadDataError, match="samples listed"):
        ShardSet.open(copy)


def test_a_copied_set_gives_its_own_samples(cache, copy, tmp_path):
    first = list(ShardSet.open(copy).samples)
    copy.rename(tmp_path / "moved")
    assert list(ShardSet.open(tmp_path / "moved").samples) == first


def test_a_set_opens_where_no_cache_can_be_kept(copy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    expected = list(ShardSet.open(copy).samples)
    monkeypatch.setattr(index_room, "_SHARED_FROM", 1)
    assert list(ShardSet.open(copy).samples) == expected


def _ids(folder, start) -> list[str]:
    index_room._SHARED_FROM = 1
    start.wait()
    return [ref.id for ref in ShardSet.open(folder).samples]


def _put_ids(folder, start, found) -> None:
    found.put(_ids(folder, start))


def test_processes_that_open_a_set_at_once_make_one_file(cache, copy):
    expected, context = [ref.id for ref in ShardSet.open(copy).samples], multiprocessing.get_context("fork")
    for path in cache.glob("*.columns"):
        os.remove(path)
    start, found = context.Event(), context.Queue()
    processes = [context.Process(target=_put_ids, args=(copy, start, found)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    assert [found.get(timeout=60) for _ in processes] == [expected] * 4
    for process in processes:
        process.join()
    assert len(list(cache.glob("*.columns"))) == 1


def test_a_shared_pass_is_the_pass(cache, monkeypatch):
    monkeypatch.setattr(order, "_SHARED_FROM", 1)
    for _ in range(2):  # written, then mapped
        assert np.array_equal(order._shared_permutation(1000, 7), order._permutation(1000, 7))
    assert len(list(cache.glob("*.order"))) == 1


def test_old_files_make_way_for_new_ones(cache, monkeypatch):
    monkeypatch.setattr(order, "_SHARED_FROM", 1)
    monkeypatch.setattr(order, "_MOST_ORDERS", 9000)
    for seed in range(4):
        order._shared_permutation(1000, seed)
    assert len(list(cache.glob("*.order"))) == 2
