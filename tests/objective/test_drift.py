"""The drifting field and its loss: what must hold exactly, and how the field behaves where data and samples are one
distribution.
"""

from __future__ import annotations

import math

import pytest
import torch

from dittool.objective.drift import (
    FieldSettings,
    alpha_from_uniform,
    drift_loss,
    field_at,
    multi_feature_loss,
    total_drift,
    unconditional_weight,
)

THREE = FieldSettings((0.02, 0.05, 0.2))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def none_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """No unconditional samples."""
    return x.new_zeros(len(x), 0, x.shape[2]), x.new_zeros(len(x))


def plain_field(
    x: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, temperature: float, own: bool
) -> torch.Tensor:
    """The field of one set of points (N, C), pair by pair and in the raw form, as the paper's algorithm writes it."""

    def kernel(i: int, j: int) -> float:
        if own and j - len(positives) == i:
            return 0.0
        y = positives[j] if j < len(positives) else negatives[j - len(positives)]
        return math.exp(-float((x[i] - y).norm()) / temperature)

    rows, columns = range(len(x)), range(len(positives) + len(negatives))
    k = [[kernel(i, j) for j in columns] for i in rows]
    a = [[math.sqrt(k[i][j] / sum(k[i]) * k[i][j] / sum(k[other][j] for other in rows)) for j in columns] for i in rows]
    field = torch.zeros_like(x)
    for i in rows:
        to_positives, to_negatives = sum(a[i][: len(positives)]), sum(a[i][len(positives) :])
        for j in columns:
            if j < len(positives):
                field[i] += a[i][j] * to_negatives * positives[j]
            else:
                field[i] -= a[i][j] * to_positives * negatives[j - len(positives)]
    return field


# Exact properties


@pytest.mark.parametrize("own", [False, True])
def test_the_field_is_that_of_the_papers_algorithm(own):
    x, positives = normal(5, 3), normal(4, 3, seed=1)
    negatives = x if own else normal(6, 3, seed=2)
    expected = plain_field(x, positives, negatives, 0.7, own)
    assert torch.allclose(field_at(x[None], positives[None], negatives[None], 0.7, own=own)[0], expected, atol=1e-12)


def test_the_field_changes_its_sign_when_positives_and_negatives_change_places():
    x, p, q = normal(2, 9, 4), normal(2, 7, 4, seed=1), normal(2, 5, 4, seed=2) + 1
    forth, back = field_at(x, p, q, 0.5), field_at(x, q, p, 0.5)
    assert forth.abs().max() > 0.1
    assert (forth + back).abs().max() < 1e-14


@pytest.mark.parametrize("repulsion", [0.0, 1.5, 2.0])
def test_unequal_repulsion_breaks_the_antisymmetry(repulsion):
    x, p, q = normal(1, 9, 4), normal(1, 7, 4, seed=1), normal(1, 5, 4, seed=2)
    assert (
        field_at(x, p, q, 0.5, repulsion=repulsion) + field_at(x, q, p, 0.5, repulsion=repulsion)
    ).abs().max() > 0.05


def test_the_field_is_zero_where_both_sets_are_the_same():
    x, y = normal(3, 9, 4), normal(3, 7, 4, seed=1)
    assert field_at(x, y, y, 0.5).abs().max() < 1e-15
    assert field_at(x, y, y, 0.5, repulsion=1.5).abs().max() > 0.05


@pytest.mark.parametrize("repulsion", [0.0, 1.0, 2.0])
def test_the_field_does_not_depend_on_the_origin(repulsion):
    x, p, q = normal(1, 6, 3), normal(1, 7, 3, seed=1), normal(1, 5, 3, seed=2)
    there = field_at(x + 100, p + 100, q + 100, 0.5, repulsion=repulsion)
    assert torch.allclose(field_at(x, p, q, 0.5, repulsion=repulsion), there, atol=1e-9)


def test_a_weight_is_a_number_of_copies():
    x, p, q = normal(1, 6, 3), normal(1, 7, 3, seed=1), normal(1, 2, 3, seed=2)
    weighted = field_at(x, p, q, 0.5, weights=torch.tensor([[3.0, 1.0]], dtype=torch.float64))
    assert torch.allclose(weighted, field_at(x, p, q[:, [0, 0, 0, 1]], 0.5), atol=1e-13)


