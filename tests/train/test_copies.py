"""`dit train --copies s3://…`: what is in the store is what is on the disk, sidecars last; a machine that has nothing
goes on from there to the same bits; a store that fails costs a warning.
"""

from __future__ import annotations

import shutil
import threading

import pytest
import s3fs

from dittool.address import place_of
from dittool.ckpt.files import discard, list_checkpoints
from dittool.ckpt.run_log import read_log
from dittool.console import SILENT
from dittool.data.remote import requests
from dittool.errors import StorageError, UsageError
from dittool.train import copies as copies_module
from dittool.train.copies import Copies, bring_back, copies_place
from dittool.train.loop import train
from tests.quick import every_third
from tests.run_states import assert_same_bits, final_state
from tests.sharded import in_parts


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(requests, "_FIRST_WAIT", 0.01)


@pytest.fixture
def store():
    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


def in_store(store, place) -> dict[str, bytes]:
    return {path.rpartition("/")[2]: store.cat_file(path) for path in store.find(str(place))}


def on_disk(run) -> dict[str, bytes]:
    checkpoints = [file.path for file in list_checkpoints(run / "checkpoints")]
    files = (*checkpoints, *(path.with_suffix(".json") for path in checkpoints), run / "log.jsonl")
    return {path.name: path.read_bytes() for path in files}


def test_the_store_ends_with_what_the_disk_has(bucket, store, tiny_shards, tmp_path, listener):
    place, config = place_of(f"{bucket}/run"), tiny_shards.config_with("checkpoint.every=1", "checkpoint.keep=2")
    train(config, tiny_shards.folder, tmp_path / "run", copies=place, talk=listener)
    assert in_store(store, place) == on_disk(tmp_path / "run")
    assert len(in_store(store, place)) == 2 * 3 + 1 and not listener.warnings


def test_a_machine_that_has_nothing_goes_on_to_the_same_bits(bucket, tiny_shards, tiny_run, tmp_path, dit):
    place = f"{bucket}/run"
    train(tiny_shards.config, tiny_shards.folder, tmp_path / "first", until=5, copies=place_of(place))
    words = [word for override in tiny_shards.overrides for word in ("-s", override)]
    line = ("train", "--no-audit", "--continue", "--preset", "demo", "--data", tiny_shards.folder, *words)
    again = dit(*line, "--out", tmp_path / "second", "--copies", place)
    assert again.code == 0 and "checkpoint_step0000005.pt" in again.err
    assert_same_bits(final_state(tmp_path / "second"), final_state(tiny_run))
    assert [row["step"] for row in read_log(tmp_path / "second")] == [row["step"] for row in read_log(tiny_run)]
    third = dit(*line, "--out", tmp_path / "third", "--copies", place)
    assert third.code == 0 and "finished at step 8 of 8" in third.out


def test_a_sidecar_goes_first_and_comes_last(bucket, store, tiny_run, tmp_path, monkeypatch):
    """At each moment a checkpoint whose sidecar is there is complete; also where one takes another's place."""
    place, calls = place_of(f"{bucket}/run"), []
    for name in ("remove_object", "upload", "write_object"):
        genuine = getattr(copies_module, name)

        def noted(*arguments, name=name, genuine=genuine):
            calls.append((name, arguments[1 if name == "upload" else 0].name))
            return genuine(*arguments)

        monkeypatch.setattr(copies_module, name, noted)
    copies = Copies(tiny_run, place, SILENT)
    copies.close()
    final = [call for call in calls if "final" in call[1]]
    assert final == [
        ("remove_object", "checkpoint_final.json"),
        ("upload", "checkpoint_final.pt"),
        ("write_object", "checkpoint_final.json"),
    ]


