"""Frozen features for the drifting objective: the kinds that are asked for, the same on every machine, with
gradient to the input.
"""

from __future__ import annotations

import pytest
import torch

from dittool.encoders.drift_features import DriftFeatures, LatentEncoder, SeededEncoder

ALL = ("raw", "locations", "moments", "patches2", "patches4")


def latents() -> torch.Tensor:
    return torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(0))


def seeded(kinds) -> DriftFeatures:
    return DriftFeatures(kinds, SeededEncoder(16))


def test_kinds_have_their_number_of_vectors_and_no_two_are_the_same():
    found = seeded(ALL)(latents())
    assert {kind: tuple(vectors.shape) for kind, vectors in found.items()} == {
        "raw": (3, 1, 1024),
        "locations1": (3, 64, 32),
        "moments1": (3, 2, 32),
        "patches21": (3, 32, 32),
        "patches41": (3, 8, 32),
        "locations2": (3, 16, 64),
        "moments2": (3, 2, 64),
        "patches22": (3, 8, 64),
    }


def test_only_the_kinds_that_are_asked_for_are_made():
    assert set(seeded(["raw"])(latents())) == {"raw"}
    assert set(seeded(["moments"])(latents())) == {"moments1", "moments2"}


def test_moments_of_patches_are_means_and_deviations_of_locations():
    found = seeded(["locations", "patches4"])(latents())
    first_patch = found["locations1"].unflatten(1, (8, 8))[:, :4, :4].flatten(1, 2)
    assert torch.allclose(found["patches41"][:, 0], first_patch.mean(dim=1), atol=1e-5)
    assert torch.allclose(found["patches41"][:, 4], first_patch.std(dim=1, correction=0), atol=1e-3)


def test_the_encoder_is_the_same_each_time_and_is_not_trained():
    torch.manual_seed(1)
    one = seeded(ALL)
    torch.manual_seed(2)
    other = seeded(ALL)
    assert all(torch.equal(one(latents())[kind], other(latents())[kind]) for kind in one(latents()))
    assert not any(parameter.requires_grad for parameter in one.parameters())


@pytest.mark.parametrize("encoder", [SeededEncoder(16), LatentEncoder(16, 8, 3)], ids=["seeded", "trained"])
def test_gradient_reaches_the_input_also_where_all_is_flat(encoder):
    x = torch.zeros(2, 16, 8, 8, requires_grad=True)
    sum(vectors.sum() for vectors in DriftFeatures(ALL, encoder)(x).values()).backward()
    assert torch.isfinite(x.grad).all() and x.grad.any()


def test_a_trained_encoder_gives_maps_of_its_width_and_is_frozen():
    encoder = LatentEncoder(16, 8, 3)
    found = DriftFeatures(["locations"], encoder)(latents())
    assert {kind: tuple(vectors.shape) for kind, vectors in found.items()} == {
        "locations1": (3, 64, 8),
        "locations2": (3, 16, 16),
    }
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("cells", [(8, 8), (5, 6)])
def test_what_is_hidden_from_an_encoder_does_not_reach_it(cells):
    encoder, x = LatentEncoder(4, 8, 3), torch.randn(2, 4, *cells)
    hidden = torch.zeros(2, 1, *cells, dtype=torch.bool)
    hidden[:, :, :2, 2:4] = True
    filled = encoder.filled_in(x, hidden)
    assert filled.shape == x.shape
    assert torch.equal(filled, encoder.filled_in(torch.where(hidden, 100.0, x), hidden))
    assert not torch.equal(filled, encoder.filled_in(torch.where(hidden, x, 100.0), hidden))
