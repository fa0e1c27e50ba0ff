"""The small encoder that is trained before the generator: it learns, it stays as it is, and a resumed run has the
same one.
"""

from __future__ import annotations

import json

import pytest
import torch

from dittool.ckpt.files import list_checkpoints
from dittool.ckpt.load import load_checkpoint
from dittool.ckpt.run_log import read_log
from dittool.data.provenance import Provenance
from dittool.data.shards.index import HOLDOUT, TRAIN
from dittool.data.shards.read import ShardSet
from dittool.families import drift
from dittool.families.drift_data import ClassSamples, LatentEvaluation
from dittool.families.feature_encoder import FeatureEncoder, hidden_patches, train_feature_encoder
from dittool.train.distributed import Ranks
from dittool.train.loop import train
from tests.run_states import final_state, same_tensors, stopped_at

TRAINED = (
    "drift.encoder=trained",
    "feature_encoder.width=8",
    "feature_encoder.steps=4",
    "feature_encoder.batch_size=8",
)
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def encoder_run(class_shards, tmp_path_factory):
    """The folder of a run whose features are a trained encoder's. Read only."""
    out = tmp_path_factory.mktemp("encoder_run") / "run"
    train(class_shards.config_with(*TRAINED), class_shards.folder, out)
    return out


def trained(class_shards, *overrides: str) -> FeatureEncoder:
    config, shards = class_shards.config_with(*TRAINED, *overrides), ShardSet.open(class_shards.folder)
    refs, held = shards.split(TRAIN), shards.split(HOLDOUT)
    norm = Provenance.of(shards, refs, config).norm
    judged = LatentEvaluation(config, ClassSamples(shards, held, norm, 0, partial=True))
    return train_feature_encoder(config, ClassSamples(shards, refs, norm, 0), judged, ALONE)


def test_training_fills_in_more_and_names_more_classes(class_shards):
    larger = ("feature_encoder.width=32", "feature_encoder.batch_size=32", "feature_encoder.lr=5e-3")
    short, long = (trained(class_shards, f"feature_encoder.steps={steps}", *larger) for steps in (1, 120))
    assert long.figures["filled_in"] > 0.3 > short.figures["filled_in"]
    assert long.figures["accuracy"] > 0.5 > short.figures["accuracy"]


def test_without_labels_no_class_is_learned_and_none_is_told_of(class_shards):
    found = trained(class_shards, "feature_encoder.labels=false", "feature_encoder.steps=30")
    assert set(found.figures) == {"filled_in"} and "class" not in found.line
    blank = trained(class_shards, "feature_encoder.labels=false", "feature_encoder.steps=1", "feature_encoder.lr=1e-12")
    # weight decay alone changes it
    assert torch.allclose(found.encoder.classify.weight, blank.encoder.classify.weight, atol=1e-3)
    assert not torch.allclose(found.encoder.fill.weight, blank.encoder.fill.weight, atol=1e-3)


def test_the_seed_of_the_run_decides_and_nothing_else(class_shards):
    torch.manual_seed(1)
    one = trained(class_shards)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, other = trained(class_shards), trained(class_shards, "train.seed=1")
    assert same_tensors(one.encoder.state_dict(), again.encoder.state_dict())
    assert not same_tensors(one.encoder.state_dict(), other.encoder.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_every_process_goes_on_with_the_first_ones_weights(monkeypatch):
    """Each trains its own, and two machines may round differently."""
    sent = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: sent.append((tensor.data_ptr(), src)))
    module = torch.nn.BatchNorm1d(2)
    ALONE.take_from_first(module)
    assert sent == []
    Ranks(1, 2, torch.device("cpu")).take_from_first(module)
    assert sent == [(tensor.data_ptr(), 0) for tensor in [*module.parameters(), *module.buffers()]]


def test_whole_patches_are_hidden_in_the_wanted_share():
    hidden = hidden_patches(torch.zeros(400, 4, 8, 6), 0.25, torch.Generator().manual_seed(0))
    assert hidden.shape == (400, 1, 8, 6) and abs(float(hidden.float().mean()) - 0.25) < 0.03
    assert torch.equal(hidden[:, :, ::2, ::2], hidden[:, :, 1::2, 1::2])


def test_a_run_tells_of_its_encoder_and_keeps_it(encoder_run):
    first = read_log(encoder_run)[0]
    assert first["step"] == 0 and {"feature_encoder_filled_in", "feature_encoder_accuracy"} <= first.keys()
    kept = [
        load_checkpoint(one.path)["feature_encoder"]["weights"] for one in list_checkpoints(encoder_run / "checkpoints")
    ]
    assert len(kept) > 1 and all(same_tensors(kept[0], other) for other in kept)  # nothing trains it further


def test_its_features_are_not_those_of_the_seeded_one(encoder_run, class_run):
    assert not same_tensors(final_state(encoder_run)["model"], final_state(class_run)["model"])


def test_a_resumed_run_trains_no_encoder_and_ends_with_the_same_bits(encoder_run, class_shards, tmp_path, monkeypatch):
    out = stopped_at(encoder_run, 2, tmp_path / "run")
    monkeypatch.setattr(drift, "train_feature_encoder", None)
    train(class_shards.config_with(*TRAINED), class_shards.folder, out, resume=True)
    whole, parts = final_state(encoder_run), final_state(out)
    assert same_tensors(whole["model"], parts["model"]) and same_tensors(whole["ema"], parts["ema"])
    assert same_tensors(whole["feature_encoder"]["weights"], parts["feature_encoder"]["weights"])
    assert whole["feature_encoder"]["figures"] == parts["feature_encoder"]["figures"]


def test_a_resumed_run_with_another_encoder_does_not(encoder_run, class_shards, tmp_path, monkeypatch):
    """The comparison above can fail, and what is asked for anew is made anew."""
    out = stopped_at(encoder_run, 2, tmp_path / "run")
    changed = "feature_encoder.steps=5"
    train(
        class_shards.config_with(*TRAINED, changed),
        class_shards.folder,
        out,
        resume=True,
        named_changes=["feature_encoder.steps"],
    )
    assert not same_tensors(final_state(encoder_run)["model"], final_state(out)["model"])
    assert not same_tensors(
        final_state(encoder_run)["feature_encoder"]["weights"], final_state(out)["feature_encoder"]["weights"]
    )


def test_the_command_says_what_the_encoder_learned(dit, class_shards, tmp_path):
    from dittool.config.load import config_to_toml

    (tmp_path / "preset.toml").write_text(config_to_toml(class_shards.config_with(*TRAINED)))
    outcome = dit(
        "train",
        "--no-audit",
        "--preset",
        tmp_path / "preset.toml",
        "--data",
        class_shards.folder,
        "--out",
        tmp_path / "run",
    )
    assert outcome.code == 0 and "of the variance of hidden patches filled in, the class of" in outcome.err
    again = dit(
        "train",
        "--no-audit",
        "--preset",
        tmp_path / "preset.toml",
        "--data",
        class_shards.folder,
        "--out",
        tmp_path / "other",
        "--json",
    )
    assert json.loads(again.out)["encoder"].keys() == {"filled_in", "accuracy"}


def test_a_checkpoint_with_an_encoder_is_audited_and_inspected_like_any_other(dit, encoder_run):
    assert dit("audit", encoder_run).code == 0
    outcome = dit("inspect-ckpt", encoder_run / "checkpoints/checkpoint_final.pt", "--tree")
    assert outcome.code == 0 and "feature_encoder" in outcome.out
