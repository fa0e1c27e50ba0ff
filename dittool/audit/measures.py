"""What a specification may ask to be measured, by name: each runs the thing and says yes or no, with figures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dittool.config.drift_schema import DriftConfig
from dittool.objective.drift import FieldSettings, alpha_from_uniform, drift_loss, field_at, total_drift

Measured = tuple[bool, str]

_EXACT = 1e-12  # in float64
_CLOSE = 1e-3  # in float32


def antisymmetry(_config: DriftConfig) -> Measured:
    x, p, q = _points(8, 0), _points(7, 1), _points(5, 2)
    error = float((field_at(x, p, q, 0.3) + field_at(x, q, p, 0.3)).abs().max())
    return error < _EXACT, f"max |V(p, q) + V(q, p)| = {error:.1g}"


def zero_on_equal_sets(_config: DriftConfig) -> Measured:
    x, p = _points(8, 0), _points(7, 1)
    error = float(field_at(x, p, p, 0.3).abs().max())
    return error < _EXACT, f"max |V(p, p)| = {error:.1g}"


def loss_is_drift(config: DriftConfig) -> Measured:
    x, p, none, weight = (
        _points(8, 0).float().requires_grad_(True),
        _points(7, 1).float(),
        torch.zeros(2, 0, 3),
        torch.zeros(2),
    )
    drift, factor = total_drift(x, p, none, weight, _settings(config))
    loss = drift_loss(x, p, none, weight, _settings(config))
    value = float((loss.detach() - drift.square().mean(dim=(1, 2))).abs().max() / loss.detach().max())
    expected = -2 * drift * factor[:, None, None] / drift.numel()
    gradient = float((torch.autograd.grad(loss.mean(), x)[0] - expected).abs().max() / expected.abs().max())
    return max(value, gradient) < _CLOSE, f"value off by {value:.1g}, gradient by {gradient:.1g} of the largest"


def scale_invariance(config: DriftConfig) -> Measured:
    x, p, none, weight = _points(8, 0).float(), _points(7, 1).float(), torch.zeros(2, 0, 3), torch.zeros(2)
    drift, scaled = (total_drift(k * x, k * p, none, weight, _settings(config))[0] for k in (1.0, 100.0))
    error = float((drift - scaled).abs().max() / drift.abs().max())
    return error < _CLOSE, f"drift changes by {error:.1g} when features grow 100-fold"


def temperatures(config: DriftConfig) -> Measured:
    return (
        config.drift.temperatures == [0.02, 0.05, 0.2],
        f"τ = {', '.join(f'{temperature:g}' for temperature in config.drift.temperatures)}",
    )


def weights_are_copies(_config: DriftConfig) -> Measured:
    x, p, q = _points(8, 0), _points(7, 1), _points(2, 2)
    weighted = field_at(x, p, q, 0.3, weights=torch.tensor([[3.0, 1.0]], dtype=torch.float64).expand(2, -1))
    error = float((weighted - field_at(x, p, q[:, [0, 0, 0, 1]], 0.3)).abs().max())
    return error < _EXACT, f"weight 3 and 3 copies differ by {error:.1g}"


def alpha_range(config: DriftConfig) -> Measured:
    alpha = alpha_from_uniform(
        torch.linspace(0, 1, 1001, dtype=torch.float64), config.drift.alpha_max, config.drift.alpha_exponent
    )
    figures = f"α in [{alpha[0]:g}, {alpha[-1]:g}], median {alpha[500]:.3g}, exponent {config.drift.alpha_exponent:g}"
    return bool(alpha[0] == 1 and abs(alpha[-1] - 4) < _CLOSE), figures


def features(config: DriftConfig) -> Measured:
    wanted = {"raw", "locations", "moments", "patches2", "patches4"}
    figures = (
        f"{', '.join(config.drift.features)}; maps of the {config.drift.encoder} encoder, at weight"
        f" {config.drift.maps_weight:g}"
    )
    return set(config.drift.features) == wanted and config.drift.maps_weight == 1, figures


def head_width_64(config: DriftConfig) -> Measured:
    width = config.model.width // config.model.heads
    return width == 64, f"{config.model.heads} heads of {width} channels"


MEASURES: dict[str, Callable[[DriftConfig], Measured]] = {
    "antisymmetry": antisymmetry,
    "zero-on-equal-sets": zero_on_equal_sets,
    "loss-is-drift": loss_is_drift,
    "scale-invariance": scale_invariance,
    "temperatures": temperatures,
    "weights-are-copies": weights_are_copies,
    "alpha-range": alpha_range,
    "features": features,
    "head-width-64": head_width_64,
}


def _points(count: int, seed: int) -> Tensor:
    """(2, count, 3) float64, N(0, 1)."""
    return torch.randn(2, count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _settings(config: DriftConfig) -> FieldSettings:
    return FieldSettings(
        config.drift.temperatures,
        config.drift.normalise_distances,
        config.drift.normalise_drift,
        config.drift.repulsion,
    )
