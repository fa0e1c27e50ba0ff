"""Shards under attack: killed at any file event, disk full at any write, cut at any block. Nothing is lost, and
nothing passes for whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import resource
import shutil
import signal

import pytest

from dittool.data.provenance import Provenance
from dittool.data.shards.read import ShardSet
from dittool.data.shards.verify import verify
from dittool.data.shards.write import shard
from dittool.errors import BadDataError, DitError
from dittool.storage import read_json, write_json
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
def test_disk_full_at_the_nth_sync(tiny_shards, tmp_path, whole, dit, monkeypatch, nth):
    """Where space is allotted late, fsync is what finds the disk full; the journal's line is synced too."""
    out, real, left = tmp_path / "shards", os.fsync, [nth]

    def fsync(descriptor):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
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


@pytest.fixture(scope="module")
def small_set(tiny_shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "shards"
    shard(tiny_shards.store.folder, out, limit=2, holdout=0)
    return out


@pytest.mark.row(49)
def test_a_cut_at_every_block_is_detected_by_the_tar_itself(small_set, tmp_path):
    whole_tar = min(small_set.rglob("*.tar")).read_bytes()
    cut = tmp_path / "cut.tar"
    for end in range(0, len(whole_tar), 512):
        cut.write_bytes(whole_tar[:end])
        with pytest.raises(BadDataError, match="damaged tar"):
            tar_members(cut)
    cut.write_bytes(whole_tar)
    assert tar_members(cut)


@pytest.mark.row(49)
def test_a_cut_at_every_block_is_detected_when_the_set_is_opened(small_set, tmp_path):
    folder = shutil.copytree(small_set, tmp_path / "shards")
    tar = min(folder.rglob("*.tar"))
    raw = tar.read_bytes()
    for end in range(0, len(raw), 512):
        tar.write_bytes(raw[:end])
        with pytest.raises(BadDataError, match="the index says"):
            ShardSet.open(folder)


@pytest.mark.row(50)
def test_garbage_and_bent_headers_never_raise_anything_but_our_errors(small_set, tmp_path):
    """A bent tar is refused with a reason, or, where the change says nothing, read."""
    tar, path, chance = min(small_set.rglob("*.tar")), tmp_path / "bent.tar", random.Random(0)
    raw, headers = tar.read_bytes(), [member.offset - 512 for member in tar_members(tar)]
    refused = 0
    for _ in range(300):
        bent, place = bytearray(raw), chance.choice(headers) + chance.randrange(512)
        bent[place] = (bent[place] + chance.randrange(1, 256)) % 256
        path.write_bytes(bent)
        try:
            group_samples(path, tar_members(path))
        except DitError as error:
            assert str(path) in error.message
            refused += 1
    assert refused > 290  # the checksum sees every byte but the blanks around its own digits
    for content in (b"", b"x" * 100, bytes(512), bytes(range(256)) * 8, chance.randbytes(5120)):
        path.write_bytes(content)
        with pytest.raises(BadDataError, match="damaged tar"):
            tar_members(path)


@pytest.mark.row(50)
@pytest.mark.parametrize("command", [["train", "--preset", "demo", "--data"], ["shard", "--verify", "--out"]])
def test_a_set_with_an_empty_tar_exits_3(tmp_path, dit, command):
    (tmp_path / "shards" / "bucket_128x128").mkdir(parents=True)
    (tmp_path / "shards" / "bucket_128x128" / "shard-000000.tar").write_bytes(bytes(1024))
    outcome = dit(*command, tmp_path / "shards")
    assert outcome.code == 3 and "without any sample" in outcome.err


@pytest.mark.row(54)
@pytest.mark.parametrize(
    "address", ["pipe:touch {}", "http://example.org/shards", "s3://bucket/shards", "file:///tmp/shards"]
)
def test_addresses_are_refused_and_pipes_not_run(tmp_path, small_set, dit, address):
    from dittool.storage import read_json, write_json

    flag = tmp_path / "flag"
    outcome = dit("shard", "--verify", "--out", address.format(flag))
    assert outcome.code == 4 and "not from an address" in outcome.err
    folder = shutil.copytree(small_set, tmp_path / "shards")
    index = read_json(folder / "index.json")
    index["shards"][0]["path"] = address.format(flag)
    write_json(folder / "index.json", index)
    assert dit("shard", "--verify", "--out", folder).code == 4
    assert not flag.exists()


@pytest.mark.row(52)
@pytest.mark.parametrize("path", ["../shards/bucket_128x128/shard-000000.tar", "/etc/passwd", "bucket\\..\\x.tar"])
def test_an_index_whose_paths_leave_the_folder_is_refused(tmp_path, small_set, dit, path):
    folder = shutil.copytree(small_set, tmp_path / "shards")
    index = read_json(folder / "index.json")
    index["shards"][0]["path"] = path
    write_json(folder / "index.json", index)
    outcome = dit("shard", "--verify", "--out", folder)
    assert outcome.code == 4 and "leaves the folder" in outcome.err


@pytest.mark.parametrize(
    "row",
    [
        {"count": -1},
        {"bytes": "1"},
        {"bytes": True},
        {"bucket": "wide"},
        {"bucket": None},
        {"split": "test"},
        {"sha256": None},
        {"path": ""},
    ],
)
def test_an_index_with_a_row_that_cannot_be_is_refused_by_name(tmp_path, small_set, dit, row):
    folder = shutil.copytree(small_set, tmp_path / "shards")
    index = read_json(folder / "index.json")
    index["shards"][0] |= row
    write_json(folder / "index.json", index)
    outcome = dit("shard", "--verify", "--out", folder)
    assert outcome.code == 3 and f"{next(iter(row))} = {next(iter(row.values()))!r}" in outcome.err


@pytest.mark.parametrize("places", [[0, 10**15], [-512, 10], ["0", 5], [0], None, [1.5, 2]])
def test_members_outside_their_tar_are_refused(tmp_path, small_set, dit, places):
    folder = shutil.copytree(small_set, tmp_path / "shards")
    path = min(folder.rglob("*.members.json"))
    members = read_json(path)
    next(iter(members.values()))["vae.npy"] = places
    write_json(path, members)
    outcome = dit("shard", "--verify", "--out", folder)
    assert outcome.code == 3 and "do not lie in" in outcome.err


def test_a_list_of_members_that_was_edited_is_found(tiny_shards, tmp_path):
    """Two samples that exchange their latents fit every shape and every size."""
    folder = shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    path = max(folder.rglob("*.members.json"), key=lambda one: len(read_json(one)))
    members = read_json(path)
    first, *_, last = members.values()
    first["vae.npy"], last["vae.npy"] = last["vae.npy"], first["vae.npy"]
    write_json(path, members)
    faults = verify(folder)
    assert [fault.where for fault in faults] == [path.relative_to(folder).as_posix()] and "sha256" in faults[0].what


@pytest.mark.row(51)
def test_a_sample_that_stands_in_two_shards_is_found(tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    index = read_json(folder / "index.json")
    row = index["shards"][0]
    twin = folder / row["path"].replace("000000", "000009")
    shutil.copy(folder / row["path"], twin)
    shutil.copy((folder / row["path"]).with_suffix(".members.json"), twin.with_suffix(".members.json"))
    index["shards"].append(row | {"path": twin.relative_to(folder).as_posix()})
    write_json(folder / "index.json", index)
    assert len(verify(folder)) == row["count"] and "2 times" in verify(folder)[0].what


def test_shards_that_dit_did_not_write_are_not_overwritten(tiny_shards, small_set, tmp_path, dit):
    """An older set would lose its tars to the new one."""
    folder = shutil.copytree(small_set, tmp_path / "shards")
    for path in [folder / "index.json", *folder.rglob("*.members.json")]:
        path.unlink()
    before = digests(folder)
    outcome = dit(*arguments_for(tiny_shards, folder))
    assert outcome.code == 2 and "did not write" in outcome.err
    assert digests(folder) == before
    assert dit("shard", "--index", folder, "--preset", "demo").code == 0
    assert dit(*arguments_for(tiny_shards, folder)).code == 2  # with its claimed index, too


def test_a_card_changed_after_the_set_was_made_is_noticed(tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    index = read_json(folder / "index.json")
    index["identity"]["encoders"]["vae"]["scale"] = 2.0
    write_json(folder / "index.json", index)
    assert [fault.where for fault in verify(folder)] == ["index.json"]
    shards = ShardSet.open(folder)
    with pytest.raises(BadDataError, match="hashes to"):
        Provenance.of(shards, shards.samples, tiny_shards.config)


def test_statistics_that_are_not_the_samples_are_noticed(tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    index = read_json(folder / "index.json")
    index["statistics"]["latent_mean"][3] += 1e-3
    write_json(folder / "index.json", index)
    assert [fault.what for fault in verify(folder)] == ["latent_mean of the statistics are not those of the samples"]
