"""Embedding in parts: which process takes which images, and that the parts join to the bytes of one run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from dittool.config.load import load_config
from dittool.data.features import beginning
from dittool.data.features.embed import embed
from dittool.data.features.parts import Part, wait_for_others
from dittool.data.features.passes import batch_size, plan_batches
from dittool.data.features.verify import verify
from dittool.data.records import (
    REFUSED,
    STAGES,
    USED,
    Record,
)
from dittool.data.source import scan, seen
from dittool.errors import StorageError, UsageError
from tests.data.features.derived_folder import digests, held


def records_for_planning(count, buckets=("128x128",)):
    return [
        Record(f"r{i:03d}", "", "", USED, bucket=buckets[i % len(buckets)], image_sha256=str(i), caption=str(i))
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("stage", ["vae", "t5"])
def test_parts_take_every_record_exactly_once(stage, count):
    records = records_for_planning(700, ("128x128", "160x112", "512x512"))
    taken = [
        r.id
        for i in range(count)
        for batch in plan_batches(stage, records, records[5:], Part(i, count))
        for r in batch
        if r in records[5:]
    ]
    assert sorted(taken) == [record.id for record in records[5:]]


def test_batches_hold_one_bucket_and_do_not_depend_on_the_split_or_on_what_is_done():
    records = records_for_planning(700, ("128x128", "160x112"))
    whole = plan_batches("vae", records, records, Part())
    assert all(
        len({record.bucket for record in batch}) == 1 and len(batch) <= batch_size(batch[0].bucket) for batch in whole
    )
    split = [batch for i in range(3) for batch in plan_batches("vae", records, records, Part(i, 3))]
    assert sorted(map(str, split)) == sorted(map(str, whole))
    done = {record.id for batch in whole[:2] for record in batch}
    assert plan_batches("vae", records, [record for record in records if record.id not in done], Part()) == whole[2:]


def test_a_refused_record_keeps_its_place_so_that_later_batches_stay_the_same():
    records = records_for_planning(700)
    refused = [replace(records[0], status=REFUSED, reason="decode:truncated"), *records[1:]]
    before, after = plan_batches("vae", records, records, Part()), plan_batches("vae", refused, refused[1:], Part())
    assert before[1:] == after[1:] and [r.id for r in after[0]] == [r.id for r in before[0]]


def test_parts_one_after_the_other_join_to_the_bytes_of_one_run(images, tmp_path):
    for path in sorted(images.iterdir()):  # enough images for several batches
        for copy in range(5):
            shutil.copy(path, images / f"copy{copy}-{path.name}")
    config, stages = load_config("demo", ["data.area=256x256"]), ["vae"]
    together, apart = tmp_path / "together", tmp_path / "apart"
    embed(images, together, config, stages)
    made = [embed(images, apart, config, stages, part=Part(i, 2)).made["vae"] for i in (1, 0)]
    assert sum(made) == 48 and all(made)
    assert embed(images, apart, config, stages).made["vae"] == 0
    assert digests(apart) == digests(together)


@pytest.mark.slow
def test_parts_at_the_same_time_join_to_the_bytes_of_one_run(images, tmp_path):
    for path in sorted(images.iterdir()):  # enough images for several batches
        for copy in range(5):
            shutil.copy(path, images / f"copy{copy}-{path.name}")
    together, apart = tmp_path / "together", tmp_path / "apart"
    embed(images, together, load_config("demo", ["data.area=256x256"]))
    code = "import sys; from dittool.cli import run; sys.exit(run(sys.argv[1:]))"
    command = [
        sys.executable,
        "-c",
        code,
        "embed",
        images,
        "--out",
        apart,
        "--preset",
        "demo",
        "-s",
        "data.area=256x256",
        "--json",
        "-q",
        "--part",
    ]
    running = [subprocess.Popen([*map(str, command), f"{i}/2"], stdout=subprocess.PIPE) for i in range(2)]
    said = [json.loads(process.communicate()[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert all(sum(one["made"][stage] for one in said) == 48 for stage in STAGES) and all(
        0 < one["made"]["vae"] < 48 for one in said
    )
    assert embed(images, apart, load_config("demo", ["data.area=256x256"])).made == dict.fromkeys(STAGES, 0)
    assert digests(apart) == digests(together) and verify(apart).faults == []


def test_a_part_keeps_out_its_twin_another_split_and_a_plain_run_and_lets_the_other_parts_in(images, tmp_path):
    """Row 13."""
    derived, config = tmp_path / "derived", load_config("demo")
    derived.mkdir()
    with held(f"writer_lock(Path({str(derived)!r}), Part(0, 2))") as holder:
        for part in (Part(0, 2), Part(1, 3), Part()):
            with pytest.raises(StorageError, match=f"process {holder.pid}"):
                embed(images, derived, config, part=part)
        embed(images, derived, config, ["t5"], part=Part(1, 2))
    with (
        held(f"writer_lock(Path({str(derived)!r}), Part())") as holder,
        pytest.raises(StorageError, match=f"process {holder.pid}"),
    ):
        embed(images, derived, config, part=Part(0, 2))
    embed(images, derived, config)  # row 14: a dead owner holds nothing


def test_torchrun_ranks_are_parts_and_nonsense_is_refused():
    assert Part.from_environment({"RANK": "2", "WORLD_SIZE": "4"}) == Part(2, 4)
    assert Part.from_environment({}) == Part(0, 1) and Part.parse("0/4") == Part(0, 4)
    for text in ("4/4", "1", "-1/4", "a/b", "1/0"):
        with pytest.raises(UsageError, match="--part"):
            Part.parse(text)


def test_a_part_reads_its_stretch_of_the_listing_and_takes_over_what_others_read(images, tmp_path, monkeypatch):
    read, real, later = [], scan._judge, time.time_ns() + 10**10
    monkeypatch.setattr(scan, "_judge", lambda item, *others: read.append(item.name) or real(item, *others))
    monkeypatch.setattr(seen.time, "time_ns", lambda: later)
    names, config, derived = sorted(path.stem for path in images.glob("*.png")), load_config("demo"), tmp_path / "d"
    in_order = []
    monkeypatch.setattr(beginning._ShareOfParts, "exchange", lambda *_: in_order.append(sorted(read)))
    embed(images, derived, config, ["t5"], part=Part(1, 2))
    assert in_order == [names[4:]] and sorted(read) == names  # nobody else was there: it read the rest as well
    monkeypatch.undo()
    monkeypatch.setattr(scan, "_judge", lambda item, *others: read.append(item.name) or real(item, *others))
    monkeypatch.setattr(seen.time, "time_ns", lambda: later)
    read.clear()
    embed(images, tmp_path / "other", config, ["t5"], part=Part(0, 2))
    (tmp_path / "other" / "scanned.rows").unlink()
    read.clear()
    embed(images, tmp_path / "other", config, ["t5"], part=Part(1, 2))
    assert sorted(read) == names[4:]  # part 0 has published the others
    read.clear()
    embed(images, tmp_path / "other", config, ["t5"])
    assert read == [] and not list((tmp_path / "other").glob("scanned-*"))


def test_a_part_waits_for_another_that_is_at_work_and_not_for_ever(tmp_path):
    said = []
    with held(f"writer_lock(Path({str(tmp_path)!r}), Part(1, 2))"):
        wait_for_others(tmp_path, Part(0, 2), lambda _: False, 0.2, said.append)
    assert ["waiting for part 1/2" in said[0], "not waiting any longer" in said[1]] == [True, True]
    wait_for_others(tmp_path, Part(0, 2), lambda _: False, 1e9, said.append)  # it has ended
    assert len(said) == 2
