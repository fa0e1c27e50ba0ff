"""Signals that ask a run to stop."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.train.signals import STOPPING, launcher_warning, stop_on_signal


@pytest.fixture(autouse=True)
def handlers():
    """Those of before are there again after each test, whatever was installed or ignored."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_interrupt_is_heard_also_where_a_shell_ignores_it_for_jobs_in_the_background():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGINT


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_a_request_and_handlers_come_back(number, handlers):
    with stop_on_signal() as stop:
        assert stop.signal_number is None
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
    assert {one: signal.getsignal(one) for one in STOPPING} == handlers


def test_an_ignored_hang_up_stays_ignored():
    """As under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal_number is None


def test_a_second_hang_up_does_not_end_the_process_before_it_has_saved(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal_number == signal.SIGHUP and not ended
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [143]


def test_what_announces_the_end_is_not_the_first_of_two(monkeypatch):
    """SLURM sends SIGUSR1, and SIGTERM when time is up: the save that goes on then is finished."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGUSR1 and not ended
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [143]


def test_what_torchrun_hands_on_once_more_is_no_second_signal(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wanted and not ended


def test_a_process_whose_torchrun_is_gone_stops(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with stop_on_signal() as stop:
        assert not stop.wanted
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert stop.wanted and stop.signal_number == signal.SIGTERM


def test_a_run_under_torchrun_says_what_torchrun_was_not_told(monkeypatch):
    assert launcher_warning() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGHUP,SIGQUIT")
    warning = launcher_warning()
    assert "SIGUSR1 and SIGUSR2 will end torchrun" in warning and "--shutdown-timeout 600" in warning
    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", ",".join(one.name for one in STOPPING))
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    assert launcher_warning() is None


@pytest.mark.row(17)
@pytest.mark.slow
def test_a_run_whose_terminal_goes_away_saves(tiny_shards, tmp_path):
    """A real terminal, of which the run is the session leader, is closed under it."""
    out = tmp_path / "run"
    overrides = [
        word
        for override in (*tiny_shards.overrides, "train.steps=100000", "checkpoint.every=100000")
        for word in ("-s", override)
    ]
    places = ["--data", str(tiny_shards.folder), "--out", str(out)]
    command = [sys.executable, "-c", _LEAD, "train", "--no-audit", "--preset", "demo", *places, *overrides]
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        start_new_session=True,
    )
    os.close(terminal)
    deadline = time.monotonic() + 60
    while not (out / "log.jsonl").exists() or not (out / "log.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.close(ours)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert load_checkpoint(resolve_checkpoint(out))["step"] >= 1


_LEAD = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from dittool.cli import main
main()
"""
