"""Checkpoints written while training goes on: what is in them is the state of their step, one is written at a time,
and nothing that goes wrong is lost. That a failure is raised at the next step is row 20 of the faults
(`tests/faults/test_runs.py`).
"""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch

from dittool.ckpt.files import list_checkpoints
from dittool.ckpt.load import load_checkpoint
from dittool.errors import NonFiniteError
from dittool.train import loop, saving
from dittool.train.loop import train
from dittool.train.saving import HostCopies
from tests.run_states import assert_same_bits, final_state

KEPT = ("checkpoint.every=1", "checkpoint.keep=9")


@pytest.fixture
def held_back(monkeypatch):
    """Each checkpoint but the last is written once the step that follows has changed the weights. Lists the names of
    the threads that write, and how many of them did at once.
    """
    genuine, real_step, reached = saving.save_checkpoint, loop.train_step, [0]
    threads, writing, most = [], [], []

    def save(folder, state, **rest):
        writing.append(state["step"])
        most.append(len(writing))
        threads.append(threading.current_thread().name)
        deadline = time.monotonic() + 30
        while threads[-1] == "saving" and reached[0] <= state["step"]:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        path = genuine(folder, state, **rest)
        writing.remove(state["step"])
        return path

    def step(state, batches):
        made = real_step(state, batches)
        reached[0] = state.step
        return made

    monkeypatch.setattr(saving, "save_checkpoint", save)
    monkeypatch.setattr(loop, "train_step", step)
    return threads, most


def test_what_is_written_beside_the_steps_is_the_state_of_its_step(family_shards, tmp_path, held_back):
    train(family_shards.config_with(*KEPT), family_shards.folder, tmp_path / "before")
    assert set(held_back[0]) == {"MainThread"}
    config = family_shards.config_with(*KEPT, "checkpoint.background=true")
    train(config, family_shards.folder, tmp_path / "beside")
    files = [list_checkpoints(tmp_path / name / "checkpoints") for name in ("before", "beside")]
    assert len(files[0]) == len(files[1]) == 8
    for one, other in zip(*files, strict=True):
        assert other.verify() is None
        assert_same_bits(load_checkpoint(one.path), load_checkpoint(other.path))
    assert held_back[0].count("saving") == 7 and set(held_back[1]) == {1}


@pytest.mark.row(16)
def test_a_signal_waits_for_the_checkpoint_that_is_written(tiny_shards, tiny_run, tmp_path, held_back, monkeypatch):
    real, out = loop.train_step, tmp_path / "run"

    def signalled(state, batches):
        if state.step == 3:
            assert any(thread.name == "saving" for thread in threading.enumerate())
            os.kill(os.getpid(), signal.SIGTERM)
        return real(state, batches)

    monkeypatch.setattr(loop, "train_step", signalled)
    config = tiny_shards.config_with("checkpoint.background=true")
    with pytest.raises(loop.Interrupted):
        train(config, tiny_shards.folder, out)
    assert [(file.step, file.verify()) for file in list_checkpoints(out / "checkpoints")] == [(3, None), (4, None)]
    monkeypatch.undo()
    train(config, tiny_shards.folder, out, resume=True)
    assert_same_bits(final_state(out), final_state(tiny_run))


def test_a_run_that_ends_in_an_error_ends_with_its_checkpoint_written(tiny_shards, tmp_path, poisoned, monkeypatch):
    reached, genuine = threading.Event(), saving.save_checkpoint

    def save(folder, state, **rest):
        assert reached.wait(30)
        return genuine(folder, state, **rest)

    poisoned(4)
    monkeypatch.setattr(saving, "save_checkpoint", save)
    closing = saving.Saving.close
    monkeypatch.setattr(saving.Saving, "close", lambda self: reached.set() or closing(self))
    with pytest.raises(NonFiniteError):
        train(tiny_shards.config_with("checkpoint.background=true"), tiny_shards.folder, tmp_path / "run")
    assert [(file.step, file.verify()) for file in list_checkpoints(tmp_path / "run" / "checkpoints")] == [(3, None)]


def test_the_copy_stays_as_it_was_and_takes_its_place_once():
    copies = HostCopies()
    state = {"model": {"a": torch.arange(3.0), "b": torch.ones(2, 4).T}, "step": 1, "betas": (0.9, 0.95)}
    held, ready = copies.of(state)
    ready()
    state["model"]["a"] += 1
    assert held["model"]["a"].tolist() == [0, 1, 2] and held["betas"] == (0.9, 0.95)
    assert held["model"]["b"].stride() == state["model"]["b"].stride()
    again, _ = copies.of(state)
    assert again["model"]["a"].data_ptr() == held["model"]["a"].data_ptr() and again["model"]["a"].tolist() == [1, 2, 3]
    grown, _ = copies.of({**state, "model": {"a": torch.zeros(5)}})
    assert grown["model"]["a"].shape == (5,)
