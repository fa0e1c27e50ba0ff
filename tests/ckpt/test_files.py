"""Checkpoints as files: whatever happens, a valid one stays, and the newest valid one is found by its step."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from dittool import storage
from dittool.ckpt import write
from dittool.ckpt.files import list_checkpoints, newest_checkpoint, resolve_checkpoint, rotate, save_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.errors import BadDataError, StorageError, UsageError


class Killed(BaseException):
    """Stands for kill -9: nothing below the test may catch it."""


def names(folder: Path) -> list[str]:
    return [file.path.name for file in list_checkpoints(folder)]


def equal(a, b) -> bool:
    """Whether two nested states hold the same tensors and values."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


# Saving


def test_what_was_saved_comes_back_exactly(tmp_path, state):
    saved = state(7)
    path = save_checkpoint(tmp_path, saved)
    assert path.name == "checkpoint_step0000007.pt"
    assert equal(load_checkpoint(path), saved)


def test_the_sidecar_describes_the_file(tmp_path, state):
    path = save_checkpoint(tmp_path, state(7), summary={"loss": 0.5})
    sidecar = json.loads(path.with_suffix(".json").read_text())
    assert sidecar == {
        "file": "checkpoint_step0000007.pt",
        "bytes": path.stat().st_size,
        "sha256": storage.file_sha256(path),
        "step": 7,
        "summary": {"loss": 0.5},
    }


def test_a_state_with_anything_but_plain_values_is_a_bug_of_ours_named_by_its_place(tmp_path, state):
    odd = [
        (np.float64(1), "numpy.float64"),
        (Path("x"), "Path"),
        ({1, 2}, "set"),
        (b"raw", "bytes"),
        (torch.ones(1).expand(4), "expanded"),
    ]
    for value, said in odd:
        broken = state(1)
        broken["data"]["odd"] = [value]
        with pytest.raises(TypeError, match=rf"state\.data\.odd\.0: .*{said}"):
            save_checkpoint(tmp_path, broken)
    incomplete = state(1)
    del incomplete["rng"]
    with pytest.raises(TypeError, match="lacks rng"):
        save_checkpoint(tmp_path, incomplete)
    assert list(tmp_path.iterdir()) == []


def test_a_valid_checkpoint_of_the_same_step_is_kept_as_it_is(tmp_path, state):
    first = save_checkpoint(tmp_path, state(3))
    before = first.read_bytes()
    assert save_checkpoint(tmp_path, state(3, seed=99)) == first
    assert first.read_bytes() == before


@pytest.mark.row(6)
def test_a_checkpoint_whose_save_was_interrupted_is_saved_again(tmp_path, state):
    path = save_checkpoint(tmp_path, state(3))
    path.write_bytes(path.read_bytes()[:-100])
    save_checkpoint(tmp_path, state(3))
    assert newest_checkpoint(tmp_path).step == 3


def test_the_final_checkpoint_of_a_run_that_was_continued_keeps_the_old_one_under_its_step(tmp_path, state):
    save_checkpoint(tmp_path, state(10), final=True)
    save_checkpoint(tmp_path, state(20), final=True)
    assert [(file.path.name, file.step, file.verify()) for file in list_checkpoints(tmp_path)] == [
        ("checkpoint_step0000010.pt", 10, None),
        ("checkpoint_final.pt", 20, None),
    ]
    assert load_checkpoint(tmp_path / "checkpoint_step0000010.pt")["step"] == 10