@pytest.mark.parametrize("harm", every_third(["truncated", "no sidecar", "no checkpoint", "strange sidecar"]))
def test_an_older_copy_serves_where_the_newest_is_harmed(harm, bucket, store, tiny_run, tmp_path, listener):
    place = place_of(f"{bucket}/run")
    Copies(tiny_run, place, listener).close()
    newest = f"{place}/checkpoints/checkpoint_final"
    if harm == "truncated":
        store.pipe_file(f"{newest}.pt", store.cat_file(f"{newest}.pt")[:-1000] + bytes(1000))
    elif harm == "strange sidecar":
        store.pipe_file(f"{newest}.json", b'{"file": "../../x.pt", "bytes": 1, "sha256": "", "step": 99}')
    else:
        store.rm_file(f"{newest}.json" if harm == "no sidecar" else f"{newest}.pt")
    bring_back(tmp_path / "run", place, listener)
    (found,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert found.step == 6 and found.verify() is None
    assert len(listener.warnings) == (harm == "truncated")


@pytest.fixture
def run_in_parts(tiny_run, tmp_path):
    """A run whose newest two checkpoints are in parts."""
    run = shutil.copytree(tiny_run, tmp_path / "parts")
    for file in list_checkpoints(run / "checkpoints")[-2:]:
        in_parts(file.path)
    return run


def test_parts_are_copied_brought_back_and_taken_away(bucket, store, run_in_parts, tmp_path, listener):
    place = place_of(f"{bucket}/run")
    copies = Copies(run_in_parts, place, listener)
    copies.close()
    bring_back(tmp_path / "back", place, listener)
    (found,) = list_checkpoints(tmp_path / "back" / "checkpoints")
    assert found.step == 8 and found.verify() is None
    assert_same_bits(final_state(tmp_path / "back"), final_state(run_in_parts))
    last = list_checkpoints(run_in_parts / "checkpoints")[-1]
    last.path.with_suffix(".json").unlink()
    discard(last.path)
    copies._copy()
    assert not [path for path in store.find(str(place)) if "final" in path] and not listener.warnings


@pytest.mark.parametrize("harm", every_third(["part", "index", "part gone"]))
def test_an_older_copy_serves_where_parts_are_harmed(harm, bucket, store, run_in_parts, tmp_path, listener):
    place = place_of(f"{bucket}/run")
    Copies(run_in_parts, place, listener).close()
    name = "state.index.json" if harm == "index" else "part-00001-of-00002.safetensors"
    harmed = f"{place}/checkpoints/checkpoint_final/{name}"
    if harm == "part gone":
        store.rm_file(harmed)
    else:
        store.pipe_file(harmed, store.cat_file(harmed)[:-10] + b"          ")
    bring_back(tmp_path / "run", place, listener)
    (found,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert found.step == 6 and found.verify() is None and len(listener.warnings) == 1


def test_nothing_is_fetched_or_made_where_nothing_is_newer(bucket, tiny_run, tmp_path, listener):
    place = place_of(f"{bucket}/run")
    bring_back(tmp_path / "run", place, listener)
    assert not (tmp_path / "run").exists()
    Copies(tiny_run, place, listener).close()
    here = shutil.copytree(tiny_run, tmp_path / "here")
    before = on_disk(here)
    bring_back(here, place, listener)
    assert on_disk(here) == before and not any("fetching" in note for note in listener.notes)


def test_a_store_that_refuses_costs_a_warning_and_no_run(bucket, tiny_shards, tmp_path, listener, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ANOTHERSECRET")
    place = place_of("s3://no-such-bucket-here/run")
    done = train(tiny_shards.config, tiny_shards.folder, tmp_path / "run", copies=place, talk=listener)
    assert done.step == 8 and done.checkpoint.is_file()
    (warning, *_) = listener.warnings
    assert "a copy of a checkpoint failed" in warning and "ANOTHERSECRET" not in "".join(listener.warnings)


def test_training_does_not_wait_for_a_slow_store(bucket, store, tiny_shards, tmp_path, listener, monkeypatch):
    """The first copy is held back until the run has saved its last checkpoint."""
    reached, genuine, out = threading.Event(), copies_module.upload, tmp_path / "run"

    def slow(path, address):
        while not (out / "checkpoints" / "checkpoint_final.json").exists():
            assert not reached.wait(0.02)
        genuine(path, address)

    monkeypatch.setattr(copies_module, "upload", slow)
    place = place_of(f"{bucket}/run")
    train(tiny_shards.config_with("checkpoint.every=1"), tiny_shards.folder, out, copies=place, talk=listener)
    assert in_store(store, place) == on_disk(out) and not listener.warnings


def test_a_copy_that_failed_is_made_with_the_next_one(bucket, store, tiny_shards, tmp_path, listener, monkeypatch):
    genuine, fails = copies_module.upload, [True]

    def broken(path, address):
        if fails:
            fails.pop()
            raise StorageError("the store is away", "wait")
        genuine(path, address)

    monkeypatch.setattr(copies_module, "upload", broken)
    place = place_of(f"{bucket}/run")
    train(tiny_shards.config, tiny_shards.folder, tmp_path / "run", copies=place, talk=listener)
    assert in_store(store, place) == on_disk(tmp_path / "run")


@pytest.mark.parametrize("place", ["runs/copies", "https://host/run", "hf://datasets/me/run"])
def test_only_a_store_that_can_be_written_to_is_taken(place):
    with pytest.raises(UsageError, match=f"--copies {place}"):
        copies_place(place_of(place))