def test_a_weight_of_zero_is_absence():
    x, p, u = normal(1, 6, 3).float(), normal(1, 7, 3, seed=1).float(), normal(1, 4, 3, seed=2).float()
    absent, _ = total_drift(x, p, *none_of(x), THREE)
    assert torch.allclose(total_drift(x, p, u, torch.zeros(1), THREE)[0], absent, atol=1e-5)


def test_the_loss_is_the_mean_square_of_the_drift_and_its_gradient_minus_two_drifts_over_numel():
    x, p = normal(1, 8, 3).float().requires_grad_(True), normal(1, 6, 3, seed=1).float()
    drift, factor = total_drift(x, p, *none_of(x), THREE)
    loss = drift_loss(x, p, *none_of(x), THREE).sum()
    loss.backward()
    assert torch.isclose(loss, drift.square().mean(), rtol=1e-5)
    # the factor leads from x to normalised features
    assert torch.allclose(x.grad, -2 * drift * factor / drift.numel(), rtol=1e-4)


def test_with_one_normalised_temperature_the_loss_is_1_whatever_the_samples_are():
    for seed in range(3):
        x, p = normal(4, 8, 3, seed=seed).float() * 10**seed, normal(4, 6, 3, seed=9).float()
        assert torch.allclose(drift_loss(x, p, *none_of(x), FieldSettings((0.05,))), torch.ones(4), atol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_the_normalised_drift_does_not_change_with_the_features_scale(scale):
    x, p, u = normal(2, 8, 3).float(), normal(2, 6, 3, seed=1).float(), normal(2, 4, 3, seed=2).float()
    weight = torch.tensor([0.5, 2.0])
    drift, factor = total_drift(x, p, u, weight, THREE)
    scaled, scaled_factor = total_drift(scale * x, scale * p, scale * u, weight, THREE)
    assert torch.allclose(drift, scaled, atol=1e-3) and torch.allclose(factor, scaled_factor * scale, rtol=1e-4)
    plain = FieldSettings((0.02, 0.05, 0.2), normalise_distances=False)
    assert not torch.allclose(
        total_drift(x, p, u, weight, plain)[0],
        total_drift(scale * x, scale * p, scale * u, weight, plain)[0],
        atol=1e-3,
    )


def test_fields_share_nothing_so_that_chunks_and_any_split_give_the_same_numbers():
    x, p, u, weight = (
        normal(5, 8, 3).float(),
        normal(5, 6, 3, seed=1).float(),
        normal(5, 4, 3, seed=2).float(),
        torch.rand(5),
    )
    whole, _ = total_drift(x, p, u, weight, THREE)
    chunked, _ = total_drift(x, p, u, weight, FieldSettings((0.02, 0.05, 0.2), kernel_values=300))
    assert torch.allclose(whole, chunked, atol=1e-6)
    assert torch.allclose(whole[3:4], total_drift(x[3:4], p[3:4], u[3:4], weight[3:4], THREE)[0], atol=1e-5)


def test_memory_is_bounded_by_the_number_of_kernel_values(monkeypatch):
    largest = []

    def count(x, positives, negatives, *_, **__):
        largest.append(len(x) * x.shape[1] * (positives.shape[1] + negatives.shape[1]))
        return x

    monkeypatch.setattr("dittool.objective.drift.field_at", count)
    x, p = normal(50, 8, 3), normal(50, 6, 3)
    total_drift(x, p, *none_of(x), FieldSettings((0.1,), kernel_values=1000))
    assert max(largest) <= 1000 and sum(largest) == 50 * 8 * 14


def test_many_feature_vectors_have_a_field_each():
    # K 2, L 3, C 4
    x, p, u = normal(2, 8, 3, 4).float(), normal(2, 6, 3, 4, seed=1).float(), normal(2, 5, 3, 4, seed=2).float()
    weight = torch.tensor([0.5, 1.5])
    one_by_one = [
        drift_loss(x[k : k + 1, :, vector], p[k : k + 1, :, vector], u[k : k + 1, :, vector], weight[k : k + 1], THREE)
        for k in range(2)
        for vector in range(3)
    ]
    losses = multi_feature_loss({"a": x, "b": 2 * x}, {"a": p, "b": 2 * p}, {"a": u, "b": 2 * u}, weight, THREE)
    assert torch.allclose(losses["a"].flatten(), torch.cat(one_by_one), rtol=1e-4)
    assert torch.allclose(losses["a"], losses["b"], rtol=1e-3)  # each kind is normalised by itself


# Where the samples are the data already


def field_size(n: int) -> float:
    """Root mean square of the field at p = q, with n samples, n positives and n negatives drawn anew."""
    squares = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        x, p, q = (torch.randn(1, n, 2, generator=generator, dtype=torch.float64) for _ in range(3))
        squares.append(field_at(x, p, q, 0.5).square().mean())
    return float(torch.stack(squares).mean().sqrt())


def test_where_data_and_samples_are_one_distribution_the_field_falls_as_one_over_the_root_of_their_number():
    few, many = 32, 512
    slope = math.log(field_size(many) / field_size(few)) / math.log(many / few)
    assert -0.6 < slope < -0.4


# Guidance


def test_guidance_scales_follow_their_power_law():
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    for exponent in (0.0, 1.0, 3.0):
        alpha = alpha_from_uniform(u, 4.0, exponent)
        assert alpha[0] == 1 and torch.isclose(alpha[-1], torch.tensor(4.0, dtype=torch.float64))
        median = float(alpha[500])
        # ∫ α^−k
        below, whole = (
            math.log(a) if exponent == 1 else (a ** (1 - exponent) - 1) / (1 - exponent) for a in (median, 4.0)
        )
        assert math.isclose(below / whole, 0.5, rel_tol=1e-6)
    assert (alpha_from_uniform(u, 1.0, 3.0) == 1).all()


def test_a_share_of_the_groups_has_no_guidance_and_the_others_follow_the_power_law():
    u = torch.arange(1000, dtype=torch.float64) / 1000
    alpha = alpha_from_uniform(u, 4.0, 3.0, unguided=0.5)
    assert (alpha[:501] == 1).all() and (alpha[501:] > 1).all()
    assert torch.allclose(alpha[500:], alpha_from_uniform(u[::2], 4.0, 3.0))
    assert torch.equal(alpha_from_uniform(u, 4.0, 3.0, unguided=0.0), alpha_from_uniform(u, 4.0, 3.0))
    assert (alpha_from_uniform(u, 4.0, 3.0, unguided=1.0) == 1).all()


def test_the_weight_of_unconditional_samples_is_the_closed_form():
    assert torch.allclose(unconditional_weight(torch.tensor([1.0, 2.5, 4.0]), 65, 16), torch.tensor([0.0, 6.0, 12.0]))


def mixture(share: float, n: int, generator: torch.Generator) -> torch.Tensor:
    """Points of two overlapping clouds at ±1, `share` of them at +1. (1, n, 1)"""
    side = torch.where(torch.rand(1, n, 1, generator=generator) < share, 1.0, -1.0)
    return (side + 0.8 * torch.randn(1, n, 1, generator=generator)).double()


def mean_push(share: float, alpha: float) -> float:
    """Mean drift to the right of points distributed with this share, for a class with share 0.7 in data with share
    0.5.
    """
    pushes = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        x, p, u = mixture(share, 512, generator), mixture(0.7, 512, generator), mixture(0.5, 512, generator)
        weights = torch.cat(
            [torch.ones(1, 512), unconditional_weight(torch.tensor([alpha]), 512, 512).expand(1, 512)], dim=1
        ).double()
        field = field_at(x, p, torch.cat([x, u], dim=1), 0.5, weights=weights, own=True)
        pushes.append(float(field.mean() / field.abs().mean()))
    return sum(pushes) / len(pushes)


def test_guidance_leads_to_the_extrapolated_mixture_of_classes():
    """q = α·p_c − (α − 1)·p_∅: shares 0.7 and 0.5 with α = 2 give 0.9, without guidance the class's own 0.7."""
    assert abs(mean_push(0.7, 1.0)) < 0.2 and abs(mean_push(0.9, 2.0)) < 0.2
    assert mean_push(0.7, 2.0) > 0.5 and mean_push(0.9, 1.0) < -0.5
