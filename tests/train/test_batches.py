"""A budget of latent tokens instead of a batch size: sizes by bucket, and a step that still is the mean over its
samples.
"""

from __future__ import annotations

import shutil

import pytest
import torch

from dittool.ckpt.load import load_checkpoint
from dittool.config.load import load_config
from dittool.data.provenance import Provenance
from dittool.data.shards.read import ShardSet
from dittool.errors import UsageError
from dittool.families import flow
from dittool.families.flow import training_stream
from dittool.train import loop
from dittool.train.distributed import Ranks
from dittool.train.estimate import estimate
from dittool.train.loop import train
from tests.run_states import fresh_state

BUDGET = ("train.tokens_per_batch=130", "train.accumulate=2")  # two samples of 64 latent tokens, one of 70


@pytest.fixture(scope="module")
def budgeted(tiny_shards):
    """Configuration, stream and state of a budgeted run."""
    state = fresh_state(tiny_shards.config_with(*BUDGET), tiny_shards.folder)
    return state.config, state.data.stream, state


def test_a_batch_holds_the_samples_that_the_budget_has_room_for(budgeted):
    _, stream, state = budgeted
    assert stream.plan.sizes["128x128"] == 2 and set(stream.plan.sizes.values()) == {1, 2}
    for number in range(12):
        batch = stream[number]
        rows, columns = state.model.token_grid(batch.latents)
        assert len(batch.ids) * rows * columns <= 130 < (len(batch.ids) + 1) * rows * columns


def test_a_step_of_unequal_batches_is_the_mean_over_its_samples(budgeted):
    _, stream, state = budgeted
    number = next(n for n in range(0, 100, 2) if len(stream[n].ids) != len(stream[n + 1].ids))
    batches = [stream[number], stream[number + 1]]
    assert sum(batch.weight for batch in batches) == pytest.approx(1)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    per_sample = torch.cat([flow.loss(state.data, state.forward, batch).per_sample for batch in batches])
    gradients = torch.autograd.grad(per_sample.mean(), list(state.model.parameters()))
    norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients))
    figures = loop.train_step(state, iter(batches))
    assert float(figures.loss) == pytest.approx(float(per_sample.mean()), rel=1e-5)
    assert float(figures.grad_norm) == pytest.approx(float(norm), rel=1e-5)


def test_a_budgeted_run_counts_its_samples_and_resumes_exactly(tiny_shards, tmp_path):
    config = tiny_shards.config_with(*BUDGET)
    train(config, tiny_shards.folder, tmp_path / "whole")
    whole = load_checkpoint(tmp_path / "whole" / "checkpoints" / "checkpoint_final.pt")
    parts = shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for path in [*parts.glob("checkpoints/*final*"), *parts.glob("checkpoints/*0006*")]:
        path.unlink()
    train(config, tiny_shards.folder, parts, resume=True)
    resumed = load_checkpoint(parts / "checkpoints" / "checkpoint_final.pt")
    assert resumed["samples_seen"] == whole["samples_seen"] and 8 * 2 < whole["samples_seen"] < 8 * 4
    assert all(torch.equal(resumed["model"][name], whole["model"][name]) for name in whole["model"])


def test_the_plan_of_a_budgeted_run_says_the_batch_of_each_bucket(tiny_shards):
    plan = estimate(tiny_shards.config_with(*BUDGET), tiny_shards.folder)
    batches = {bucket.name: bucket.batch for bucket in plan.buckets}
    assert batches["128x128"] == 2 and 2 < plan.samples_per_step < 4
    assert plan.epochs == pytest.approx(
        plan.steps * plan.samples_per_step / sum(bucket.samples for bucket in plan.buckets)
    )


def test_exactly_one_of_size_and_budget(tmp_path):
    assert load_config("nano", ["train.tokens_per_batch=8192"]).train.batch_size is None
    assert load_config("nano", ["train.tokens_per_batch=8192", "train.batch_size=4"]).train.tokens_per_batch is None
    with pytest.raises(UsageError, match="batch_multiple has no effect without tokens_per_batch"):
        load_config("nano", ["train.batch_multiple=4"])
    (tmp_path / "both.toml").write_text('base = "nano"\n[train]\nbatch_size = 2\ntokens_per_batch = 4096\n')
    with pytest.raises(UsageError, match="exactly one of batch_size and tokens_per_batch"):
        load_config(str(tmp_path / "both.toml"))
    (tmp_path / "one.toml").write_text('base = "nano"\n[train]\ntokens_per_batch = 4096\n')
    assert load_config(str(tmp_path / "one.toml")).train.batch_size is None


def test_a_change_from_size_to_budget_is_named_by_one_key(tiny_run, tiny_shards, tmp_path):
    out = shutil.copytree(tiny_run, tmp_path / "run")
    for path in out.glob("checkpoints/*final*"):
        path.unlink()
    config = tiny_shards.config_with("train.tokens_per_batch=256")
    with pytest.raises(UsageError, match=r"train\.batch_size: None here, 4 there"):
        train(config, tiny_shards.folder, out, resume=True)
    assert train(config, tiny_shards.folder, out, resume=True, named_changes=["train.tokens_per_batch"]).step == 8


def test_sizes_are_multiples_that_divide_among_processes(tiny_shards):
    config = tiny_shards.config_with("train.tokens_per_batch=400", "train.batch_multiple=4")
    shards = ShardSet.open(tiny_shards.folder)
    refs = shards.split("train")
    provenance = Provenance.of(shards, refs, config)
    assert set(
        training_stream(config, shards, refs, provenance, Ranks(1, 4, torch.device("cpu"))).plan.sizes.values()
    ) == {4}
    with pytest.raises(UsageError, match="do not divide among 3") as message:
        training_stream(config, shards, refs, provenance, Ranks(1, 3, torch.device("cpu")))
    assert "train.batch_multiple" in message.value.hint
