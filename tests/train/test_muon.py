"""Muon: what it computes, what a checkpoint keeps of it, and how a run comes to it."""

from __future__ import annotations

import json

import pytest
import torch

from dittool.ckpt.files import resolve_checkpoint
from dittool.ckpt.load import load_checkpoint
from dittool.config.load import load_config
from dittool.errors import UsageError
from dittool.train.distributed import Ranks
from dittool.train.loop import train
from dittool.train.muon import Muon, orthogonal
from tests.run_states import assert_same_bits, final_state, stopped_at

SHAPES = [(24, 8), (8, 24), (16, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one_and_directions_stay(shape):
    matrix = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix[0], full_matrices=False)
    found = orthogonal(matrix)[0]
    brought = torch.diagonal(left.T @ found @ right.T)
    assert values.max() / values.min() > 2 and 0.6 < brought.min() <= brought.max() < 1.3
    torch.testing.assert_close(found, left @ torch.diag(brought) @ right, atol=1e-4, rtol=0)


def test_matrices_of_one_shape_are_made_orthogonal_each_by_itself():
    many = torch.randn(5, 6, 9)
    alone = torch.cat([orthogonal(matrix[None]) for matrix in many])
    torch.testing.assert_close(orthogonal(many), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_updates_are_those_of_torch_but_for_its_bf16(shape):
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.9)
    muon = Muon({"w": ours}, 0.9, 0.1, Ranks(0, 1, torch.device("cpu")))
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        muon.step(0.02, torch.tensor(True))
        reference.step()
    assert (ours - theirs).norm() < 0.02 * (theirs - 1).norm()


def test_processes_share_the_matrices_out():
    gradients = {str(number): torch.randn(6, 4) for number in range(3)}
    computed = []

    class OneOfTwo(Ranks):
        def gather(self, values):
            computed.append(values)
            return torch.cat([values, values])

    for rank in range(2):
        matrices = {name: torch.nn.Parameter(torch.zeros(6, 4)) for name in gradients}
        for name, matrix in matrices.items():
            matrix.grad = gradients[name]
        Muon(matrices, 0.95, 0.0, OneOfTwo(rank, 2, torch.device("cpu"))).step(0.1, torch.tensor(True))
    assert [len(part) for part in computed] == [2, 2]  # of three, and nothing in the last place
    alone = orthogonal(torch.stack(list(gradients.values())))
    torch.testing.assert_close(torch.cat(computed)[:3], alone, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def with_muon(family_shards, tmp_path_factory):
    """(The configuration, a run of it to the end.)"""
    config = family_shards.config_with("train.optimizer=muon")
    out = tmp_path_factory.mktemp("muon") / "run"
    train(config, family_shards.folder, out)
    return config, out


def test_a_run_resumes_to_the_same_bits(with_muon, family_shards, tmp_path):
    config, run = with_muon
    out = stopped_at(run, 3, tmp_path / "run")
    train(config, family_shards.folder, out, resume=True)
    assert_same_bits(final_state(run), final_state(out))


def test_only_matrices_of_the_blocks_are_updated_by_it(with_muon):
    state = final_state(with_muon[1])
    momentum = state["optimizer"]["muon"]["momentum"]
    assert momentum and all(name.startswith("blocks.") and "modulation" not in name for name in momentum)
    assert all(state["model"][name].shape == part.shape for name, part in momentum.items())
    assert len(state["optimizer"]["state"]) + len(momentum) == len(state["model"])


def test_the_rules_on_checkpoints_know_it(with_muon, dit):
    shown = dit("audit", with_muon[1], "--select", "K2,K4,K5,K6,C5", "--json")
    statuses = {row["code"]: row["status"] for row in json.loads(shown.out)["findings"]}
    assert statuses["K5"] == statuses["K6"] == statuses["C5"] == "pass"
    assert set(statuses.values()) <= {"pass", "skip"}


def test_a_run_of_adamw_goes_on_with_muon_where_that_is_named(family_run, family_shards, tmp_path, listener):
    out = stopped_at(family_run, 3, tmp_path / "run")
    config = family_shards.config_with("train.optimizer=muon")
    with pytest.raises(UsageError, match=r"train\.optimizer"):
        train(config, family_shards.folder, out, resume=True)
    train(config, family_shards.folder, out, resume=True, named_changes=["train.optimizer"], talk=listener)
    assert any("train.optimizer" in note for note in listener.notes)
    assert final_state(out)["step"] == 8 and "muon" in final_state(out)["optimizer"]


def test_first_moments_of_adamw_become_the_momentum(family_run, family_shards, tmp_path):
    out = stopped_at(family_run, 3, tmp_path / "run")
    means = [part["exp_avg"] for part in load_checkpoint(resolve_checkpoint(out))["optimizer"]["state"].values()]
    config = family_shards.config_with("train.optimizer=muon", "train.muon_momentum=0.9999999", "train.steps=4")
    train(config, family_shards.folder, out, resume=True, named_changes=["train.optimizer", "train.steps"])
    for part in final_state(out)["optimizer"]["muon"]["momentum"].values():
        assert any(mean.shape == part.shape and torch.allclose(mean, part, atol=1e-6) for mean in means)


def test_a_run_of_muon_does_not_go_on_with_adamw(with_muon, family_shards, tmp_path):
    out, config = stopped_at(with_muon[1], 3, tmp_path / "run"), family_shards.config_with()
    with pytest.raises(UsageError, match="keeps no second moments"):
        train(config, family_shards.folder, out, resume=True, named_changes=["train.optimizer"])


def test_its_keys_have_values_only_where_it_acts():
    assert load_config("demo", ["train.optimizer=muon"]).train.muon_lr == 0.02
    assert load_config("nano").train.muon_lr is None
    with pytest.raises(UsageError, match='muon_lr has no effect without optimizer = "muon"'):
        load_config("nano", ["train.muon_lr=0.1"])


def test_other_weights_halve_its_rate_too(with_muon, family_shards, tmp_path):
    config, run = with_muon
    train(config, family_shards.folder, tmp_path / "run", init=run)
    resolved = load_config(str(tmp_path / "run" / "resolved.toml")).train
    assert (resolved.muon_lr, resolved.lr) == (0.01, config.train.lr / 2)
