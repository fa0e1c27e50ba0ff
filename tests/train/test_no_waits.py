"""A step never waits for the device: all of it runs on `meta`, where whatever asks for a value raises. What the device
left out is found at the next look.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dittool import devices
from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.run_log import read_log
from dittool.console import SILENT
from dittool.errors import NonFiniteError
from dittool.families.family import family_of
from dittool.train import log, loop
from dittool.train.distributed import Ranks
from dittool.train.loop import train
from dittool.train.saving import Saving
from dittool.train.signals import StopRequest
from dittool.train.state import TrainState
from tests.run_states import assert_same_bits, final_state

META = torch.device("meta")


@pytest.fixture
def fused_on_meta(monkeypatch):
    """The fused update has no shapes-only version in torch; it changes its arguments and returns nothing."""
    library = torch.library.Library("aten", "IMPL", "Meta")
    for name in ("_fused_adamw_", "_fused_adamw_.tensor_lr"):
        library.impl(name, lambda *_, **__: None)
    adam = sys.modules["torch.optim.adam"]
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_: None)
    yield
    library._destroy()


def state_on_meta(shards, *overrides: str) -> TrainState:
    config, ranks = shards.config_with(*overrides), Ranks(0, 1, META)
    data = family_of(config).open_data(config, shards.folder, ranks)
    state = TrainState(config, data, ranks)
    state.family.begin(data, {}, SILENT)
    return state


def steps_on_meta(state: TrainState, monkeypatch) -> list[int]:
    """Runs all of its steps. Returns how many tensors came to the host at each transfer."""
    transfers: list[int] = []

    def came(tensors: list[Tensor]) -> list[Tensor]:
        transfers.append(len(tensors))
        return [torch.ones(tensor.shape, dtype=tensor.dtype) for tensor in tensors]

    monkeypatch.setattr(devices, "fetched", came)
    monkeypatch.setattr(loop, "_save", lambda *_, **__: None)
    saving = Saving(Path(), state, None, SILENT)
    run = loop._Run(None, state, None, SILENT, log.SideWork(SILENT), saving)
    loop._run_steps(run, StopRequest(), state.config.train.steps)
    assert state.step == state.config.train.steps
    return transfers


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_flow_steps_without_a_wait_and_looks_once_in_log_every(tiny_shards, monkeypatch, fused_on_meta, optimizer):
    overrides = ("train.steps=4", "train.log_every=2", "checkpoint.every=4", f"train.optimizer={optimizer}")
    state = state_on_meta(tiny_shards, *overrides, "model.depth=1", "train.accumulate=2", "ema.averages=[0.1]")
    assert len(steps_on_meta(state, monkeypatch)) == 2


def test_drifting_steps_without_a_wait(class_shards, monkeypatch, fused_on_meta):
    state = state_on_meta(class_shards, "train.log_every=3", "train.eval_every=0", "checkpoint.every=6")
    assert len(steps_on_meta(state, monkeypatch)) == 2


def test_a_wait_in_a_step_would_be_found(tiny_shards, monkeypatch, fused_on_meta):
    state = state_on_meta(tiny_shards)
    loss = state.family.loss

    def asked(*arguments):
        found = loss(*arguments)
        float(found.mean.detach())
        return found

    state.family = replace(state.family, loss=asked)
    with pytest.raises(RuntimeError, match="meta"):
        steps_on_meta(state, monkeypatch)


class WithoutFloat64(TorchDispatchMode):
    """A device as Apple's, which has no float64: here it is `meta`."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        found = function(*arguments, **(keywords or {}))
        for made in tree_leaves(found):
            if isinstance(made, Tensor) and made.device == META and made.dtype == torch.float64:
                raise TypeError(f"{function}: this device has no float64")
        return found


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.optimizer=muon", "model.positions=rope", "model.qk_norm=true", "ema.averages=[0.1]"),
        ("model.patch_fusion=added", "repa.weight=0.5", "flow.shift=per-bucket", "train.schedule=wsd"),
    ],
)
def test_the_flow_computes_nothing_on_the_device_in_float64(tiny_shards, monkeypatch, fused_on_meta, overrides):
    state = state_on_meta(tiny_shards, "train.steps=4", "train.log_every=2", *overrides)
    with WithoutFloat64():
        steps_on_meta(state, monkeypatch)