@pytest.mark.row(5, 6)
@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
def test_a_kill_at_any_moment_of_a_save_leaves_a_valid_checkpoint(tmp_path, state, monkeypatch, call):
    """A save of a first, a step's, and a replaced final checkpoint is killed at its n-th system call, for all n."""
    genuine = getattr(os, call)
    for moment in range(100):
        folder = tmp_path / f"{call}{moment}"
        save_checkpoint(folder, state(5))
        save_checkpoint(folder, state(10), final=True)
        calls = 0

        def dies(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == moment + 1:  # noqa: B023 - called within this round only
                raise Killed
            return genuine(*arguments, **options)

        monkeypatch.setattr(os, call, dies)
        try:
            save_checkpoint(folder, state(20), final=True)
            finished = True
        except Killed:
            finished = False
        monkeypatch.setattr(os, call, genuine)
        newest = newest_checkpoint(folder)
        assert newest.step == 20 if finished else newest.step in (10, 20)
        assert load_checkpoint(newest.path)["step"] == newest.step
        save_checkpoint(folder, state(20), final=True)  # the resumed run finishes what was begun
        assert newest_checkpoint(folder).step == 20
        if finished:
            break
    assert moment > 0 and finished


@pytest.mark.row(6)
def test_the_file_is_durable_before_it_gets_its_name_and_the_sidecar_comes_last(tmp_path, state, monkeypatch):
    events = []
    for call in ("fsync", "replace"):
        genuine = getattr(os, call)

        def recorded(*arguments, genuine=genuine, call=call):
            events.append(Path(arguments[1]).name if call == "replace" else call)
            return genuine(*arguments)

        monkeypatch.setattr(os, call, recorded)
    save_checkpoint(tmp_path, state(3))
    assert events == ["fsync", "checkpoint_step0000003.pt", "fsync", "fsync", "checkpoint_step0000003.json", "fsync"]


@pytest.mark.row(9)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_disk_that_fills_up_while_saving_says_so_and_costs_nothing(folder, state, monkeypatch, code):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(self, data):
        if self.bytes + len(data) > 2000:
            self.failure = OSError(code, os.strerror(code))
            raise self.failure
        return genuine(self, data)

    genuine = write._HashingWriter.write
    monkeypatch.setattr(write._HashingWriter, "write", full)
    with pytest.raises(StorageError, match=re.escape(os.strerror(code)) + ".* needs .*B, the disk has .*B free"):
        save_checkpoint(folder, state(5))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.row(9)
def test_a_file_that_may_not_grow_further_is_named_as_such_and_not_as_an_error_of_torch(folder, state):
    """The kernel refuses the write in the middle of torch.save, which answers with a RuntimeError about positions."""
    large = state(5)
    large["data"]["statistics"] = torch.zeros(1_000_000)
    before = {path.name for path in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(StorageError, match=r"checkpoint_step0000005\.pt: File too large"):
            save_checkpoint(folder, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name for path in folder.iterdir()} == before


@pytest.mark.row(9)
def test_a_disk_without_room_is_noticed_before_anything_is_written(folder, state, monkeypatch):
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: storage.shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(StorageError, match=r"checkpoint of step 5 needs .* and the disk has 1 B free") as refused:
        save_checkpoint(folder, state(5))
    assert "dit train --resume --out" in refused.value.hint
    assert names(folder)[-1] == "checkpoint_step0000004.pt"


@pytest.mark.row(22)
def test_a_folder_or_a_file_in_the_wrong_place_is_refused(tmp_path, state):
    (tmp_path / "checkpoint_step0000001.pt").mkdir()
    with pytest.raises(StorageError, match="a folder stands where the checkpoint should be"):
        save_checkpoint(tmp_path, state(1))
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="a file stands where the output folder should be"):
        save_checkpoint(tmp_path / "file", state(1))


# Finding


@pytest.mark.row(21)
def test_the_newest_is_the_highest_step_whatever_the_clock_says(folder):
    for age, path in enumerate(sorted(folder.glob("*.pt"))):
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    assert newest_checkpoint(folder).step == 4


def test_steps_beyond_seven_digits_still_come_in_order(tmp_path, state):
    for step in (12_345_678, 9_999_999):
        save_checkpoint(tmp_path, state(step))
    assert [file.step for file in list_checkpoints(tmp_path)] == [9_999_999, 12_345_678]


@pytest.mark.row(5)
def test_leftovers_of_interrupted_writers_are_no_checkpoints(folder):
    (folder / ".tmp-abc.pt").write_bytes(b"half")
    (folder / ".trash-checkpoint_step0000009.pt").write_bytes(b"half")
    (folder / "checkpoint_step0000009.json").write_text("{}")
    (folder / "checkpoint_step0000009.pt").mkdir()
    assert newest_checkpoint(folder).step == 4


@pytest.mark.row(26)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.with_suffix(".json").unlink(), "no readable sidecar"),
        (lambda path: path.with_suffix(".json").write_text("{torn"), "no readable sidecar"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, its sidecar says"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"tiny", b"tinY")), "sha256 differs"),
        (
            lambda path: path.with_suffix(".json").write_text(
                path.with_name("checkpoint_step0000003.json").read_text()
            ),
            "belongs to step 3",
        ),
    ],
)
def test_a_damaged_newest_checkpoint_is_skipped_loudly_with_the_steps_that_it_costs(folder, listener, damage, reason):
    damage(folder / "checkpoint_step0000004.pt")
    assert newest_checkpoint(folder, listener).step == 3
    [warning] = listener.warnings
    assert re.search(
        rf"checkpoint_step0000004\.pt: skipped: .*{reason}.*; 1 steps are lost, going back to step 3", warning
    )
    with pytest.raises(BadDataError, match=reason):
        newest_checkpoint(folder, strict=True)


