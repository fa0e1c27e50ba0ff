"""Frozen features for the drifting objective: the kinds that are asked for, the same on every machine, with gradient to the input."""

from __future__ import annotations

import torch

from dittool.encoders.drift_features import DriftFeatures

ALL = ("raw", "locations", "moments", "patches2", "patches4")


def latents() -> torch.Tensor:
    return torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0))


def test_kinds_have_their_number_of_vectors_and_no_two_are_the_same():
    found = DriftFeatures(ALL, 16)(latents())
    assert {kind: tuple(vectors.shape) for kind, vectors in found.items()} == {
        "raw": (3, 1, 1024), "locations1": (3, 64, 32), "moments1": (3, 2, 32), "patches21": (3, 32, 32), "patches41": (3, 8, 32),
        "locations2": (3, 16, 64), "moments2": (3, 2, 64), "patches22": (3, 8, 64),
    }  # fmt: skip


def test_only_the_kinds_that_are_asked_for_are_made():
    assert set(DriftFeatures(["raw"], 16)(latents())) == {"raw"}
    assert set(DriftFeatures(["moments"], 16)(latents())) == {"moments1", "moments2"}


def test_moments_of_patches_are_means_and_deviations_of_locations():
    found = DriftFeatures(["locations", "patches4"], 16)(latents())
    first_patch = found["locations1"].unflatten(1, (8, 8))[:, :4, :4].flatten(1, 2)
    assert torch.allclose(found["patches41"][:, 0], first_patch.mean(dim=1), atol=1e-5)
    assert torch.allclose(found["patches41"][:, 4], first_patch.std(dim=1, correction=0), atol=1e-3)


def test_the_encoder_is_the_same_each_time_and_is_not_trained():
    torch.manual_seed(1)
    one = DriftFeatures(ALL, 16)
    torch.manual_seed(2)
    other = DriftFeatures(ALL, 16)
    assert all(torch.equal(one(latents())[kind], other(latents())[kind]) for kind in one(latents()))
    assert not any(parameter.requires_grad for parameter in one.parameters())


def test_gradient_reaches_the_input_also_where_all_is_flat():
    x = torch.zeros(2, 16, 8, 8, requires_grad=True)
    sum(vectors.sum() for vectors in DriftFeatures(ALL, 16)(x).values()).backward()
    assert torch.isfinite(x.grad).all() and x.grad.any()
