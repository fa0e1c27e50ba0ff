"""Exact resume, proven over a matrix: stopped after every step, resumed with and without workers, two micro-batches a
step, several buckets.

Compared are a digest of model, average, optimizer and random state, and the ids of all samples in their order. Controls
at the end show that the comparison fails when something is forgotten.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest
import torch

from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.load import load_checkpoint, named_tensors
from dittool.config.architectures import architecture
from dittool.data.shards.read import ShardSet
from dittool.families.family import family_of
from dittool.train import loop
from dittool.train.loop import train
from dittool.train.state import TrainState

STEPS, SETTINGS = 8, ("train.accumulate=2", "checkpoint.every=100")


@dataclass
class Proof:
    """What a run saw and where it ended."""

    ids: list[str]
    digest: str


def digest(run) -> str:
    content = load_checkpoint(resolve_checkpoint(run))
    state = {key: content[key] for key in ("model", "ema", "optimizer", "rng", "queues") if key in content}
    total = hashlib.sha256(
        f"{content['step']} {content['samples_seen']} {content['optimizer']['param_groups']}".encode()
    )
    for name, tensor in named_tensors(state):
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def prove(monkeypatch, config, data, out, stop_after: int | None = None, **options) -> Proof:
    """Trains until the end, or until SIGTERM comes in step `stop_after`."""
    ids: list[str] = []
    family, real_step = family_of(config), loop.train_step

    def loss(data, model, batch):
        ids.extend(batch.ids)
        return family.loss(data, model, batch)

    def step(state, batches):
        if state.step + 1 == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return real_step(state, batches)

    with monkeypatch.context() as patch:
        patch.setattr(f"dittool.families.{architecture(config).family}.FAMILY", replace(family, loss=loss))
        patch.setattr(loop, "train_step", step)
        try:
            train(config, data, out, **options)
        except loop.Interrupted:
            assert stop_after is not None
    return Proof(ids, digest(out))


@pytest.fixture(scope="module")
def whole(family_shards, tmp_path_factory) -> Proof:
    """The uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        return prove(
            patch, family_shards.config_with(*SETTINGS), family_shards.folder, tmp_path_factory.mktemp("whole") / "run"
        )


def resumed(monkeypatch, family_shards, out, stops: list[int], workers: int) -> Proof:
    """A run in pieces, each but the first a resume."""
    config, ids = family_shards.config_with(*SETTINGS, f"train.workers={workers}"), []
    for number, stop in enumerate([*stops, None]):
        part = prove(monkeypatch, config, family_shards.folder, out, stop, resume=number > 0)
        ids += part.ids
    return Proof(ids, part.digest)


def test_the_matrix_has_three_buckets_or_groups_of_all_steps(family_shards, whole):
    if family_shards.preset == "demo":
        buckets = {ref.id: ref.bucket for ref in ShardSet.open(family_shards.folder).split("train")}
        assert len({buckets[one] for one in whole.ids}) >= 3 and len(whole.ids) == STEPS * 2 * 4
    else:
        assert len(set(whole.ids)) == len(whole.ids) == STEPS * 2 * 2


FAST = ((2, 2), (5, 0))
SLOW = [
    pytest.param(stop, workers, marks=pytest.mark.slow)
    for stop in range(1, STEPS)
    for workers in (0, 2)
    if (stop, workers) not in FAST
]


@pytest.mark.parametrize(("stop", "workers"), [*FAST, *SLOW])
def test_stopped_after_any_step_a_run_ends_with_the_same_bits(
    monkeypatch, family_shards, whole, tmp_path, stop, workers
):
    assert resumed(monkeypatch, family_shards, tmp_path / "run", [stop], workers) == whole


@pytest.mark.row(24)
def test_stopped_after_every_step_a_run_ends_with_the_same_bits(monkeypatch, family_shards, whole, tmp_path):
    """Row 24: several times in one epoch."""
    assert resumed(monkeypatch, family_shards, tmp_path / "run", list(range(1, STEPS)), workers=0) == whole


@pytest.mark.slow
def test_in_fresh_processes_a_run_ends_with_the_same_bits(family_shards, whole, tmp_path):
    """Killed with -9 at no chosen moment, three times, and resumed by the command line."""
    out, options = (
        tmp_path / "run",
        [word for override in (*family_shards.overrides, *SETTINGS, "checkpoint.every=1") for word in ("-s", override)],
    )
    command = [
        sys.executable,
        "-m",
        "dittool",
        "train",
        "--data",
        str(family_shards.folder),
        "--out",
        str(out),
        "--quiet",
        *options,
    ]
    for seconds in (12, 14, 16, None):
        how = ["--resume"] if list(out.glob("checkpoints/*.json")) else ["--preset", family_shards.preset]
        process = subprocess.Popen([*command, *how], env=dict(os.environ, OMP_NUM_THREADS="1"))
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if list(out.glob("checkpoints/*final.json")):
            break
    assert digest(out) == whole.digest


def test_control_a_forgotten_average_is_noticed(monkeypatch, family_shards, whole, tmp_path):
    real = TrainState.restore

    def forgetful(state, checkpoint):
        real(state, {**checkpoint, "ema": checkpoint["model"]})

    monkeypatch.setattr(TrainState, "restore", forgetful)
    found = resumed(monkeypatch, family_shards, tmp_path / "run", [3], 0)
    assert found.ids == whole.ids and found.digest != whole.digest


def test_control_a_forgotten_place_in_the_data_is_noticed(monkeypatch, tiny_shards, whole, tmp_path):
    from dittool.data.shards.stream import BatchStream

    real = BatchStream.batches
    monkeypatch.setattr(BatchStream, "batches", lambda self, first, end, *rest: real(self, 0, end - first, *rest))
    found = resumed(monkeypatch, tiny_shards, tmp_path / "run", [3], 0)
    assert found.ids != whole.ids and found.digest != whole.digest


def test_control_a_forgotten_random_state_is_noticed(monkeypatch, family_shards, whole, tmp_path):
    monkeypatch.setattr(torch, "set_rng_state", lambda _: torch.manual_seed(99))
    found = resumed(monkeypatch, family_shards, tmp_path / "run", [3], 0)
    assert found.ids == whole.ids and found.digest != whole.digest
