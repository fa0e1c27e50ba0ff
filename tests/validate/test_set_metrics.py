"""Distances between sets of pictures: right on sets whose distance is known, and each under its own name."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from dittool.config.judging import Validate
from dittool.encoders.pretrained import torch_cached
from dittool.validate import perceptual
from dittool.validate.figures.distances import frechet
from dittool.validate.perceptual import INCEPTION, find_inception
from dittool.validate.set_metrics import bandwidth, measure_set, mmd, mmd_by_chance, mmd_error
from tests.validate.oracle import judge, trial_of


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def gaussian(generator, count, mean=0.0, scale=1.0, width=8):
    return torch.randn(count, width, generator=generator, dtype=torch.float64) * scale + mean


def test_two_sets_of_one_distribution_are_about_0_apart_and_shifted_ones_ever_further(generator):
    real = gaussian(generator, 300)
    values = [mmd(gaussian(generator, 300, mean=shift), real, bandwidth(real)) for shift in (0.0, 0.3, 1.0, 3.0)]
    assert abs(values[0]) < 5
    assert values[0] < values[1] < values[2] < values[3]
    assert values[3] > 300


def test_the_estimate_is_that_of_the_formula():
    x, y = torch.eye(3, dtype=torch.float64)[:2], torch.eye(3, dtype=torch.float64)[1:]
    k = math.exp(-2 / (2 * 0.5))  # between different unit vectors; the sets share one
    assert mmd(x, y, 0.5) == pytest.approx(1000 * (k + k - 2 * (3 * k + 1) / 4))


def test_length_does_not_matter_and_neither_does_order(generator):
    x, y = gaussian(generator, 40), gaussian(generator, 40, mean=0.5)
    assert mmd(3 * x, y, 0.4) == pytest.approx(mmd(x, y, 0.4))
    assert mmd(x.flip(0), y, 0.4) == pytest.approx(mmd(x, y, 0.4)) == pytest.approx(mmd(y, x, 0.4))


def test_the_bandwidth_is_half_the_median_squared_distance_of_the_data():
    corners = torch.eye(4)
    assert bandwidth(corners) == pytest.approx(1.0)


def test_the_range_of_chance_holds_real_sets_and_not_shifted_ones(generator):
    real = gaussian(generator, 80)
    width = bandwidth(real)
    low, high = mmd_by_chance(real, 40, width)
    fresh = [mmd(gaussian(generator, 40), gaussian(generator, 40), width) for _ in range(100)]
    assert 85 <= sum(low <= value <= high for value in fresh) <= 100
    assert low < 0 < high
    assert all(mmd(gaussian(generator, 40, mean=1.0), real[:40], width) > high for _ in range(10))


def test_the_range_of_chance_narrows_with_the_number_of_images_and_halves_are_scaled_to_the_whole(generator):
    real = gaussian(generator, 400)
    width = bandwidth(real)
    few, many = (np.ptp(mmd_by_chance(real, size, width)) for size in (20, 200))
    assert few == pytest.approx(10 * many, rel=0.3)
    assert np.ptp(mmd_by_chance(real[:200], 200, width)) == pytest.approx(many, rel=0.3), "there are only halves of 100"
    assert mmd_by_chance(real, 50, width) == mmd_by_chance(real, 50, width)


def test_the_standard_error_is_the_spread_over_repetitions(generator):
    width = bandwidth(gaussian(generator, 200))
    draws = [(gaussian(generator, 40, mean=0.7), gaussian(generator, 40)) for _ in range(150)]
    spread = np.std([mmd(x, y, width) for x, y in draws])
    assert np.mean([mmd_error(x, y, width) for x, y in draws]) == pytest.approx(spread, rel=0.25)


def test_the_standard_error_is_that_of_leaving_out_each_pair_in_turn(generator):
    x, y = gaussian(generator, 9), gaussian(generator, 9, mean=0.5)
    without = [mmd(torch.cat([x[:i], x[i + 1 :]]), torch.cat([y[:i], y[i + 1 :]]), 0.4) for i in range(9)]
    assert mmd_error(x, y, 0.4) == pytest.approx(
        math.sqrt(8 / 9 * sum((value - np.mean(without)) ** 2 for value in without))
    )


def test_frechet_is_that_of_two_gaussians(generator):
    x = gaussian(generator, 20000, width=4)
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)
    shifted = x + torch.tensor([3.0, 0, 0, 4.0])
    assert frechet(x, shifted) == pytest.approx(25, rel=1e-6)
    assert frechet(x, 2 * x) == pytest.approx(4, rel=0.05)  # (2 − 1)² for each of four dimensions


def test_set_metrics_are_measured_only_when_named_and_stand_under_their_own_names(drawn, oracle, tmp_path, monkeypatch):
    config = oracle().config
    monkeypatch.setattr("dittool.validate.set_metrics.FEWEST", 4)
    done = judge(oracle(), drawn[0], tmp_path / "named", tests=["set_metrics"])
    part = json.loads((tmp_path / "named" / "results.json").read_text())["set_metrics"]
    assert part["images"] == len(drawn[0].split("holdout")) and part["drawn_from"] == "captions"
    assert math.isfinite(part["mmd_dino"]) and math.isfinite(part["mmd_dino_other_images"])
    low, high = part["mmd_dino_chance"]
    assert low < high and part["mmd_dino_error"] > 0
    assert part["fid_torchvision"] is None and not any(name == "fid" or "cmmd" in name for name in part)
    assert "As a set" in done.report.read_text()
    assert "set_metrics" not in judge(oracle(), drawn[0], tmp_path / "default", limit=2).results
    assert config.validate_.set_images == Validate().set_images


def test_a_model_that_draws_noise_is_further_from_the_data_than_one_that_draws_scenes(drawn, oracle, monkeypatch):
    monkeypatch.setattr("dittool.validate.set_metrics.FEWEST", 4)
    shards, values = drawn[0], []
    for noisy in (False, True):
        model = oracle()
        if noisy:
            model.latents = lambda conditions, noise: noise * 3
        refs = shards.split("holdout")
        values.append(measure_set(trial_of(model, shards), refs, shards.split("train")[: len(refs)], None))
    assert values[1].mmd_dino > values[0].mmd_dino + 20
    assert [one.distinguishable for one in values] == [False, True] and values[0].mmd_dino_chance == values[
        1
    ].mmd_dino_chance


def test_too_few_images_give_no_figure(drawn, oracle):
    assert measure_set(trial_of(oracle(), drawn[0]), drawn[0].split("holdout")[:3], [], None) is None


def test_the_figure_is_said_with_its_spread(drawn, oracle, monkeypatch, listener):
    monkeypatch.setattr("dittool.validate.set_metrics.FEWEST", 4)
    found = measure_set(trial_of(oracle(), drawn[0], talk=listener), drawn[0].split("holdout"), [], None)
    assert f"± {found.mmd_dino_error:.2g}" in listener.notes[-1] and "apart by chance" in listener.notes[-1]


def test_there_is_no_fid_without_inceptions_published_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert find_inception() is None
    cached = torch_cached(INCEPTION)
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"of another network")
    assert find_inception() is None


def test_inception_from_the_cache_gives_its_pooled_features(tmp_path, monkeypatch):
    from dittool.encoders.torchvision_remedy import ensure_torchvision

    ensure_torchvision()
    from torchvision.models import inception_v3

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cached = torch_cached(INCEPTION)
    cached.parent.mkdir(parents=True)
    torch.save(inception_v3(weights=None, init_weights=False).state_dict(), cached)
    monkeypatch.setattr(perceptual, "file_sha256", lambda path: "0cc3c7bd" + "0" * 56)
    before = torch.get_rng_state()
    features = find_inception()(np.zeros((2, 64, 48, 3), np.uint8))
    assert features.shape == (2, 2048) and torch.isfinite(features).all()
    assert torch.equal(before, torch.get_rng_state())