@pytest.mark.row(25)
def test_no_checkpoint_and_no_valid_checkpoint_are_errors(tmp_path, folder):
    with pytest.raises(BadDataError, match="no checkpoint there"):
        newest_checkpoint(tmp_path / "absent")
    for path in folder.glob("*.json"):
        path.unlink()
    with pytest.raises(
        BadDataError, match=r"none of its 4 checkpoints is valid: checkpoint_step0000004\.pt: no readable sidecar"
    ):
        newest_checkpoint(folder)


# Rotation


def test_rotation_keeps_the_newest_every_so_many_steps_and_the_final_one(folder, state):
    for step in (5, 6, 7):
        save_checkpoint(folder, state(step))
    save_checkpoint(folder, state(7), final=True)
    removed = rotate(folder, keep=2, keep_every=3)
    assert names(folder) == [
        "checkpoint_step0000003.pt",
        *(f"checkpoint_step000000{step}.pt" for step in (6, 7)),
        "checkpoint_final.pt",
    ]
    assert sorted(path.name for path in removed) == [f"checkpoint_step000000{step}.pt" for step in (1, 2, 4, 5)]
    assert len(list(folder.glob("*.json"))) == 4


@pytest.mark.row(7)
def test_rotation_deletes_nothing_unless_the_newest_verifies(folder):
    newest = folder / "checkpoint_step0000004.pt"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert rotate(folder, keep=2) == []
    assert len(names(folder)) == 4


def test_rotation_does_not_count_a_checkpoint_without_sidecar_as_kept(folder):
    (folder / "checkpoint_step0000003.json").unlink()
    rotate(folder, keep=2)
    assert names(folder) == ["checkpoint_step0000002.pt", "checkpoint_step0000004.pt"]


def test_fewer_than_two_checkpoints_cannot_be_asked_for(folder):
    with pytest.raises(ValueError, match="at least two"):
        rotate(folder, keep=1)


@pytest.mark.row(7)
@pytest.mark.parametrize("call", ["replace", "unlink"])
def test_a_kill_in_rotation_is_finished_by_the_next_one(folder, monkeypatch, call):
    genuine = getattr(os, call)
    calls = 0

    def dies(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        return genuine(*arguments, **options)

    monkeypatch.setattr(os, call, dies)
    with pytest.raises(Killed):
        rotate(folder, keep=2)
    monkeypatch.undo()
    assert newest_checkpoint(folder).step == 4
    rotate(folder, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"checkpoint_step000000{step}.{end}" for step in (3, 4) for end in ("pt", "json")
    )


@pytest.mark.row(22)
def test_rotation_removes_a_link_and_not_what_it_leads_to(folder, tmp_path):
    precious = tmp_path / "precious.pt"
    (folder / "checkpoint_step0000001.pt").rename(precious)
    (folder / "checkpoint_step0000001.pt").symlink_to(precious)
    rotate(folder, keep=2)
    assert precious.is_file() and names(folder) == ["checkpoint_step0000003.pt", "checkpoint_step0000004.pt"]


# Which checkpoint is meant


def test_a_file_a_run_and_a_checkpoints_folder_all_lead_to_a_checkpoint(folder):
    newest = folder / "checkpoint_step0000004.pt"
    assert resolve_checkpoint(folder / "checkpoint_step0000002.pt").name == "checkpoint_step0000002.pt"
    assert resolve_checkpoint(folder.parent) == resolve_checkpoint(folder) == newest


def test_without_a_target_the_run_that_was_written_to_last_is_taken(folder, state, listener):
    other = folder.parent.parent / "other"
    save_checkpoint(other / "checkpoints", state(99))
    (folder.parent.parent / "empty").mkdir()
    for run, time in ((other, 1000), (folder.parent, 2000)):
        (run / "log.jsonl").write_text("")
        os.utime(run / "log.jsonl", (time, time))
    assert resolve_checkpoint(None, folder.parent.parent, listener) == folder / "checkpoint_step0000004.pt"
    assert "small" in listener.notes[0]


def test_a_target_that_is_not_there_and_runs_without_checkpoints_are_clear_errors(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.pt: no such file or folder"):
        resolve_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(BadDataError, match="no run with a checkpoint"):
        resolve_checkpoint(None, tmp_path / "runs")
    with pytest.raises(BadDataError, match="no checkpoint there"):
        resolve_checkpoint(tmp_path)
