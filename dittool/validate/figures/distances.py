"""How far two sets of features are apart, and how certain that is: Fréchet distance, squared MMD, precision and recall.

Every figure comes with its values when one group of images at a time is left out (delete-a-group jackknife: Efron and
Tibshirani, 1993, ch. 11): from them follow a standard error and, as the bias falls as 1/N, the value to expect of
infinitely many images, as FID∞ extrapolates it (arXiv 1911.07023). Where both sets have features, group i of both is
left out at once.

N, M images of the two sets · F width of a feature · G groups
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GROUPS = 20
_ROWS = 512  # of a matrix of distances at once

Kernel = Callable[[Tensor, Tensor], Tensor]  # (N, F), (M, F) → (N, M)


@dataclass(frozen=True)
class Resampled:
    """A figure of all images, and the same without each group of them."""

    value: float
    without: tuple[float, ...]  # G values

    @property
    def error(self) -> float:
        """Standard error: √((G−1)/G · Σ (v₍ᵢ₎ − mean)²)."""
        return math.sqrt((len(self.without) - 1) * float(np.var(self.without)))

    @property
    def interval(self) -> tuple[float, float]:
        """95%, by Student's t with G−1 degrees of freedom."""
        from scipy.stats import t

        reach = float(t.ppf(0.975, len(self.without) - 1)) * self.error
        return self.value - reach, self.value + reach

    @property
    def at_infinity(self) -> float:
        """Linear in 1/N to 1/N = 0: G·v − (G−1)·mean of v₍ᵢ₎."""
        groups = len(self.without)
        return groups * self.value - (groups - 1) * float(np.mean(self.without))


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of features, in float64."""

    mean: Tensor  # (F,)
    covariance: Tensor  # (F, F), of N−1


def groups_of(*counts: int) -> int:
    """How many groups sets of so many images fall into."""
    return min(GROUPS, *counts)


def gaussian_of(features: Tensor) -> Gaussian:
    """Of rows (N, F)."""
    rows = features.double()
    return Gaussian(rows.mean(dim=0), torch.cov(rows.T))


def gaussians_without(features: Tensor, groups: int) -> Iterator[Gaussian]:
    """Of rows (N, F) without each group in turn; one group's sums are in memory at a time."""
    middle = features.double().mean(dim=0)
    centred = features.double() - middle
    products, count = centred.T @ centred, len(features)
    for group in centred.tensor_split(groups):
        left = count - len(group)
        shift = -group.sum(dim=0) / left  # the centred mean of those that are left
        scatter = products - group.T @ group - left * torch.outer(shift, shift)
        yield Gaussian(middle + shift, scatter / (left - 1))


def frechet(first: Tensor, second: Tensor) -> float:
    """`frechet_of` of rows (N, F) and (M, F)."""
    return frechet_of(gaussian_of(first), gaussian_of(second))


