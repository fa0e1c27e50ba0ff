"""Losses by mode and timestep, and what each condition changes, on velocities that are known in closed form."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from dittool.ckpt.files import resolve_checkpoint
from dittool.data.shards.index import HOLDOUT, TRAIN
from dittool.data.shards.read import ShardSet
from dittool.errors import BadDataError
from dittool.models.dit import DiT
from dittool.objective.flow import MODES
from dittool.sampling.pipeline import Pipeline
from dittool.validate import mode_losses
from dittool.validate.mode_losses import QUANTILES, measure_modes
from tests.validate.oracle import judge, trial_of


class Known(DiT):
    """v = (z − guess) / t: with the true guess this is the true velocity, and its error is |guess − x0|² / t².

    `offsets[mode]` is what a sample's guess is off by, everywhere, and `others[mode]` what another sample's conditions
    add to that.
    """

    def __init__(self, config, latents, offsets, others=None):
        super().__init__(config)
        self.latents, self.offsets, self.others = latents, offsets, others or {}

    def context(self, conditions, kept, batch, token_grid):
        branches = conditions.cls.unflatten(0, (6, -1))
        self.own = (branches == branches[:1]).all(dim=2).flatten()
        return kept

    def keys_values(self, context):
        return []

    def velocity(self, z, t, context, keys_values=None):
        modes = context.text.int() + 2 * context.reference.int()  # as in MODES
        offset = torch.tensor([self.offsets[mode] for mode in MODES])[modes]
        offset = offset + torch.tensor([self.others.get(mode, 0.0) for mode in MODES])[modes] * ~self.own
        return (z - self.truths_of(z)) / t[:, None, None, None] - offset[:, None, None, None]

    def truths_of(self, z):
        """Repeated latents of the batch that is measured, whatever its split."""
        rows = self.latents[tuple(z.shape[2:])]
        return rows.repeat(len(z) // len(rows), 1, 1, 1)


@pytest.fixture
def measured(drawn, oracle):
    """Measures a model whose velocity is off by `offsets[mode]`, on the judged samples of one bucket."""

    def measure(others=None, **offsets):
        pipeline, shards = oracle(), drawn[0]
        bucket, count = Counter(ref.bucket for ref in shards.split(HOLDOUT)).most_common(1)[0]
        refs = [ref for ref in shards.split(HOLDOUT) if ref.bucket == bucket]
        assert count > 1
        latents = torch.stack(
            [pipeline.data.norm.apply(torch.from_numpy(shards.read(ref).latent).float()) for ref in refs]
        )
        pipeline.model = Known(pipeline.model.config, {tuple(latents.shape[2:]): latents}, offsets, others)
        return measure_modes(trial_of(pipeline, shards), {HOLDOUT: refs})

    return measure


def test_the_loss_of_each_mode_is_the_square_of_its_velocity_error(measured):
    found = measured(none=0.5, text_only=0.3, reference_only=0.2, both=0.0)
    assert found.judged.mean("both") == pytest.approx(0, abs=1e-4)
    for mode, expected in (("none", 0.25), ("text_only", 0.09), ("reference_only", 0.04)):
        assert found.judged.by_timestep[mode] == pytest.approx([expected] * len(QUANTILES), rel=1e-2)


def test_modes_are_compared_at_identical_noise(measured):
    found = measured({"text_only": 0.2, "reference_only": 0.5}, none=0.0, text_only=0.3, reference_only=-0.1, both=0.0)
    velocity = [found.effects["divergence"][i] / 0.4 for i in range(len(QUANTILES))]  # 1 / rms of the true velocity
    assert found.effects["text"] == pytest.approx([0.2 * v for v in velocity], rel=1e-3)
    assert found.effects["reference"] == pytest.approx([0.5 * v for v in velocity], rel=1e-3)
    assert all(0.4 < 1 / v < 3 for v in velocity)


def test_what_only_the_presence_of_a_condition_changes_is_no_effect(measured):
    found = measured({"reference_only": 0.1}, none=0.2, text_only=0.9, reference_only=0.0, both=0.0)
    assert found.effect("text") == 0 < found.effect("reference")


def test_a_sample_alone_in_its_bucket_has_nothing_to_be_exchanged_with(drawn, oracle):
    shards, ref = drawn[0], drawn[0].split(HOLDOUT)[0]
    found = measure_modes(trial_of(oracle(), shards), {HOLDOUT: [ref]})
    assert found.effect("text") is None and found.judged.mean("both") > 0


def test_timesteps_are_quantiles_of_the_training_distribution(measured):
    times = measured(none=0, text_only=0, reference_only=0, both=0).timesteps
    assert len(times) == 9 and times == sorted(times)
    assert times[4] == pytest.approx(0.5), "the median of the logit-normal"
    assert times[0] == pytest.approx(torch.sigmoid(torch.tensor(-1.28155)).item(), abs=1e-3)


def test_an_untrained_model_has_the_loss_of_the_target_and_no_effects(drawn, oracle, tmp_path):
    done = judge(oracle(), drawn[0], tmp_path, tests=["mode_losses"], limit=4)
    part = json.loads((tmp_path / "results.json").read_text())["mode_losses"]
    assert part == json.loads(json.dumps(done.results["mode_losses"]))
    assert set(part["splits"]) == {HOLDOUT, TRAIN} and part["split"] == HOLDOUT
    assert {part["splits"][split]["samples"] for split in part["splits"]} == {4}
    assert len(set(part["loss"].values())) == 1 and part["loss"]["both"] > 1, (
        "the output layer is zero: every mode misses the whole target"
    )
    assert part["effect"] == {"text": None, "reference": None, "divergence": None}


def test_the_loss_ratio_tells_what_was_learned_by_heart(drawn, oracle, monkeypatch):
    pipeline, shards = oracle(), drawn[0]
    refs = {
        split: [ref for ref in shards.split(split) if ref.bucket == shards.split(HOLDOUT)[0].bucket][:2]
        for split in (HOLDOUT, TRAIN)
    }
    latents = {
        split: torch.stack(
            [pipeline.data.norm.apply(torch.from_numpy(shards.read(ref).latent).float()) for ref in refs[split]]
        )
        for split in refs
    }
    pipeline.model = Known(pipeline.model.config, {}, dict.fromkeys(MODES, 0.1))
    order = iter([split for split in refs for _ in range(1 * len(QUANTILES))])

    def truths(z):
        rows = latents[next(order)]
        off = 1.0 if torch.equal(rows, latents[HOLDOUT]) else 0.0  # knows the training images, misses the others
        return (rows + off).repeat(len(z) // len(rows), 1, 1, 1)

    monkeypatch.setattr(pipeline.model, "truths_of", truths)
    found = measure_modes(trial_of(pipeline, shards), refs)
    assert found.splits[TRAIN].mean("none") == pytest.approx(0.01, rel=0.05)
    assert found.ratio("none") > 50 and found.ratio("both") > 50


def test_without_a_second_split_there_is_no_ratio(measured):
    assert measured(none=0.5, text_only=0.3, reference_only=0.2, both=0.1).ratio("both") is None


def test_a_velocity_that_is_not_finite_is_an_error(measured):
    with pytest.raises(BadDataError, match="NaN"):
        measured(none=float("nan"), text_only=0, reference_only=0, both=0)


def test_measuring_repeats_itself(measured):
    offsets = {"none": 0.5, "text_only": 0.3, "reference_only": 0.2, "both": 0.1}
    assert measured(**offsets) == measured(**offsets)


def test_few_samples_at_a_time_have_the_losses_of_many(tiny_run, tiny_shards, monkeypatch):
    """Where keys and values of all branches would fill the memory of a device."""
    pipeline, shards = Pipeline.load(resolve_checkpoint(tiny_run)), ShardSet.open(tiny_shards.folder)
    refs, times = shards.split(TRAIN)[:4], torch.tensor([0.3, 0.7])
    together, rows = mode_losses.sample_losses(pipeline, shards, refs, times), []
    real = mode_losses._measure_samples

    def counted(pipeline, latents, *rest):
        rows.append(len(latents))
        return real(pipeline, latents, *rest)

    monkeypatch.setattr(mode_losses, "_KEYS_VALUES", 1)
    monkeypatch.setattr(mode_losses, "_measure_samples", counted)
    torch.testing.assert_close(mode_losses.sample_losses(pipeline, shards, refs, times), together)
    assert rows == [1] * 4
