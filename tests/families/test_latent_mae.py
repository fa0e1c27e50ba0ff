"""The feature encoder that is trained for itself: it learns, resumes to the bit, is read as safely as any checkpoint,
and gives a one-step generator its features.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dittool.ckpt.run_log import read_log
from dittool.config.load import load_config
from dittool.data.provenance import Provenance
from dittool.data.shards.index import TRAIN
from dittool.data.shards.read import ShardSet
from dittool.encoders.drift_features import DriftFeatures
from dittool.errors import BadDataError, UnsafeFileError, UsageError
from dittool.families.latent_mae import hidden_patches, load_encoder, open_data, restored
from dittool.models.build import build_mae, parameter_count
from dittool.models.latent_mae import LatentMAE, LatentMAEConfig
from dittool.train.distributed import Ranks
from dittool.train.loop import train
from tests.run_states import assert_same_bits, final_state, same_tensors, stopped_at

ALONE = Ranks(0, 1, torch.device("cpu"))
SMALL = (
    "model.width=16",
    "model.depth=1",
    "model.levels=2",
    "model.input=4x4",
    'data.buckets=["32x32"]',
    "train.steps=6",
    "train.batch_size=8",
    "train.warmup_steps=1",
    "train.log_every=2",
    "train.eval_every=3",
    "checkpoint.every=2",
    "checkpoint.keep=9",
)


def config(*overrides: str):
    return load_config("drift-mae-demo", [*SMALL, *overrides])


@pytest.fixture(scope="module")
def mae_run(class_shards, tmp_path_factory) -> Path:
    """The folder of a run of six steps. Read only."""
    out = tmp_path_factory.mktemp("mae") / "run"
    train(config(), class_shards.folder, out)
    return out


def drifting(class_shards, run: Path, *overrides: str):
    return class_shards.config_with("drift.encoder=mae", f"drift.encoder_run={run}", *overrides)


def test_a_run_tells_what_is_filled_in_and_named(mae_run):
    rows = read_log(mae_run)
    assert [row["step"] for row in rows if "eval_filled_in" in row and "eval_named" in row] == [3, 6]
    assert {"loss_filled", "named"} <= rows[-1].keys()


def test_a_resumed_run_ends_with_the_same_bits(mae_run, class_shards, tmp_path):
    out = stopped_at(mae_run, 2, tmp_path / "run")
    train(config(), class_shards.folder, out, resume=True)
    assert_same_bits(final_state(mae_run), final_state(out))


def test_workers_change_no_bit_and_the_seed_does(mae_run, class_shards, tmp_path):
    train(config("train.workers=1"), class_shards.folder, tmp_path / "workers")
    assert same_tensors(final_state(mae_run)["model"], final_state(tmp_path / "workers")["model"])


@pytest.mark.parametrize(
    "override", ["mae.masked=0.25", "mae.noise=0.0", "mae.class_weight=0.5", "mae.patch_size=1", "train.seed=1"]
)
def test_a_key_changes_what_is_learned(override, mae_run, class_shards, tmp_path):
    train(config(override, "train.eval_every=0"), class_shards.folder, tmp_path / "run")
    assert not same_tensors(final_state(mae_run)["model"], final_state(tmp_path / "run")["model"])


def test_two_processes_share_the_batch_of_one(class_shards):
    """Their parts are its samples, with the same noise and the same hidden patches."""
    from dittool.families import latent_mae

    whole = next(latent_mae.batches(open_data(config(), class_shards.folder, ALONE), 3, 4))
    ranks = [Ranks(rank, 2, torch.device("cpu")) for rank in (0, 1)]
    parts = [next(latent_mae.batches(open_data(config(), class_shards.folder, each), 3, 4)) for each in ranks]
    for name in ("latents", "noisy", "hidden", "labels"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    with pytest.raises(UsageError, match=r"train\.batch_size 8 does not divide into 3 processes"):
        open_data(config(), class_shards.folder, Ranks(0, 3, torch.device("cpu")))


def test_what_is_hidden_does_not_reach_it_and_each_depth_has_a_map():
    encoder, x = LatentMAE(LatentMAEConfig(16, 3, 1, 4, 5)), torch.randn(2, 4, 8, 8)
    hidden = hidden_patches(x, 2, 0.75, torch.Generator().manual_seed(0))
    assert hidden.shape == (2, 1, 8, 8) and hidden.sum(dim=(1, 2, 3)).tolist() == [48, 48]
    assert torch.equal(hidden[..., ::2, ::2], hidden[..., 1::2, 1::2])
    filled, logits = encoder(x, hidden)
    assert filled.shape == x.shape and logits.shape == (2, 5)
    assert torch.equal(filled, encoder(torch.where(hidden, 100.0, x), hidden)[0])
    assert not torch.equal(filled, encoder(torch.where(hidden, x, 100.0), hidden)[0])
    assert [tuple(each.shape[1:]) for each in encoder.maps(x)] == [(16, 8, 8), (16, 4, 4), (16, 2, 2)]
    kinds = DriftFeatures(["locations"], encoder)(x)
    assert list(kinds) == ["locations1", "locations2", "locations3"]


def separation(encoder, latents: torch.Tensor, labels: torch.Tensor) -> float:
    """Fisher's ratio of the deepest map's mean: variance between classes over variance within."""
    points = DriftFeatures(["moments"], encoder)(latents)["moments2"][:, 0]
    centres = torch.stack([points[labels == label].mean(dim=0) for label in labels])
    return float(centres.var(dim=0).sum() / (points - centres).square().mean(dim=0).sum())


def test_a_trained_encoder_separates_drawn_classes_better_than_a_random_one(class_shards, tmp_path):
    wanted = config("train.steps=60", "train.batch_size=32", "train.eval_every=0")
    train(wanted, class_shards.folder, tmp_path / "run")
    data = open_data(wanted, class_shards.folder, ALONE)
    numbers = range(len(data.samples))
    latents, labels = data.samples.latents(torch.tensor(numbers)), torch.tensor([*map(data.samples.label, numbers)])
    torch.manual_seed(0)
    trained, random = restored(load_encoder(tmp_path / "run", data.provenance, 16)), build_mae(wanted)
    ratios = [separation(each, latents, labels) for each in (trained, random)]
    assert ratios[0] > 1.5 * ratios[1], ratios


def test_a_generator_takes_it_keeps_it_and_needs_its_run_no_more(mae_run, class_run, class_shards, tmp_path):
    from dittool.ckpt.files import list_checkpoints

    source = tmp_path / "mae"
    source.symlink_to(mae_run)
    wanted = drifting(class_shards, source)
    train(wanted, class_shards.folder, tmp_path / "run")
    ended = final_state(tmp_path / "run")
    assert same_tensors(ended["mae"]["weights"], final_state(mae_run)["ema"])
    assert not same_tensors(ended["model"], final_state(class_run)["model"])
    assert list_checkpoints(tmp_path / "run/checkpoints")
    source.unlink()
    out = stopped_at(tmp_path / "run", 2, tmp_path / "again")
    train(wanted, class_shards.folder, out, resume=True)
    assert_same_bits(ended, final_state(out))


def test_an_encoder_that_does_not_serve_is_refused_with_both_sides(mae_run, class_run, class_shards, tmp_path):
    with pytest.raises(UsageError, match="no such run or checkpoint") as missing:
        train(drifting(class_shards, tmp_path / "none"), class_shards.folder, tmp_path / "run")
    assert "dit train --preset drift-mae" in missing.value.hint
    with pytest.raises(UsageError, match="a one-step generator"):
        train(drifting(class_shards, class_run), class_shards.folder, tmp_path / "run")
    with pytest.raises(BadDataError, match="trained on latents of"):
        other = drifting(class_shards, mae_run, "data.latent_scaling=card")
        train(other, class_shards.folder, tmp_path / "run")
    harmful = tmp_path / "harmful.pt"
    torch.save({"config": Path("x")}, harmful)
    shards = ShardSet.open(class_shards.folder)
    provenance = Provenance.of(shards, shards.split(TRAIN), config())
    with pytest.raises(UnsafeFileError):
        load_encoder(harmful, provenance, 16)


def test_the_encoder_of_the_paper_presets_has_width_640():
    wanted = load_config("drift-mae")
    assert wanted.model.width == 640 and wanted.model.channels == 4
    assert parameter_count(lambda: build_mae(wanted)) == 72_402_928
    for preset in ("drift-b2-paper", "drift-l2-paper"):
        assert load_config(preset).drift.encoder_run == "runs/drift-mae"
