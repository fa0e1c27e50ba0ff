"""Rectified flow: the path, its velocity, the timesteps' distribution, and dropout modes that exclude each other."""

from __future__ import annotations

import math

import pytest
import torch

from dittool.config.schema import Dropout
from dittool.objective.flow import (
    MODES,
    dropout_modes,
    flow_loss,
    interpolate,
    kept_conditions,
    shift_at,
    shifted,
    timesteps,
)


def test_the_path_begins_at_the_data_and_ends_at_the_noise():
    x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(interpolate(x0, noise, torch.zeros(2)), x0)
    assert torch.equal(interpolate(x0, noise, torch.ones(2)), noise)


def test_the_target_is_the_derivative_of_the_path():
    x0, noise, t = torch.randn(1, 3, 4, 4).double(), torch.randn(1, 3, 4, 4).double(), torch.tensor([0.3]).double()
    derivative = (interpolate(x0, noise, t + 1e-6) - interpolate(x0, noise, t - 1e-6)) / 2e-6
    seen = {}

    def perfect(z, t, conditions, kept):
        seen["z"] = z
        return derivative

    loss = flow_loss(perfect, x0, noise, t, None, torch.tensor([3]))
    torch.testing.assert_close(seen["z"], interpolate(x0, noise, t))
    assert loss.mean < 1e-9


def test_the_loss_of_a_silent_model_is_the_variance_of_the_target():
    x0, noise = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    loss = flow_loss(
        lambda z, *_: torch.zeros_like(z), x0, noise, torch.full((4,), 0.5), None, torch.zeros(4, dtype=torch.long)
    )
    torch.testing.assert_close(loss.per_sample, (noise - x0).square().mean(dim=(1, 2, 3)))


def _ks_distance(values: torch.Tensor, distribution) -> float:
    values = values.double().sort().values
    n = len(values)
    expected = torch.tensor([distribution(float(v)) for v in values])
    ranks = torch.arange(n).double()
    return float(torch.maximum((expected - ranks / n).abs(), (expected - (ranks + 1) / n).abs()).max())


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_logit_normal_timesteps_follow_their_law(shift):
    t = timesteps(torch.rand(4000, generator=torch.Generator().manual_seed(0)), "logit_normal", shift)

    def law(value):  # P(shifted sigmoid of N(0,1) ≤ value)
        unshifted = value / (shift + (1 - shift) * value)
        return 0.5 * (1 + math.erf(math.log(unshifted / (1 - unshifted)) / math.sqrt(2)))

    assert _ks_distance(t, law) < 1.63 / math.sqrt(4000)  # the 1 % point


@pytest.mark.parametrize(
    ("sampling", "quartiles"), [("mode", (0.3836, 0.5, 0.6164)), ("cosmap", (0.2929, 0.5, 0.7071))]
)
def test_published_densities_have_their_quartiles(sampling, quartiles):
    """mode: 1 − u − 1.29·(cos²(πu/2) − 1 + u) at u = 3/4; cosmap: 1 − 1/(tan(π/8) + 1)."""
    t = timesteps(torch.tensor([0.25, 0.5, 0.75]), sampling, 1.0)
    assert t.tolist() == pytest.approx(quartiles, abs=1e-3)
    ends = timesteps(torch.tensor([0.0, 1.0]), sampling, 1.0)
    assert ends.tolist() == pytest.approx([0.001, 0.999])
    assert (timesteps(torch.linspace(0, 1, 999), sampling, 3.0).diff() >= 0).all()


def test_a_shift_per_bucket_grows_with_the_side_of_the_picture():
    assert shift_at("per-bucket", (128, 128)) == 3.0  # 1024² pixels
    assert shift_at("per-bucket", (64, 64)) == 1.5 and shift_at("per-bucket", torch.zeros(2, 16, 32, 128)) == 1.5
    assert shift_at(2.0, (64, 64)) == 2.0


def test_uniform_timesteps_are_uniform_and_clamped():
    t = timesteps(torch.linspace(0, 1, 2001), "uniform", 1.0)
    assert t.min() == pytest.approx(0.001) and t.max() == pytest.approx(0.999)
    assert float(t.median()) == pytest.approx(0.5)


def test_shift_keeps_the_ends_and_moves_the_middle_towards_noise():
    assert shifted(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist() == [0.0, 0.75, 1.0]


def test_an_unknown_timestep_law_is_refused():
    with pytest.raises(ValueError, match="cosine"):
        timesteps(torch.rand(1), "cosine", 1.0)


def test_dropout_modes_exclude_each_other_and_have_their_shares():
    shares = [0.1, 0.2, 0.05, 0.65]
    modes = dropout_modes(torch.rand(20_000, generator=torch.Generator().manual_seed(0)), shares)
    observed = torch.bincount(modes, minlength=4) / 20_000
    for share, seen in zip(shares, observed.tolist(), strict=True):
        assert abs(seen - share) < 4 * math.sqrt(share * (1 - share) / 20_000)


def test_shares_are_configured_under_the_names_of_the_modes_and_in_their_order():
    shares = Dropout(none=0.1, text_only=0.3, reference_only=0.05, both=0.55)
    assert shares.model_dump() == dict(zip(MODES, shares.shares, strict=True))


def test_a_mode_of_share_zero_never_occurs():
    modes = dropout_modes(torch.linspace(0, 0.999999, 1000), [0.0, 0.5, 0.0, 0.5])
    assert set(modes.tolist()) == {1, 3}


def test_modes_are_named_by_what_they_keep():
    kept = kept_conditions(torch.arange(4))
    assert dict(zip(MODES, zip(kept.text.tolist(), kept.reference.tolist(), strict=True), strict=True)) == {
        "none": (False, False),
        "text_only": (True, False),
        "reference_only": (False, True),
        "both": (True, True),
    }