def frechet_of(first: Gaussian, second: Gaussian) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½), arXiv 1706.08500, eq. 6."""
    root = _root(first.covariance)
    # The eigenvalues of Σ₁Σ₂ are those of the symmetric Σ₁^½ Σ₂ Σ₁^½.
    between = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp_min(0).sqrt().sum()
    between_means = (first.mean - second.mean).square().sum()
    return float(between_means + first.covariance.trace() + second.covariance.trace() - 2 * between)


def frechet_resampled(drawn: Tensor, reference: Tensor | Gaussian) -> Resampled:
    """`frechet` of rows (N, F) and of rows (M, F) or their statistics, which are then never resampled."""
    if isinstance(reference, Gaussian):
        whole, groups = reference, groups_of(len(drawn))
        others: Iterator[Gaussian] = iter([reference] * groups)
    else:
        whole, groups = gaussian_of(reference), groups_of(len(drawn), len(reference))
        others = gaussians_without(reference, groups)
    pairs = zip(gaussians_without(drawn, groups), others, strict=True)
    return Resampled(frechet_of(gaussian_of(drawn), whole), tuple(frechet_of(*pair) for pair in pairs))


def gaussian_kernel(variance: float) -> Kernel:
    """k(x, y) = exp(−‖x − y‖² / (2σ²)) on rows scaled to length 1, σ² = `variance`."""

    def kernel(first: Tensor, second: Tensor) -> Tensor:
        x, y = (torch.nn.functional.normalize(part.double(), dim=1) for part in (first, second))
        return torch.exp(-torch.cdist(x, y).square() / (2 * variance))

    return kernel


def polynomial_kernel(first: Tensor, second: Tensor) -> Tensor:
    """k(x, y) = (x·y / F + 1)³, that of KID (arXiv 1801.01401, section 4)."""
    return (first.double() @ second.double().T / first.shape[1] + 1) ** 3


def squared_mmd(first: Tensor, second: Tensor, kernel: Kernel, biased: bool = False) -> float:
    """Squared maximum mean discrepancy of rows (N, F) and (M, F): Gretton et al., JMLR 2012, eq. 3 without bias, eq. 5
    with it, where each row also meets itself.
    """
    return _mmd_of_sums(*_kernel_sums(first, second, kernel, 1), biased)[0]


def squared_mmd_resampled(first: Tensor, second: Tensor, kernel: Kernel, biased: bool = False) -> Resampled:
    """`squared_mmd`, block by block: memory is that of one group against another."""
    sums = _kernel_sums(first, second, kernel, groups_of(len(first), len(second)))
    value, *without = _mmd_of_sums(*sums, biased)
    return Resampled(value, tuple(without))


@dataclass(frozen=True)
class _Within:
    """Sums of the kernel between groups of one set."""

    sums: Tensor  # (G, G)
    own: Tensor  # (G,), of each row with itself
    sizes: Tensor  # (G,) rows

    def mean(self, without: int | None, biased: bool) -> Tensor:
        """Over all pairs of rows that are left, those of a row with itself only where `biased`."""
        total, own, count = self.sums.sum(), self.own.sum(), self.sizes.sum()
        if without is not None:
            total = total - 2 * self.sums[without].sum() + self.sums[without, without]
            own, count = own - self.own[without], count - self.sizes[without]
        return total / count**2 if biased else (total - own) / (count * (count - 1))


def _kernel_sums(first: Tensor, second: Tensor, kernel: Kernel, groups: int) -> tuple[_Within, _Within, Tensor]:
    parts = [part.tensor_split(groups) for part in (first, second)]
    between = torch.tensor([[float(kernel(x, y).sum()) for y in parts[1]] for x in parts[0]], dtype=torch.float64)
    return _sums_within(parts[0], kernel), _sums_within(parts[1], kernel), between


def _sums_within(parts: Sequence[Tensor], kernel: Kernel) -> _Within:
    groups = len(parts)
    sums, own = torch.zeros(groups, groups, dtype=torch.float64), torch.zeros(groups, dtype=torch.float64)
    for i, rows in enumerate(parts):
        for j in range(i, groups):
            block = kernel(rows, parts[j])
            sums[i, j] = sums[j, i] = block.sum()
            if i == j:
                own[i] = block.diagonal().sum()
    return _Within(sums, own, torch.tensor([float(len(part)) for part in parts], dtype=torch.float64))


def _mmd_of_sums(x: _Within, y: _Within, between: Tensor, biased: bool) -> list[float]:
    """Of all rows, then without each group."""
    groups, values = len(between), []
    for without in (None, *range(groups if groups > 1 else 0)):
        total, pairs = between.sum(), x.sizes.sum() * y.sizes.sum()
        if without is not None:
            total = total - between[without].sum() - between[:, without].sum() + between[without, without]
            pairs = (x.sizes.sum() - x.sizes[without]) * (y.sizes.sum() - y.sizes[without])
        values.append(float(x.mean(without, biased) + y.mean(without, biased) - 2 * total / pairs))
    return values


def subset_mmds(first: Tensor, second: Tensor, kernel: Kernel, size: int, subsets: int) -> list[float]:
    """`squared_mmd` of random subsets of `size` rows of each, always the same: how KID is published."""
    draws = np.random.RandomState(2020)  # the generator and the seed of torch-fidelity
    values = []
    for _ in range(subsets):
        x, y = (part[draws.choice(len(part), size, replace=False)] for part in (first, second))
        values.append(squared_mmd(x, y, kernel))
    return values


def share_inside(points: Tensor, centres: Tensor, neighbours: int) -> Resampled:
    """Share of points (N, F) that lie in the ball of at least one centre (M, F), whose radius reaches to its k-th
    nearest other centre: the precision of drawn points among real centres, the recall of real points among drawn ones
    (Kynkäänniemi et al., arXiv 1904.06991, eq. 1).
    """
    groups = groups_of(len(points), len(centres))
    of_centre, of_point = (_group_numbers(len(rows), groups) for rows in (centres, points))
    radii = _radii(centres, of_centre, groups, neighbours)  # (1 + G, M)
    inside = []
    for block in points.split(_ROWS):
        distances = torch.cdist(block.double(), centres.double())  # (rows, M)
        inside.append(torch.stack([(distances <= reach).any(dim=1) for reach in radii]))
    found = torch.cat(inside, dim=1).double()  # (1 + G, N)
    without = [float(found[1 + group][of_point != group].mean()) for group in range(groups)]
    return Resampled(float(found[0].mean()), tuple(without))


def _radii(centres: Tensor, of_centre: Tensor, groups: int, neighbours: int) -> Tensor:
    """(1 + G, M): distances to the k-th nearest other centre, of all and without each group, whose own members get −1:
    nothing lies inside.
    """
    columns, start = [], 0
    for block in centres.split(_ROWS):
        distances = torch.cdist(block.double(), centres.double())
        rows = [distances.kthvalue(neighbours + 1).values]  # the nearest is the centre itself
        for group in range(groups):
            others = distances.masked_fill(of_centre == group, math.inf).kthvalue(neighbours + 1).values
            rows.append(others.masked_fill(of_centre[start : start + len(block)] == group, -1.0))
        columns.append(torch.stack(rows))
        start += len(block)
    return torch.cat(columns, dim=1)


def _group_numbers(count: int, groups: int) -> Tensor:
    parts = torch.arange(count).tensor_split(groups)
    return torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])


def mean_resampled(values: Tensor) -> Resampled:
    """Of one number an image, (N,)."""
    rows = values.double()
    without = [(rows.sum() - part.sum()) / (len(rows) - len(part)) for part in rows.tensor_split(groups_of(len(rows)))]
    return Resampled(float(rows.mean()), tuple(map(float, without)))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
