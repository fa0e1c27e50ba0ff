"""The drifting field ("Generative Modeling via Drifting", arXiv 2602.04770): where each generated sample should move,
in one training step.

    k(x, y) = exp(−‖x − y‖ / τ)                       attraction to positives, repulsion from negatives
    A = √(softmax over a row · softmax over a column)  of the joint logits over [positives | negatives]
    W⁺ = A⁺ · rowsum(A⁻)    W⁻ = A⁻ · rowsum(A⁺)       so that both sides weigh the same in every row
    V(x) = Σ W⁺ y⁺ − Σ W⁻ y⁻                           changes its sign when positives and negatives change places
    loss = mean ‖f(ε) − stopgrad(f(ε) + V)‖²           its value is mean ‖V‖², its gradient −2V / numel

Negatives of a sample are the others of its batch, and unconditional real samples whose weight makes the guidance. One
field stands for one class and one feature vector; fields are computed side by side and share nothing, so that any split
of them gives the same numbers.

G fields · N generated · P positives · U unconditional · M = N + U negatives · C channels · L feature vectors of a
sample · K classes
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 1e-20  # keeps 0/0 away where a field is zero throughout


@dataclass(frozen=True)
class FieldSettings:
    """How fields are computed; the keys are explained in config/drift_schema.py."""

    temperatures: Sequence[float]
    normalise_distances: bool = True
    normalise_drift: bool = True
    repulsion: float = 1.0
    kernel_values: int = 1 << 24


def alpha_from_uniform(uniform: Tensor, largest: float, exponent: float, unguided: float = 0.0) -> Tensor:
    """Guidance scales from draws in [0, 1), by inverse distribution function: a share `unguided` of them is 1, the
    others have density ∝ α^(−exponent) on [1, largest].
    """
    if unguided == 1:
        return torch.ones_like(uniform)
    uniform = ((uniform - unguided) / (1 - unguided)).clamp_min(0)
    if exponent == 1:
        return largest**uniform
    power = 1 - exponent
    return (1 + uniform * (largest**power - 1)) ** (1 / power)


def unconditional_weight(alpha: Tensor, generated: int, unconditional: int) -> Tensor:
    """w = (α − 1)·(N − 1)/U: negatives are then (α − 1)/α parts unconditional data and 1/α parts the generated
    distribution.

    The field vanishes where that mixture is the data of the class, p_c = q/α + (α − 1)/α · p_∅, so training heads for
    q = α·p_c − (α − 1)·p_∅: guidance with scale α, learned into one evaluation.
    """
    return (alpha - 1) * (generated - 1) / max(unconditional, 1)


def field_at(
    x: Tensor,
    positives: Tensor,
    negatives: Tensor,
    temperature: float,
    *,
    weights: Tensor | None = None,
    own: bool = False,
    repulsion: float = 1.0,
    distances: Tensor | None = None,
) -> Tensor:
    """V at the points x, for one temperature.

    Args:
        x: (G, N, C). positives: (G, P, C). negatives: (G, M, C).
        weights: (G, M), how many copies of a negative there are; any number ≥ 0. None: one of each.
        own: the first N negatives are x itself; a sample does not repel itself.
        repulsion: factor on the negatives' part. Not 1 in negative controls only.
        distances: (G, N, P + M), those that the kernel reads, where they are known or are to be in another unit than
        the points.

    Returns: (G, N, C). Written as displacements, W⁺(y⁺ − x) − W⁻(y⁻ − x): with equal weights on both sides the x
    cancel, and without them (a control) the field still does not depend on where the origin lies.
    """
    count = positives.shape[1]
    distances = torch.cdist(x, torch.cat([positives, negatives], dim=1)) if distances is None else distances
    logits = distances / -temperature  # (G, N, P + M)
    if own:
        diagonal = torch.arange(x.shape[1], device=x.device)
        logits[:, diagonal, count + diagonal] = -math.inf
    # A negative that stands there w times has w columns: each adds to the sums of the rows and has its own sum, which w
    # does not change.
    log_copies = logits.new_zeros(len(x), 1, logits.shape[2])
    if weights is not None:
        log_copies[:, 0, count:] = weights.log()
    by_row, by_column = (logits + log_copies).log_softmax(dim=2), logits.log_softmax(dim=1) + log_copies
    a_positive, a_negative = ((by_row + by_column) / 2).exp().split([count, negatives.shape[1]], dim=2)
    w_positive = a_positive * a_negative.sum(dim=2, keepdim=True)  # (G, N, P)
    w_negative = repulsion * a_negative * a_positive.sum(dim=2, keepdim=True)  # (G, N, M)
    pulled, pushed = w_positive @ positives, w_negative @ negatives
    return pulled - pushed - (w_positive.sum(dim=2, keepdim=True) - w_negative.sum(dim=2, keepdim=True)) * x


@torch.no_grad()
def total_drift(
    x: Tensor, positives: Tensor, unconditional: Tensor, weight: Tensor, settings: FieldSettings
) -> tuple[Tensor, Tensor]:
    """The drift of each generated sample, summed over temperatures.

    Distances are measured in units of their mean over the field, each temperature's drift in units of its root mean
    square.

    Args:
        x: (G, N, C), N ≥ 2. positives: (G, P, C). unconditional: (G, U, C), U may be 0.
        weight: (G,) of each unconditional sample.

    Returns: the drift (G, N, C) in normalised features, and the factor (G,) that normalises features: √C over the mean
    distance, so that their coordinates are of order 1 whatever C is.
    """
    at_once = max(
        1, settings.kernel_values // (x.shape[1] * (positives.shape[1] + x.shape[1] + unconditional.shape[1]))
    )
    fields = zip(*(tensor.split(at_once) for tensor in (x, positives, unconditional, weight)), strict=True)
    parts = [
        _drift_of_fields(x.float(), positives.float(), unconditional.float(), weight.float(), settings)
        for x, positives, unconditional, weight in fields
    ]
    drifts, factors = zip(*parts, strict=True)
    return torch.cat(drifts), torch.cat(factors)


def drift_loss(x: Tensor, positives: Tensor, unconditional: Tensor, weight: Tensor, settings: FieldSettings) -> Tensor:
    """The loss of each field, (G,): mean ‖x̃ − stopgrad(x̃ + V)‖² over samples and channels of the normalised features
    x̃.

    Shapes as for `total_drift`; gradient flows into x alone.
    """
    drift, factor = total_drift(x, positives, unconditional, weight, settings)
    normalised = x.float() * factor[:, None, None]
    return (normalised - (normalised + drift).detach()).square().mean(dim=(1, 2))


def multi_feature_loss(
    generated: Mapping[str, Tensor],
    positives: Mapping[str, Tensor],
    unconditional: Mapping[str, Tensor],
    weight: Tensor,
    settings: FieldSettings,
) -> dict[str, Tensor]:
    """One field for each class and each feature vector; by kind of feature, the losses of its fields, (K, L). The sum
    of their means is what is minimised.

    Args:
        generated: kind → (K, N, L, C); positives: (K, P, L, C); unconditional: (K, U, L, C), with L and C of the kind.
        weight: (K,) of each unconditional sample.
    """
    losses = {}
    for kind, x in generated.items():
        # 3 × (K·L, ·, C)
        drawn, real, other = (
            tensor.transpose(1, 2).flatten(0, 1) for tensor in (x, positives[kind], unconditional[kind])
        )
        weights = weight.repeat_interleave(x.shape[2])  # (K·L,)
        losses[kind] = drift_loss(drawn, real, other, weights, settings).unflatten(0, (len(x), -1))  # (K, L)
    return losses


def _drift_of_fields(
    x: Tensor, positives: Tensor, unconditional: Tensor, weight: Tensor, settings: FieldSettings
) -> tuple[Tensor, Tensor]:
    centre = positives.mean(dim=1, keepdim=True)  # distances do not change, and float32 keeps more of them
    x, positives, unconditional = x - centre, positives - centre, unconditional - centre
    negatives = torch.cat([x, unconditional], dim=1)  # (G, M, C)
    weights = torch.cat([x.new_ones(x.shape[:2]), weight[:, None].expand(-1, unconditional.shape[1])], dim=1)  # (G, M)
    distances = torch.cdist(x, torch.cat([positives, negatives], dim=1))  # (G, N, P + M)
    factor = x.new_ones(len(x))
    if settings.normalise_distances:
        mean = _mean_distance(distances, positives.shape[1], weights).clamp_min(_TINY)
        distances, factor = distances / mean[:, None, None], math.sqrt(x.shape[2]) / mean
    total = torch.zeros_like(x)
    for temperature in settings.temperatures:
        drift = field_at(
            x,
            positives,
            negatives,
            temperature,
            weights=weights,
            own=True,
            repulsion=settings.repulsion,
            distances=distances,
        )
        drift = drift * factor[:, None, None]
        if settings.normalise_drift:
            drift = drift / drift.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(_TINY)
        total += drift
    return total, factor


def _mean_distance(distances: Tensor, positives: int, weights: Tensor) -> Tensor:
    """(G,) mean distance from a generated sample to its positives and negatives, itself left out, copies counted."""
    count = distances.shape[1]
    copies = torch.cat([weights.new_ones(len(weights), positives), weights], dim=1)  # (G, P + M)
    own = distances[:, :, positives : positives + count].diagonal(dim1=1, dim2=2).sum(dim=1)  # 0 but for rounding
    return ((distances.sum(dim=1) * copies).sum(dim=1) - own) / (count * (copies.sum(dim=1) - 1))


def energy_distance(x: Tensor, y: Tensor) -> float:
    """How far two sets of samples, x (n, C) and y (m, C), are from being of one distribution (Székely and Rizzo, 2013):

        E = 2·E‖x − y‖ − E‖x − x'‖ − E‖y − y'‖

    The unbiased estimate: around 0, also below it, where the distributions are equal, above 0 elsewhere.
    """
    x, y = x.double(), y.double()
    within = sum(torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    return float(2 * torch.cdist(x, y).mean() - within)
