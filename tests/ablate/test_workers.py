"""Several processes on one plan: the same table, no two of them on one run, and any of them may be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from dittool.ablate import workers
from dittool.ablate.ablation import ablate
from dittool.ablate.cost import Cost
from dittool.ablate.plan import BASE, read_plan
from dittool.ablate.runs import Job, Run, Work
from dittool.ablate.workers import Workers
from dittool.console import SILENT
from dittool.devices import visible_gpus
from dittool.errors import DitError
from tests.ablate.test_ablate import written

ROWS = "[variant.muon]\n'train.optimizer' = 'muon'\n[variant.broken]\n'train.lr' = 1e30\n'train.clip' = 1e30\n"
JOBS = [Job(Run(row, 0, 4), 4) for row in (BASE, "muon", "broken")]


@pytest.fixture
def rows(tiny_shards, tmp_path):
    return read_plan(written(tiny_shards, tmp_path / "plan.toml", ROWS, "seeds = [0]\nequal_time = false\n"))


def table(out):
    """Without what was timed."""
    rows = json.loads((out / "results.json").read_text())["rows"]
    return [
        {key: value for key, value in row.items() if key not in ("time", "memory", "seconds_per_update")}
        for row in rows
    ]


@pytest.mark.slow
def test_two_processes_make_the_table_of_one(rows, tiny_shards, tmp_path):
    for count in (1, 2):
        ablate(rows, tiny_shards.folder, tmp_path / f"by{count}", processes=count)
    assert table(tmp_path / "by1") == table(tmp_path / "by2")
    assert table(tmp_path / "by2")[2]["failed"].startswith("step 2: loss")
    assert not [path for path in (tmp_path / "by2").rglob(".tmp*")]


def test_each_process_sees_one_gpu(rows, tmp_path, monkeypatch):
    started = []

    class Process:
        def __init__(self, target, args):
            pass

        def start(self):
            started.append(os.environ.get("CUDA_VISIBLE_DEVICES"))

        def terminate(self):
            pass

        def join(self):
            pass

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(workers._SPAWN, "Process", Process, raising=False)
    assert visible_gpus() == ["3", "5"]
    with Workers(Work(rows, tmp_path, tmp_path, SILENT), 3):
        pass
    assert started == ["3", "5", "3"] and os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


def notes_its_work(rows, data, out, checker, threads, pipe):
    """A worker that writes down what it was asked for, and dies with one row."""
    while True:
        try:
            (task,) = pipe.recv()
        except EOFError:
            return
        with (out / "asked").open("a") as file:
            file.write(f"{os.getpid()} {task.run.row if task else 'costs'}\n")
        if task and task.run.row in ("muon", (out / "dies_with").read_text()):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
        pipe.send(workers._Reply({}))


@pytest.fixture
def pretended(rows, tmp_path, monkeypatch):
    (tmp_path / "dies_with").write_text("")
    work = Work(rows, tmp_path, tmp_path, SILENT)
    monkeypatch.setattr(workers, "serve", notes_its_work)
    fork = get_context("fork")  # it imports nothing, and computes nothing
    monkeypatch.setattr(workers, "_SPAWN", fork)
    # nothing to save, and a fork has its parent's way with signals until it runs
    monkeypatch.setattr(fork.Process, "terminate", fork.Process.kill)
    monkeypatch.setattr(work, "do", lambda job: None)
    monkeypatch.setattr(work, "measure_costs", lambda: work.costs.update({BASE: Cost(1.0, 1.0, 1.0)}))
    return work


def test_work_that_kills_its_process_twice_is_a_row_with_its_reason(pretended, tmp_path):
    with Workers(pretended, 2) as several:
        done = list(several.do(JOBS))
    assert pretended.failed == {"muon": "its process ended with signal SIGKILL, 2 times"}
    assert sorted(job.run.row for job in done) == [BASE, "broken"]
    asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert sorted(row for _, row in asked) == [BASE, "broken", "muon", "muon"]
    (tmp_path / "dies_with").write_text(BASE)
    with Workers(pretended, 2) as several, pytest.raises(DitError, match="SIGKILL, 2 times with the same work"):
        list(several.do(JOBS))


def test_costs_are_measured_by_one_process_while_the_others_rest(pretended, tmp_path):
    with Workers(pretended, 2) as several:
        several.measure_costs()
        list(several.do(JOBS[:1]))
    asked = [line.split()[1] for line in (tmp_path / "asked").read_text().splitlines()]
    assert asked == ["costs", BASE] and pretended.costs


def children(process):
    listed = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    return [int(pid) for pid, parent, words in lines if int(parent) == process.pid and "spawn_main" in words]


def computes(pid):
    """Whether a process is there and has not ended: one whose parent is gone may wait for the system to bury it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def waited_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_any_process_may_be_killed_at_any_moment(tiny_shards, tmp_path):
    """A worker; then the first process, with the same command again at once; then the first one by SIGTERM."""
    rows = ROWS.partition("[variant.broken]")[0]
    path = written(tiny_shards, tmp_path / "plan.toml", rows, "seeds = [0]\nequal_time = false\n")
    path.write_text(path.read_text().replace("updates = 4\n", "updates = 300\n"))
    ablate(read_plan(path), tiny_shards.folder, tmp_path / "straight")
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "dittool", "ablate", path, "--data", tiny_shards.folder, "--out", out]
    command = [*map(str, command), "--processes", "2"]

    def started():
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def both_train():
        return len(list(out.glob("runs/*/*/log.jsonl"))) == 2

    first = started()
    waited_for(both_train)
    assert first.poll() is None, first.communicate()
    os.kill(children(first)[0], signal.SIGKILL)
    waited_for(lambda: len(children(first)) == 2)
    orphans = children(first)
    first.kill()
    first.wait()
    second = started()
    waited_for(lambda: len(children(second)) == 2)
    assert not [pid for pid in orphans if computes(pid)], "two processes on one run"
    time.sleep(3)
    second.terminate()
    said = second.communicate(timeout=60)[1]
    assert second.returncode in (0, 143), said
    assert not children(second)
    third = started()
    said = third.communicate(timeout=200)[1]
    assert third.returncode == 0, said
    assert table(out) == table(tmp_path / "straight")
