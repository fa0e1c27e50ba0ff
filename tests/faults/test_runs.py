"""Rows 1 to 26 where they concern runs: kills, full disks, signals, lost processes, second writers. Those of embedding,
sharding and of checkpoints as files are tested beside their code; `test_catalogue.py` names them all.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from PIL import Image

from dittool.ckpt.files import list_checkpoints, newest_checkpoint, resolve_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.run_log import read_log
from dittool.errors import BadDataError, StorageError
from dittool.storage import folder_lock
from dittool.train import loop, saving
from dittool.train.growing_file import GrowingFile
from dittool.train.loop import train
from dittool.train.optim import Optimizer
from dittool.train.signals import stop_on_signal
from tests.killed import killed_at


def options_of(tiny_shards) -> list[str]:
    return [word for override in tiny_shards.overrides for word in ("-s", override)]


def assert_ends_as(reference, run) -> None:
    """The two runs have the same bits at their end."""
    one, other = (load_checkpoint(resolve_checkpoint(folder)) for folder in (reference, run))
    assert one["step"] == other["step"]
    assert all(torch.equal(one[part][name], other[part][name]) for part in ("model", "ema") for name in one[part])


def assert_resumes_to(reference, run, tiny_shards) -> None:
    """The run goes on from its newest valid checkpoint; when it has none it begins anew, in an empty folder."""
    try:
        resume = newest_checkpoint(run / "checkpoints").step < 8
    except BadDataError:
        shutil.rmtree(run, ignore_errors=True)
        resume = False
    if resume or not run.exists():
        train(tiny_shards.config_with(), tiny_shards.folder, run, resume=resume)
        assert not list(run.rglob(".tmp-*"))
    assert_ends_as(reference, run)


@pytest.mark.row(5, 6, 7)
@pytest.mark.parametrize("events", [(22,), pytest.param(tuple(range(1, 80)), marks=pytest.mark.slow)])
def test_killed_at_a_file_event_a_run_resumes_to_the_same_bits(tiny_run, tiny_shards, tmp_path, events):
    command = (
        "train",
        "--preset",
        "demo",
        "--data",
        tiny_shards.folder,
        "--out",
        "OUT",
        "--quiet",
        *options_of(tiny_shards),
    )
    ended = killed_at(events, tmp_path, *command)
    assert len(ended) < len(events)
    for event in set(events) - set(ended):
        assert_resumes_to(tiny_run, tmp_path / f"killed{event}", tiny_shards)


@pytest.mark.slow
@pytest.mark.row(8)
def test_a_picture_is_never_torn(tiny_run, tmp_path):
    events = (1, 2, 3, 4, 5)
    pictures = [tmp_path / f"killed{event}" / "sample_seed000000.png" for event in events]
    for old in pictures:
        old.parent.mkdir()
        Image.new("RGB", (8, 8), "red").save(old)
    before = old.read_bytes()
    ended = killed_at(
        events, tmp_path, "sample", "--prompt", "a red circle", "--checkpoint", tiny_run, "--out", "OUT", "--quiet"
    )
    assert len(ended) < len(events)
    for path in pictures:
        Image.open(path).load()
        assert path.read_bytes() == before or Image.open(path).size == (128, 128)


@pytest.mark.row(8)
@pytest.mark.slow
def test_a_report_is_never_torn(tiny_run, tiny_shards, tmp_path):
    events = (2, 9, 20)
    command = ("validate", tiny_run, "--data", tiny_shards.folder, "--limit", "2", "--out", "OUT", "--quiet")
    ended = killed_at(events, tmp_path, *command)
    assert len(ended) < len(events)
    for path in [path for event in events for path in (tmp_path / f"killed{event}").rglob("*") if path.is_file()]:
        if path.name.startswith(".tmp-dit-") or path.name == ".lock":
            continue
        if path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix != ".html" or path.read_text().rstrip().endswith("</html>")


class FullDisk:
    """A file on a disk that takes a few bytes of what comes, once it is full, and then no more."""

    def __init__(self, file, is_full):
        self._file, self._is_full = file, is_full
        self.name, self.fileno, self.seek, self.close = file.name, file.fileno, file.seek, file.close

    def write(self, piece):
        return self._file.write(piece[:7] if self._is_full() else piece)


@pytest.mark.row(10)
def test_a_disk_that_is_full_when_the_log_grows_does_not_end_the_run(
    family_run, family_shards, tmp_path, monkeypatch, listener
):
    """What could not be written is written as soon as there is room: here from step 7 on."""
    out, step = tmp_path / "run", [0]
    real_step, real_init = loop.train_step, GrowingFile.__init__

    def init(self, path):
        real_init(self, path)
        self._file = FullDisk(self._file, lambda: 4 <= step[0] < 7)

    def counted(state, batches):
        figures = real_step(state, batches)
        step[0] = state.step
        return figures

    monkeypatch.setattr(GrowingFile, "__init__", init)
    monkeypatch.setattr(loop, "train_step", counted)
    train(family_shards.config_with(), family_shards.folder, out, talk=listener)
    warned = [text for text in listener.warnings if "log.jsonl failed" in text]
    assert warned[0].startswith("step 4: writing log.jsonl failed (1 in this run): [Errno 28] No space left")
    assert any("tracking with tensorboard failed" in text for text in listener.warnings)
    assert [row["step"] for row in read_log(out) if "loss" in row] == list(range(1, 9))
    assert_ends_as(family_run, out)


@pytest.mark.row(11)
def test_a_folder_that_cannot_be_written_to_is_reported_before_the_model_is_built(
    family_shards, dit, one_error, monkeypatch
):
    def never(*_):
        raise AssertionError("the model was built")

    monkeypatch.setattr(loop, "TrainState", never)
    outcome = dit(
        "train",
        "--preset",
        family_shards.preset,
        "--data",
        family_shards.folder,
        "--out",
        "/proc/nowhere/run",
        "--quiet",
        *options_of(family_shards),
    )
    one_error(outcome, 5, "/proc/nowhere/run", "cannot write there")


@pytest.mark.row(13)
def test_a_second_writer_is_turned_away_with_the_owners_name(family_shards, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with folder_lock(out), pytest.raises(StorageError, match=f"already in use by process {os.getpid()}"):
        train(family_shards.config_with(), family_shards.folder, out)
    assert not list_checkpoints(out / "checkpoints")


@pytest.mark.row(14)
def test_a_lock_whose_owner_is_dead_holds_nobody_up(tiny_run, tiny_shards, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".lock").write_text("process 1 on a-host-that-burned-down")
    train(tiny_shards.config, tiny_shards.folder, out)
    assert_ends_as(tiny_run, out)


@pytest.mark.row(15)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(family_run, family_shards, tmp_path, monkeypatch, number):
    real = loop.train_step
    monkeypatch.setattr(
        loop,
        "train_step",
        lambda state, ready: (state.step == 4 and os.kill(os.getpid(), number), real(state, ready))[1],
    )
    with pytest.raises(loop.Interrupted) as stopped:
        train(family_shards.config_with(), family_shards.folder, tmp_path / "run")
    assert stopped.value.exit_code == 128 + number
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").step == 5
    monkeypatch.undo()
    assert_resumes_to(family_run, tmp_path / "run", family_shards)


@pytest.mark.row(15)
def test_a_second_signal_ends_the_process_at_once():
    child = os.fork()
    if child == 0:
        with stop_on_signal():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


@pytest.mark.row(16)
def test_a_signal_during_a_save_saves_nothing_twice(family_run, family_shards, tmp_path, monkeypatch):
    real, saved = saving.save_checkpoint, []

    def save(folder, state, **rest):
        if not saved:
            os.kill(os.getpid(), signal.SIGTERM)
        saved.append(state["step"])
        return real(folder, state, **rest)

    monkeypatch.setattr(saving, "save_checkpoint", save)
    with pytest.raises(loop.Interrupted):
        train(family_shards.config_with(), family_shards.folder, tmp_path / "run")
    assert saved == [3, 4]  # the save was finished, then one more step, which is where the run stands
    assert all(file.verify() is None for file in list_checkpoints(tmp_path / "run" / "checkpoints"))
    monkeypatch.undo()
    assert_resumes_to(family_run, tmp_path / "run", family_shards)


@pytest.mark.row(17)
def test_a_terminal_that_hangs_up_costs_no_step(family_run, family_shards, tmp_path, monkeypatch):
    out, real = tmp_path / "run", loop.train_step
    monkeypatch.setattr(
        loop,
        "train_step",
        lambda state, ready: (state.step == 5 and os.kill(os.getpid(), signal.SIGHUP), real(state, ready))[1],
    )
    with pytest.raises(loop.Interrupted) as stopped:
        train(family_shards.config_with(), family_shards.folder, out)
    assert stopped.value.exit_code == 129 and newest_checkpoint(out / "checkpoints").step == 6
    monkeypatch.undo()
    assert_resumes_to(family_run, out, family_shards)


@pytest.mark.row(18)
@pytest.mark.parametrize("when", ["while it waits for a batch", "while it computes"])
def test_a_worker_that_is_killed_is_named_and_the_run_goes_on_from_that_step(
    family_run, family_shards, tmp_path, monkeypatch, when
):
    def kill():
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.2)

    def step(state, ready, real=loop.train_step):
        if state.step == 4 and when == "while it waits for a batch":
            kill()
        return real(state, ready)

    def update(optimizer, number, made, real=Optimizer.update):
        if number == 4 and when == "while it computes":
            kill()
        return real(optimizer, number, made)

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(Optimizer, "update", update)
    # torch says "exited unexpectedly" where its watch comes before the signal of the death
    said = r"reads batches is gone: DataLoader worker \(pid.*(killed|exited unexpectedly)"
    with pytest.raises(StorageError, match=said) as lost:
        train(family_shards.config_with("train.workers=2"), family_shards.folder, tmp_path / "run")
    at = 4 if when == "while it waits for a batch" else 5  # that update was finished
    assert f"the state of step {at} is saved" in lost.value.hint and "/dev/shm" in lost.value.hint
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").step == at
    monkeypatch.undo()
    train(
        family_shards.config_with(),
        family_shards.folder,
        tmp_path / "run",
        resume=True,
        named_changes=["train.workers"],
    )
    assert_ends_as(family_run, tmp_path / "run")


@pytest.mark.row(19)
@pytest.mark.xdist_group("torchrun")  # two of them at once may take one port, and hang
@pytest.mark.slow
def test_when_one_rank_dies_the_others_stop_and_the_run_resumes(family_shards, tmp_path):
    out = tmp_path / "run"
    program = tmp_path / "one_dies.py"
    program.write_text(
        "import os\nfrom dittool.train import loop\nfrom dittool.cli import main\nreal = loop.train_step\ndef"
        " step(state, ready):\n    if state.step == 4 and os.environ['RANK'] == '1':\n        os.kill(os.getpid(), 9)\n"
        "    return real(state, ready)\nloop.train_step = step\nmain()\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(program),
        "train",
        "--preset",
        family_shards.preset,
    ]
    command += ["--data", str(family_shards.folder), "--out", str(out), *options_of(family_shards)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ, OMP_NUM_THREADS="1"), timeout=300
    )
    assert done.returncode != 0
    assert newest_checkpoint(out / "checkpoints").step == 3
    assert train(family_shards.config_with(), family_shards.folder, out, resume=True).step == 8


@pytest.mark.row(20)
@pytest.mark.parametrize(("background", "raised_after"), [("false", 6), ("true", 7)])
def test_a_save_that_fails_is_raised_and_removes_nothing(
    family_run, family_shards, tmp_path, monkeypatch, background, raised_after
):
    """At once where saving is part of the step; at the next step where a thread saves."""
    real, threads, real_step = saving.save_checkpoint, set(), loop.train_step

    def save(folder, state, **rest):
        threads.add(threading.current_thread())
        if state["step"] == 6:
            raise OSError(errno.EIO, "Input/output error")
        return real(folder, state, **rest)

    def step(state, batches):
        steps.append(state.step + 1)
        made = real_step(state, batches)
        for thread in threading.enumerate():
            if thread.name == "saving":
                thread.join()  # so that its error is there before this step ends
        return made

    steps, config = [], family_shards.config_with(f"checkpoint.background={background}")
    monkeypatch.setattr(saving, "save_checkpoint", save)
    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(OSError, match="Input/output error"):
        train(family_shards.config_with(f"checkpoint.background={background}"), family_shards.folder, tmp_path / "run")
    assert threads.isdisjoint({threading.main_thread()}) == (background == "true")
    assert steps[-1] == raised_after and read_log(tmp_path / "run")[-1]["step"] == 6
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").step == 3
    train(config, family_shards.folder, tmp_path / "run", resume=True)
    assert_ends_as(family_run, tmp_path / "run")


@pytest.mark.row(22)
@pytest.mark.parametrize("what", ["file", "link to nothing"])
def test_what_is_no_folder_is_not_trained_into(tiny_shards, tmp_path, dit, one_error, what):
    out = tmp_path / "run"
    if what == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    outcome = dit(
        "train", "--preset", "demo", "--data", tiny_shards.folder, "--out", out, "--quiet", *options_of(tiny_shards)
    )
    one_error(outcome, 5, f"{out}: a {what}", "stands where the output folder should be")
    assert out.is_symlink() or out.read_text() == "mine"
