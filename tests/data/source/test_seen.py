"""A second scan reads only what changed."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace

import pytest

from dittool.data.features.store import FeatureStore
from dittool.data.source import scan as scan_module
from dittool.data.source.scan import scan
from dittool.data.source.seen import Seen
from dittool.geometry import Bucket

BUCKETS = [Bucket(64, 64), Bucket(96, 64)]


@pytest.fixture
def folder(tiny_shards, tmp_path):
    """Ten drawn images that nobody has touched for a while."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(tiny_shards.images.iterdir())[:20]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def rescan(folder, tmp_path, monkeypatch):
    """Scans again, and says how many inputs were read."""
    store, now = FeatureStore(tmp_path), [time.time_ns() + 10**10]
    monkeypatch.setattr("dittool.data.source.seen.time.time_ns", lambda: now[0])
    read, real = [], scan_module._judge

    def judge(item, *others):
        read.append(item.name)
        return real(item, *others)

    monkeypatch.setattr(scan_module, "_judge", judge)

    def again(buckets=BUCKETS, flip="none"):
        read.clear()
        seen = Seen(tmp_path / "scanned.rows", store.earlier_records(), buckets)
        records = scan(folder, buckets, flip=flip, seen=seen)
        records = store.merge_records(records)
        seen.write()
        names = sorted(read)
        assert records == scan(folder, buckets, flip=flip)
        return names

    again.settled_at = now
    return again


def test_nothing_is_read_again_where_nothing_changed(rescan):
    assert len(rescan()) == 10 and rescan() == []


def test_with_flips_and_duplicates_the_records_are_the_same(rescan, folder):
    shutil.copy(folder / "scene-0001.png", folder / "a-copy.png")
    shutil.copy(folder / "scene-0001.txt", folder / "a-copy.txt")
    assert len(rescan(flip="prepared")) == 11 and rescan(flip="prepared") == []


@pytest.mark.parametrize("what", ["image", "caption", "same size and mtime"])
def test_what_changed_is_read_again(rescan, folder, what):
    rescan()
    path = folder / ("scene-0003.txt" if what == "caption" else "scene-0003.png")
    status, raw = path.stat(), path.read_bytes()
    changed = raw[:-30] + bytes(1) + raw[-29:] if what == "same size and mtime" else raw + b" "
    path.write_bytes(changed)
    if what == "same size and mtime":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_size == status.st_size
    assert rescan() == ["scene-0003"]


def test_other_buckets_or_an_edited_record_are_looked_at_anew(rescan, tmp_path):
    rescan()
    assert len(rescan(buckets=BUCKETS[:1])) == 10
    store = FeatureStore(tmp_path)
    records = store.read_records()
    store.write_records([replace(records[0], caption="somebody's hand"), *records[1:]])
    assert rescan(buckets=BUCKETS[:1]) == [records[0].name]


def test_a_file_that_has_just_changed_is_not_trusted(rescan, folder):
    rescan.settled_at[0] = (folder / "scene-0004.png").stat().st_ctime_ns + 10**9
    assert len(rescan()) == 10 and len(rescan()) == 10
