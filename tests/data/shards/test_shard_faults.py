"""Shards being written, under attack: killed at any file event, disk full at any write. Nothing is lost, and nothing
passes for whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import signal

import pytest

from dittool.data.shards.read import ShardSet
from dittool.data.shards.verify import verify
from dittool.data.shards.write import shard
from dittool.errors import BadDataError
from dittool.untrusted.tar import group_samples, tar_members
from tests.killed import KILLED, die_at

SMALL = {"limit": 7, "shard_size": 3, "holdout": 0.3}


def digests(folder) -> dict[str, str]:
    """Every file of a set but the lock."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def whole(tiny_shards, tmp_path_factory):
    """What an uninterrupted call leaves."""
    out = tmp_path_factory.mktemp("whole") / "shards"
    shard(tiny_shards.store.folder, out, **SMALL)
    return digests(out)


def shard_in_a_process_that_dies(derived, out, event: int) -> bool:
    """Runs `shard` in a forked process that is killed just before its n-th file event under `out`. False: it got to
    the end before.
    """
    child = os.fork()
    if child == 0:
        try:
            die_at(event, str(out))
            shard(derived, out, **SMALL)
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, KILLED), "the call failed otherwise than by the kill"
    return code == KILLED


def assert_says_what_it_is(out) -> None:
    """A set is whole and verifies, or its opening is refused; in no case is it taken for whole when it is not."""
    if not (out / "index.json").exists():
        return
    try:
        ShardSet.open(out)
    except BadDataError as error:
        assert "unfinished" in error.message
    else:
        assert verify(out) == []


def kill_and_go_on(tiny_shards, out, event: int, whole: dict[str, str], before=None) -> bool:
    if before is not None:
        shutil.copytree(before, out)
    killed = shard_in_a_process_that_dies(tiny_shards.store.folder, out, event)
    if killed:
        assert_says_what_it_is(out)
        shard(tiny_shards.store.folder, out, **SMALL)
    assert digests(out) == whole
    assert verify(out) == []
    return killed


@pytest.mark.row(3, 4)
@pytest.mark.parametrize("event", [1, 4, 9, 15, 22, 31, 40, 48])
def test_killed_anywhere_the_same_command_gives_the_same_bytes(tiny_shards, tmp_path, whole, event):
    assert kill_and_go_on(tiny_shards, tmp_path / "shards", event, whole)


@pytest.mark.row(3, 4)
@pytest.mark.slow
@pytest.mark.parametrize("replacing", [False, True], ids=["into an empty folder", "over an earlier set"])
def test_killed_at_every_file_event(tiny_shards, tmp_path, whole, replacing):
    before = tiny_shards.folder if replacing else None
    event = 1
    while kill_and_go_on(tiny_shards, tmp_path / f"shards{event}", event, whole, before):
        shutil.rmtree(tmp_path / f"shards{event}")
        event += 1
    assert event > 50  # the hook did count


def test_an_interrupted_set_is_finished_and_not_begun_again(tiny_shards, tmp_path, whole):
    out = tmp_path / "shards"
    shard_in_a_process_that_dies(tiny_shards.store.folder, out, 40)
    finished = {path: path.stat().st_ino for path in out.rglob("*.tar")}
    done = shard(tiny_shards.store.folder, out, **SMALL)
    same = [path for path, inode in finished.items() if path.exists() and path.stat().st_ino == inode]
    assert done.kept == len(same) >= 2
    assert digests(out) == whole


@pytest.mark.row(4)
def test_a_shard_that_was_damaged_in_between_is_made_again(tiny_shards, tmp_path, whole):
    """Row 4: existence is no proof."""
    out = tmp_path / "shards"
    shard_in_a_process_that_dies(tiny_shards.store.folder, out, 40)
    path = min(out.rglob("*.tar"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    min(out.rglob("*.members.json")).write_text("{}")
    shard(tiny_shards.store.folder, out, **SMALL)
    assert digests(out) == whole


def test_a_shard_whose_features_changed_in_between_is_made_again(older_derived, tmp_path):
    derived, out = older_derived, tmp_path / "shards"
    shard_in_a_process_that_dies(derived, out, 40)
    for path in (derived / "vae_latents").glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-2] + b"\x00\x3c")
    shard(derived, out, **SMALL)
    shard(derived, tmp_path / "anew", **SMALL)
    assert digests(out) == digests(tmp_path / "anew")


def test_a_refused_call_leaves_the_finished_set_as_it_was(older_derived, tmp_path):
    derived, out = older_derived, tmp_path / "shards"
    shard(derived, out, **SMALL)
    before = digests(out)
    last = group_samples(tar := max(out.rglob("*.tar")), tar_members(tar)).popitem()[0]
    path = derived / "vae_latents" / f"{last}.npy"
    path.write_bytes(path.read_bytes()[:-2] + b"\x00\x7e")  # not a number
    with pytest.raises(BadDataError, match="not finite"):
        shard(derived, out, **SMALL)
    assert {name: digest for name, digest in digests(out).items() if name != "shards.jsonl"} == before
    assert verify(out) == []


def arguments_for(tiny_shards, out) -> list[object]:
    return ["shard", tiny_shards.store.folder, "--out", out, "--limit", 7, "--shard-size", 3, "--holdout", 0.3]


class FailingFile:
    """A file whose n-th write, counted over all files, finds the disk full."""

    left = 0

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        FailingFile.left -= 1
        if FailingFile.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)


@pytest.mark.row(9)
@pytest.mark.parametrize("replacing", [False, True], ids=["into an empty folder", "over an earlier set"])
@pytest.mark.parametrize("nth", [1, 2, 3, 20, 34, 60, 90])
def test_disk_full_at_the_nth_write(tiny_shards, tmp_path, whole, dit, monkeypatch, nth, replacing):
    out, real = tmp_path / "shards", os.fdopen
    if replacing:
        shutil.copytree(tiny_shards.folder, out)
    FailingFile.left = nth
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", lambda *arguments, **options: FailingFile(real(*arguments, **options)))
        outcome = dit(*arguments_for(tiny_shards, out))
    assert outcome.code == 5 and "No space left" in outcome.err and "Traceback" not in outcome.err
    assert not list(out.rglob(".tmp-*"))
    assert_says_what_it_is(out)
    assert dit(*arguments_for(tiny_shards, out)).code == 0
    assert digests(out) == whole


@pytest.mark.row(9)
@pytest.mark.parametrize("nth", [1, 2, 3, 5, 8, 13])
def test_disk_full_at_the_nth_sync(tiny_shards, tmp_path, whole, dit, full_at_sync, nth):
    """The journal's line is synced too."""
    out = tmp_path / "shards"
    with full_at_sync(nth):
        assert dit(*arguments_for(tiny_shards, out)).code == 5
    assert_says_what_it_is(out)
    assert dit(*arguments_for(tiny_shards, out)).code == 0
    assert digests(out) == whole


@pytest.mark.row(9)
@pytest.mark.parametrize("largest", [100, 1_500, 30_000])
def test_a_limit_on_the_size_of_files(tiny_shards, tmp_path, whole, dit, largest):
    """The kernel's own refusal (EFBIG), half way through a write; a torn line of the journal is among what it
    leaves.
    """
    out, limits = tmp_path / "shards", resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
        outcome = dit(*arguments_for(tiny_shards, out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert outcome.code == 5 and "File too large" in outcome.err
    assert_says_what_it_is(out)
    assert dit(*arguments_for(tiny_shards, out)).code == 0
    assert digests(out) == whole
