"""Runs on machines that give too little: of /dev/shm, of descriptors, of a reader's time. Each ends soon, with 5, says
both numbers, and goes on from the step that it had reached, to the bits of a run that was never hurt.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dittool.data.shards import read_ahead as reading
from dittool.data.shards.index import index_shard, read_index, write_index
from dittool.errors import StorageError, UsageError
from dittool.train.loop import train
from tests.run_states import assert_same_bits, final_state

IN_A_SMALL_SHM = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=$0 tmpfs /dev/shm && exec "$@"']
needs_unshare = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*IN_A_SMALL_SHM, "64k", "true"], capture_output=True, check=False).returncode != 0,
    reason="this system lets nobody mount a /dev/shm of their own",
)

# `dit` that is hurt as step 1 begins, before all is read ahead, and that does not look before its first step
PROGRAM = """
import multiprocessing, os, resource, sys
from dittool.cli import main
from dittool.train import loop

def fill():
    with open("/dev/shm/full", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

def starve():
    for worker in multiprocessing.active_children():
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (8, 8))

def step(state, batches, real=loop.train_step):
    if state.step == 1:
        HURT()
    return real(state, batches)

loop.train_step = step
loop.require_room = lambda *_: None
main()
"""


def run_dit(shards, out, *options, before=(), program=None):
    words = [word for override in (*shards.overrides, *options) for word in ("-s", override)]
    start = [sys.executable, "-m", "dittool"] if program is None else [sys.executable, "-c", program]
    line = ["train", "--no-audit", "--preset", shards.preset, "--data", shards.folder, "--out", out, "-q", *words]
    began = time.monotonic()
    done = subprocess.run(
        [*before, *start, *map(str, line)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done, time.monotonic() - began


def goes_on_to_the_bits_of(whole, shards, run) -> None:
    config = shards.config_with("train.workers=0")
    train(config, shards.folder, run, resume=True, named_changes=["train.workers"])
    assert_same_bits(final_state(whole), final_state(run))


@needs_unshare
def test_a_small_shm_is_found_before_the_first_step(tiny_shards, tmp_path):
    done, seconds = run_dit(tiny_shards, tmp_path / "run", "train.workers=1", before=[*IN_A_SMALL_SHM, "64k"])
    assert done.returncode == 5 and seconds < 60
    assert "1 worker processes need about" in done.stderr and "65.5 kB free of 65.5 kB" in done.stderr
    assert "--shm-size" in done.stderr and "train.workers=0" in done.stderr
    assert not (tmp_path / "run").exists()


@needs_unshare
@pytest.mark.slow
def test_a_shm_that_runs_full_ends_a_run_with_its_state_saved(family_run, family_shards, tmp_path):
    done, seconds = run_dit(
        family_shards,
        tmp_path / "run",
        "train.workers=1",
        before=[*IN_A_SMALL_SHM, "8m"],
        program=PROGRAM.replace("HURT", "fill"),
    )
    assert done.returncode == 5 and seconds < 60, done.stderr
    assert "/dev/shm: a batch of" in done.stderr and "of 8.4 MB free" in done.stderr
    assert "is saved: dit train --resume" in done.stderr
    goes_on_to_the_bits_of(family_run, family_shards, tmp_path / "run")


@pytest.mark.slow
def test_a_worker_without_descriptors_ends_a_run_with_its_state_saved(family_run, family_shards, tmp_path):
    """The limit of a process can be lowered from outside, as its parent does here."""
    if not hasattr(resource, "prlimit"):
        pytest.skip("needs prlimit")
    done, seconds = run_dit(
        family_shards, tmp_path / "run", "train.workers=1", program=PROGRAM.replace("HURT", "starve")
    )
    assert done.returncode == 5 and seconds < 60, done.stderr
    assert "too many open files: this process may have" in done.stderr and "ulimit -n" in done.stderr
    goes_on_to_the_bits_of(family_run, family_shards, tmp_path / "run")


def test_a_reader_that_stands_still_ends_a_run_with_its_state_saved(family_run, family_shards, tmp_path, monkeypatch):
    import multiprocessing
    import signal

    from dittool.train import loop

    stopped = []

    def step(state, ready, real=loop.train_step):
        if state.step == 4:
            stopped.extend(multiprocessing.active_children())
            for worker in stopped:
                os.kill(worker.pid, signal.SIGSTOP)
        return real(state, ready)

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(reading, "_PATIENCE", 1.0)
    with pytest.raises(StorageError, match="no batch came from the processes that read them for 1 s") as stuck:
        train(family_shards.config_with("train.workers=1"), family_shards.folder, tmp_path / "run")
    assert "is saved" in stuck.value.hint
    for worker in stopped:
        os.kill(worker.pid, signal.SIGKILL)
    monkeypatch.undo()
    goes_on_to_the_bits_of(family_run, family_shards, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_absurd_batch_size_ends_before_the_first_step(family_shards, tmp_path, workers):
    config = family_shards.config_with("train.batch_size=4000000000", f"train.workers={workers}")
    with pytest.raises((StorageError, UsageError), match=r"4,?000,?000,?000|6,000,000,000 real samples") as refused:
        train(config, family_shards.folder, tmp_path / "run")
    assert "train.batch_size" in refused.value.message + refused.value.hint and not (tmp_path / "run").exists()


def split_into(count: int, shards: Path, out: Path) -> None:
    """A set of `count` training shards of one sample each, copies of those in `shards` under names of their own."""
    import io
    import tarfile

    index = read_index(shards)
    row = next(row for row in index.shards if row.split == "train")
    with tarfile.open(shards / row.path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]
    first = members[0][0].split(".")[0]
    sample = [(name.split(".", 1)[1], content) for name, content in members if name.split(".")[0] == first]
    rows = []
    for number in range(count):
        path = out / f"bucket_{row.bucket}" / f"shard-{number:06d}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for suffix, content in sample:
                if suffix == "json":
                    content = json.dumps({**json.loads(content), "id": f"s{number}"}).encode()
                member = tarfile.TarInfo(f"s{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        rows.append(index_shard(out, path, row.bucket, "train"))
    write_index(out, replace(index, shards=tuple(rows)))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "limit"), [(120, 80), (5000, 256)])
def test_more_shards_than_a_process_may_open_train_and_resume(tiny_shards, tmp_path, count, limit):
    split_into(count, tiny_shards.folder, tmp_path / "shards")
    shards = replace(tiny_shards, folder=tmp_path / "shards")
    limited = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh"]
    keys = ("train.batch_size=40", "train.steps=6", "checkpoint.every=3", f"train.workers={2 if limit > 100 else 0}")
    for out in ("run", "again"):
        done, _ = run_dit(shards, tmp_path / out, *keys, before=limited)
        assert done.returncode == 0, done.stderr
        for path in (tmp_path / "again" / "checkpoints").glob("checkpoint_final.*"):
            path.unlink()
    line = [sys.executable, "-m", "dittool", "train", "--resume", "--out", str(tmp_path / "again"), "-q"]
    subprocess.run([*limited, *line], check=True, env=dict(os.environ, OMP_NUM_THREADS="1"), timeout=120)
    assert_same_bits(final_state(tmp_path / "run"), final_state(tmp_path / "again"))
