"""Runs on sets at an address are the runs on a disk, bit for bit, and remember the address without its secrets."""

from __future__ import annotations

import json

import pytest

from dittool.data.remote import requests
from tests.run_states import assert_same_bits, final_state, stopped_at


def words(tiny_shards) -> list[str]:
    return ["--preset", tiny_shards.preset, *(word for text in tiny_shards.overrides for word in ("-s", text))]


@pytest.fixture
def in_bucket(bucket, tiny_shards) -> str:
    """Address of the tiny set in a bucket."""
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True).put(str(tiny_shards.folder), f"{bucket}/set", recursive=True)
    return f"{bucket}/set"


def test_a_run_on_a_bucket_is_the_run_on_a_disk(in_bucket, tiny_shards, tiny_run, dit, tmp_path):
    out = tmp_path / "run"
    assert dit("train", *words(tiny_shards), "-s", "train.workers=2", "--data", in_bucket, "--out", out).code == 0
    assert_same_bits(final_state(tiny_run), final_state(out))
    assert json.loads((out / "run.json").read_text())["data"] == in_bucket
    assert not [path for path in out.rglob("*") if path.is_file() and b"SECRETOFTEST" in path.read_bytes()]


def test_a_run_that_was_stopped_on_a_disk_goes_on_from_a_bucket(in_bucket, tiny_run, dit, tmp_path):
    run = stopped_at(tiny_run, 3, tmp_path / "run")
    assert dit("train", "--resume", "--out", run, "--data", in_bucket).code == 0
    assert_same_bits(final_state(tiny_run), final_state(run))


def test_a_signed_address_leaves_no_secret_and_is_given_again(served, tiny_shards, tiny_run, dit, tmp_path):
    address, faults, _ = served
    faults.refused, out = "sig=HUSH", tmp_path / "run"
    told = dit("train", *words(tiny_shards), "--data", f"{address}?sig=HUSH", "--out", out, "--verbose")
    assert told.code == 0
    assert_same_bits(final_state(tiny_run), final_state(out))
    assert "HUSH" not in told.out + told.err
    assert not [path for path in out.rglob("*") if path.is_file() and b"HUSH" in path.read_bytes()]
    faults.refused = "sig=OTHER"
    refused = dit("train", "--resume", "--out", out, "--data", f"{address}?sig=WRONG")
    assert refused.code == 5 and "access refused" in refused.err and "WRONG" not in refused.err


def test_commands_take_an_address(served, tiny_run, dit, tmp_path):
    address, _, folder = served
    assert dit("audit", address, "--select", "D7").code == 0
    judged = dit("validate", tiny_run, "--data", address, "--tests", "mode_losses", "--out", tmp_path / "judged")
    assert judged.code in (0, 1)
    next(folder.rglob("*.tar")).unlink()
    assert dit("audit", address, "--select", "D7").code == 0, "its shards are in the cache"
    missing = dit("audit", f"{address}/nothing")
    assert missing.code == 1 or "no such object" in missing.err


def test_a_store_that_is_gone_ends_a_command_with_two_lines(dit, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "TRIES", 2)
    told = dit("train", "--preset", "demo", "--data", "http://127.0.0.1:9/set", "--out", tmp_path / "run", "--no-audit")
    assert told.code == 5
    assert len(told.err.strip().splitlines()) >= 2 and "not to be had in 2 tries" in " ".join(told.err.split())