def test_drifting_computes_nothing_on_the_device_in_float64(class_shards, monkeypatch, fused_on_meta):
    state = state_on_meta(class_shards, "train.steps=2", "train.log_every=2", "train.eval_every=0")
    with WithoutFloat64():
        steps_on_meta(state, monkeypatch)


def test_float64_in_a_step_would_be_found(tiny_shards, monkeypatch, fused_on_meta):
    state = state_on_meta(tiny_shards)
    loss = state.family.loss

    def wider(*arguments):
        found = loss(*arguments)
        found.mean.double()
        return found

    state.family = replace(state.family, loss=wider)
    with WithoutFloat64(), pytest.raises(TypeError, match="no float64"):
        steps_on_meta(state, monkeypatch)


def test_tensors_of_all_kinds_come_to_the_host_as_they_are():
    """In one copy. The device is played by tensors that say so."""
    torch.manual_seed(0)
    tensors = [torch.randn(()), torch.tensor([True, False, True]), torch.randn(3, 5).double(), torch.arange(7)]
    copies = []

    class Elsewhere(Tensor):
        device = torch.device("cuda")

        def cpu(self):
            copies.append(self)
            return self.as_subclass(Tensor)

    found = devices.fetched([*(tensor.as_subclass(Elsewhere) for tensor in tensors), tensors[0]])
    assert len(copies) == 1
    for came, tensor in zip(found, [*tensors, tensors[0]], strict=True):
        assert came.dtype == tensor.dtype and torch.equal(came, tensor)


# What is found at the next look


@pytest.fixture
def as_on_gpu(monkeypatch):
    """Looks only when something is due."""
    monkeypatch.setattr(loop, "looking_is_free", lambda _device: False)


@pytest.mark.row(62)
@pytest.mark.parametrize("more", [(), ("train.optimizer=muon",), ("ema.averages=[0.1]",)])
def test_what_is_not_finite_reaches_nothing_and_is_named_at_the_next_look(
    tiny_shards, tmp_path, monkeypatch, poisoned, as_on_gpu, more
):
    """The steps after it are those of a run that looks at each step and leaves the same one out."""
    config = tiny_shards.config_with("train.skip_nonfinite=1", "train.log_every=4", "checkpoint.every=8", *more)
    named = poisoned(2)
    ended = train(config, tiny_shards.folder, tmp_path / "seldom")
    rows = read_log(tmp_path / "seldom")
    assert [(row["step"], row["not_finite"]) for row in rows if "not_finite" in row] == [(2, [named[0]])]
    assert [row["step"] for row in rows if "loss" in row] == [4, 8]
    assert ended is not None and ended.loss == ended.loss  # not NaN
    monkeypatch.setattr(loop, "looking_is_free", lambda _device: True)
    train(config, tiny_shards.folder, tmp_path / "always")
    seldom, always = final_state(tmp_path / "seldom"), final_state(tmp_path / "always")
    assert_same_bits(seldom, always)
    assert seldom["skipped_updates"] == 1
    if "snapshots" in seldom:
        for name, weights in seldom["snapshots"]["weights"].items():
            for key, tensor in weights.items():
                assert torch.isfinite(tensor).all() and torch.equal(tensor, always["snapshots"]["weights"][name][key])


@pytest.mark.row(62)
def test_no_checkpoint_is_written_behind_a_step_that_ends_the_run(family_shards, tmp_path, poisoned, as_on_gpu):
    named = poisoned(3)
    config = family_shards.config_with("train.log_every=100", "checkpoint.every=2")
    with pytest.raises(NonFiniteError, match=r"step 3: loss nan") as stopped:
        train(config, family_shards.folder, tmp_path / "run")
    assert stopped.value.samples == named
    assert load_checkpoint(resolve_checkpoint(tmp_path / "run"))["step"] == 2
