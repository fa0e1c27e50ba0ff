"""Published distances of given features: scipy's and a second library's, with errors that repetitions confirm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.validate.figures.distances import (
    Resampled,
    frechet,
    frechet_of,
    frechet_resampled,
    gaussian_kernel,
    gaussian_of,
    gaussians_without,
    groups_of,
    mean_resampled,
    polynomial_kernel,
    share_inside,
    squared_mmd,
    squared_mmd_resampled,
    subset_mmds,
)

WIDTH = 12


def features(seed, count, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, WIDTH, generator=generator) @ mixed / 3 + shift


@pytest.fixture(scope="module")
def drawn():
    return features(1, 230, shift=0.3)


@pytest.fixture(scope="module")
def real():
    return features(2, 310)


@pytest.fixture(scope="module")
def fidelity():
    ensure_torchvision()
    return pytest.importorskip("torch_fidelity", reason="pip install 'dit[metrics]'")


def without_groups(*sets):
    """Each of the sets without its first group, then without its second, …"""
    groups = groups_of(*map(len, sets))
    for group in range(groups):
        kept = []
        for rows in sets:
            parts = list(rows.tensor_split(groups))
            kept.append(torch.cat(parts[:group] + parts[group + 1 :]))
        yield kept


def test_frechet_is_scipys(drawn, real):
    x, y = drawn.double().numpy(), real.double().numpy()
    root = sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    assert frechet(drawn, real) == pytest.approx(expected, rel=1e-6)


def test_frechet_is_torch_fidelitys(drawn, real, fidelity):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(rows) for rows in (drawn, real)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet(drawn, real) == pytest.approx(theirs, rel=1e-3)


def test_kid_is_torch_fidelitys_to_its_subsets(drawn, real, fidelity):
    from torch_fidelity.metric_kid import kid_features_to_metric

    theirs = kid_features_to_metric(drawn, real, kid_subsets=10, kid_subset_size=100, verbose=False)
    ours = subset_mmds(drawn, real, polynomial_kernel, 100, 10)
    assert np.mean(ours) == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert np.std(ours) == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-3)


def test_kid_and_cmmd_are_those_of_scipys_distances(drawn, real):
    x, y = drawn.double().numpy(), real.double().numpy()

    def poly(a, b):
        return (a @ b.T / WIDTH + 1) ** 3

    n, m = len(x), len(y)
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (poly(x, x), poly(y, y))]
    assert squared_mmd(drawn, real, polynomial_kernel) == pytest.approx(sum(within) - 2 * poly(x, y).sum() / (n * m))
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    kernels = [np.exp(-cdist(a, b, "sqeuclidean") / 200).mean() for a, b in ((x, x), (y, y), (x, y))]
    ours = squared_mmd(drawn, real, gaussian_kernel(100.0), biased=True)
    assert ours == pytest.approx(kernels[0] + kernels[1] - 2 * kernels[2], rel=1e-3)


def test_cmmd_is_that_of_torch_fidelitys_kernel(drawn, real, fidelity):
    from torch_fidelity.metric_kid import kernel_rbf, mmd2

    x, y = (torch.nn.functional.normalize(rows.double(), dim=1).numpy()[:200] for rows in (drawn, real))
    kernels = (kernel_rbf(a, b, kid_kernel_rbf_sigma=10) for a, b in ((x, x), (x, y), (y, y)))
    ours = squared_mmd(drawn[:200], real[:200], gaussian_kernel(100.0), biased=True)
    assert ours == pytest.approx(mmd2(*kernels, mmd_est="biased"), rel=1e-3)


def test_precision_and_recall_are_torch_fidelitys(real, fidelity):
    from torch_fidelity.metric_prc import prc_features_to_metric

    drawn = features(3, 230, shift=0.7)
    theirs = prc_features_to_metric(drawn, real, prc_neighborhood=3, prc_batch_size=100, verbose=False)
    assert 0.05 < theirs["precision"] < 0.95, "a case that could tell"
    assert share_inside(drawn, real, 3).value == pytest.approx(theirs["precision"])
    assert share_inside(real, drawn, 3).value == pytest.approx(theirs["recall"])


def test_values_without_a_group_are_those_of_the_rest(drawn, real):
    rest = list(without_groups(drawn, real))
    assert list(frechet_resampled(drawn, real).without) == pytest.approx([frechet(*kept) for kept in rest])
    for biased in (False, True):
        found = squared_mmd_resampled(drawn, real, polynomial_kernel, biased)
        assert found.value == pytest.approx(squared_mmd(drawn, real, polynomial_kernel, biased))
        assert list(found.without) == pytest.approx([squared_mmd(*kept, polynomial_kernel, biased) for kept in rest])
    found = share_inside(drawn, real, 3)
    assert list(found.without) == pytest.approx([share_inside(*kept, 3).value for kept in rest])
    cosines = drawn[:, 0]
    assert list(mean_resampled(cosines).without) == pytest.approx([float(k.mean()) for (k,) in without_groups(cosines)])


def test_statistics_alone_serve_as_a_reference_that_is_never_resampled(drawn, real):
    found = frechet_resampled(drawn, gaussian_of(real))
    assert found.value == pytest.approx(frechet(drawn, real))
    kept = next(gaussians_without(drawn, 20))
    assert found.without[0] == pytest.approx(frechet_of(kept, gaussian_of(real)))


def test_the_error_is_the_spread_over_repetitions_and_the_interval_holds_the_truth():
    def pair(seed):
        return features(2 * seed, 300, shift=0.4), features(2 * seed + 1, 300)

    found = [squared_mmd_resampled(*pair(seed), polynomial_kernel) for seed in range(10, 50)]
    spread = np.std([one.value for one in found])
    assert np.mean([one.error for one in found]) == pytest.approx(spread, rel=0.3)
    truth = np.mean([one.value for one in found])
    held = [one.interval[0] <= truth <= one.interval[1] for one in found]
    assert sum(held) >= 35


def test_fid_of_few_images_is_too_large_and_its_extrapolation_is_not():
    """Two sets of one distribution are 0 apart. On N images of F features FID is about F·(F+1)/(2N) of the variance
    too large.
    """
    few = [frechet_resampled(features(seed, 200), features(seed + 500, 200)) for seed in range(8)]
    many = [frechet_resampled(features(seed, 800), features(seed + 500, 800)) for seed in range(8)]
    value, fewer_bias = np.mean([one.value for one in few]), np.mean([one.value for one in many])
    assert value == pytest.approx(4 * fewer_bias, rel=0.35), "the bias falls as 1/N"
    assert abs(np.mean([one.at_infinity for one in few])) < 0.25 * value


def test_a_figure_without_spread_has_no_error():
    assert Resampled(2.0, (2.0,) * 20).interval == (2.0, 2.0)
