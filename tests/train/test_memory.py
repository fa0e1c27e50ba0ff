"""What a step of a preset holds in memory, counted without values."""

from __future__ import annotations

import pytest
import torch

from dittool.config.load import changed, load_config
from dittool.console import SILENT
from dittool.families.family import family_of
from dittool.train import memory
from dittool.train.distributed import Ranks
from dittool.train.estimate import memory_of_update
from dittool.train.state import TrainState
from tests.run_states import fresh_state


def opened(config, folder):
    """The data of a configuration on noise of its sizes, and one micro-batch."""
    family = family_of(config)
    config = family.cheap_begin(config)
    family.noise(config, folder)
    data = family.open_data(config, folder, Ranks(0, 1, torch.device("cpu")))
    family.begin(data, {}, SILENT)
    return config, data, next(family.batches(data, 0, 1))


@pytest.mark.parametrize(
    ("preset", "few"),
    [
        ("nano", 2),
        pytest.param("medium", 2, marks=pytest.mark.slow),
        pytest.param("nano-patches", 2, marks=pytest.mark.slow),
        pytest.param("base", 1, marks=pytest.mark.slow),
        pytest.param("large", 1, marks=pytest.mark.slow),
        pytest.param("drift-b2", 64, marks=pytest.mark.slow),
        pytest.param("drift-l2", 64, marks=pytest.mark.slow),
    ],
)
def test_the_estimate_of_a_preset_is_what_hooks_count_at_its_own_batch(preset, few, tmp_path):
    full = load_config(preset)
    config, data, example = opened(changed(full, {"train.batch_size": few, "train.workers": 0}, "few"), tmp_path / "s")
    estimated, size = memory.step_memory(config, data, example), full.train.batch_size
    counted = memory.counted_bytes(config, data, example, size // len(example)) + estimated.fixed
    assert estimated.of(size) == pytest.approx(counted, rel=0.1)


def test_counting_agrees_with_the_hooks_of_a_real_step(tiny_shards):
    state: TrainState = fresh_state(tiny_shards.config_with("train.batch_size=16"), tiny_shards.folder)
    batch = next(state.family.batches(state.data, 0, 1))
    counted = memory.step_memory(state.config, state.data, batch)
    real, _ = memory_of_update(state, batch)
    assert counted.of(16) == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_does_not_depend_on_the_batch_is_what_the_state_holds(tiny_shards, optimizer):
    config = tiny_shards.config_with(f"train.optimizer={optimizer}", "ema.averages=[0.1]")
    state = fresh_state(config, tiny_shards.folder)
    weights = sum(one.nbytes for one in state.model.parameters())
    assert memory.fixed_bytes(config, state.data) == 4 * weights + state.optimizer.bytes_of_state()


def test_recomputing_all_keeps_least_and_keeping_attention_lies_between(tiny_shards):
    each = {}
    for how in ("false", "true", "selective"):
        config = tiny_shards.config_with("model.depth=4", f"model.gradient_checkpointing={how}")
        state = fresh_state(config, tiny_shards.folder)
        example = next(state.family.batches(state.data, 0, 1))
        each[how] = memory.step_memory(config, state.data, example).per_sample
    assert each["true"] < each["selective"] < 0.7 * each["false"]


def test_a_card_takes_as_many_samples_as_its_bytes_allow():
    plan = memory.StepMemory(fixed=10_000_000_000, unscaled=1_000_000_000, per_sample=1_000_000_000)
    assert [plan.fitting(card) for card in (10, 24, 80)] == [0, 11, 62]
