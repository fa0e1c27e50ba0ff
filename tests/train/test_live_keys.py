"""Every key of the training loop acts: rule C1 never runs training, so what it names as acting there is shown here, key
by key.

A run of four updates is made with each key changed. What the run leaves must differ from what it leaves without the
change, where the key says so.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dittool.ckpt.files import list_checkpoints
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.run_log import read_log
from dittool.config.schema import Checkpoint, Train
from dittool.errors import NonFiniteError
from dittool.families import flow
from dittool.train import distributed, loop, state
from dittool.train.loop import train
from tests.quick import every_third

BASE = (
    "train.steps=4",
    "train.warmup_steps=2",
    "train.batch_size=4",
    "train.log_every=2",
    "train.eval_every=0",
    "train.weight_decay=0.1",
    "train.clip=0.5",
    "checkpoint.every=1",
    "checkpoint.keep=2",
    "checkpoint.keep_every=0",
)

WEIGHTS = {  # changes of which the weights after the last update must tell
    "batch_size": ["train.batch_size=2"],
    "tokens_per_batch": ["train.tokens_per_batch=64"],
    "batch_multiple": ["train.tokens_per_batch=112", "train.batch_multiple=2"],  # against the same without it
    "accumulate": ["train.accumulate=2"],
    "lr": ["train.lr=1e-4"],
    "min_lr": ["train.min_lr=1e-4"],
    "warmup_steps": ["train.warmup_steps=1"],
    "schedule": ["train.schedule=constant"],
    "cooldown_steps": ["train.schedule=wsd", "train.cooldown_steps=2"],  # against the default, one of the four
    "weight_decay": ["train.weight_decay=0.5"],
    "optimizer": ['train.optimizer="muon"'],
    "muon_lr": ['train.optimizer="muon"', "train.muon_lr=0.1"],  # each against the same without it
    "muon_momentum": ['train.optimizer="muon"', "train.muon_momentum=0.5"],
    "muon_weight_decay": ['train.optimizer="muon"', "train.muon_weight_decay=0.5"],
    "betas": ["train.betas=[0.5, 0.95]"],
    "clip": ["train.clip=0.01"],
    "precision": ['train.precision="bf16"'],
    "seed": ["train.seed=7"],
    "init_draw": ["train.init_draw=7"],
}
SHOWN_ELSEWHERE = {  # and what each of the others changes, in a test of its own below or in the file that is named
    "steps",
    "log_every",
    "eval_every",
    "sample_every",
    "workers",
    "lr_halved",  # tests/train/test_beginning.py
    "skip_nonfinite",
    "compile",
    "parallel",
    "trackers",  # tests/train/test_trackers.py
    "wandb",  # the same
}


@pytest.fixture(scope="module")
def plain(tiny_shards, tmp_path_factory):
    """The run without a change."""
    return run_with(tiny_shards, tmp_path_factory.mktemp("plain") / "run")


def run_with(shards, out, *overrides, **options):
    train(shards.config_with(*BASE, *overrides), shards.folder, out, **options)
    return out


def weights(run) -> torch.Tensor:
    model = load_checkpoint(run / "checkpoints" / "checkpoint_final.pt")["model"]
    return torch.cat([tensor.flatten() for tensor in model.values()])


def test_no_key_is_left_out():
    assert {*WEIGHTS, *SHOWN_ELSEWHERE} == set(Train.model_fields)
    assert set(Checkpoint.model_fields) == {"every", "background", "keep", "keep_every"}  # background: test_saving.py


@pytest.mark.parametrize("key", every_third(WEIGHTS))
def test_a_key_changes_the_weights(plain, tiny_shards, tmp_path, key):
    *before, change = WEIGHTS[key]
    reference = run_with(tiny_shards, tmp_path / "before", *before) if before else plain
    assert not torch.equal(weights(reference), weights(run_with(tiny_shards, tmp_path / "run", *before, change)))


def test_the_same_configuration_changes_nothing(plain, tiny_shards, tmp_path):
    """The control: what differs above differs because of the key."""
    assert torch.equal(weights(plain), weights(run_with(tiny_shards, tmp_path / "run")))


def test_steps_log_every_and_eval_every_show_in_the_log(tiny_shards, tmp_path):
    rows = read_log(run_with(tiny_shards, tmp_path / "run", "train.steps=5", "train.log_every=1", "train.eval_every=2"))
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 4, 5]


def test_sample_every_and_validate_every_call_for_pictures_and_judgements(tiny_shards, tmp_path, monkeypatch):
    drawn, judged = [], []
    monkeypatch.setattr(
        flow,
        "FAMILY",
        replace(
            flow.FAMILY,
            draw=lambda _data, _model, step, _path: drawn.append(step),
            judge=lambda _data, _model, step, *_: judged.append(step),
        ),
    )
    run_with(
        tiny_shards,
        tmp_path / "run",
        "train.sample_every=2",
        "validate.every=3",
    )
    assert (drawn, judged) == ([2, 4], [3, 4])


def test_workers_read_in_processes_of_their_own_and_change_no_bit(plain, tiny_shards, tmp_path, monkeypatch):
    asked = []
    real = flow.training_stream

    def watched(*given):
        stream = real(*given)
        batches = stream.batches
        stream.batches = lambda first, last, workers, device: (
            asked.append(workers) or batches(first, last, workers, device)
        )
        return stream

    monkeypatch.setattr(flow, "training_stream", watched)
    assert torch.equal(weights(plain), weights(run_with(tiny_shards, tmp_path / "run", "train.workers=1")))
    assert asked == [1]


@pytest.mark.parametrize("allowed", [0, 1])
def test_skip_nonfinite_leaves_an_update_out(tiny_shards, tmp_path, monkeypatch, allowed):
    real, calls = flow.flow_loss, []

    def spoilt(*given):
        loss = real(*given)
        calls.append(loss)
        return replace(loss, per_sample=loss.per_sample * torch.nan) if len(calls) == 2 else loss

    monkeypatch.setattr(flow, "flow_loss", spoilt)
    overrides = [f"train.skip_nonfinite={allowed}"]
    if not allowed:
        with pytest.raises(NonFiniteError):
            run_with(tiny_shards, tmp_path / "run", *overrides)
    else:
        final = load_checkpoint(
            run_with(tiny_shards, tmp_path / "run", *overrides) / "checkpoints" / "checkpoint_final.pt"
        )
        assert (final["step"], final["skipped_updates"]) == (4, 1)


def test_compile_and_parallel_reach_what_they_name(tiny_shards, tmp_path, monkeypatch):
    compiled, named = [], []
    monkeypatch.setattr(state, "compile_blocks", compiled.append)
    real = distributed.process_group
    monkeypatch.setattr(loop, "process_group", lambda parallel: named.append(parallel) or real(parallel))
    run_with(tiny_shards, tmp_path / "run", "train.compile=true", 'train.parallel="fsdp"')
    assert len(compiled) == 1 and named == ["fsdp"]


def steps_kept(run) -> list[int]:
    return sorted({checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")})


@pytest.mark.parametrize(
    ("override", "kept"),
    [("keep=2", [4, 5, 6]), ("keep=3", [3, 4, 5, 6]), ("keep_every=2", [2, 4, 5, 6]), ("every=3", [3, 6])],
)
def test_the_checkpoint_keys_decide_which_steps_stay(tiny_shards, tmp_path, override, kept):
    """The last step is kept as checkpoint_final.pt besides."""
    assert steps_kept(run_with(tiny_shards, tmp_path / "run", "train.steps=6", f"checkpoint.{override}")) == kept
