"""A mean difference between two recipes, and how sure it is: pairs of runs of the same seed, measured on the same
samples.

    d[s, i] = loss of the variant − loss of the base      seed s, sample i; below 0: better

Seeds and samples both are draws of many, so both count: with MS the mean squares of a table of S seeds and N samples
without repetition (Searle, Casella, McCulloch: Variance Components, 1992, ch. 4),

    var(mean d) = (MS_seeds + MS_samples − MS_rest) / (S·N)

and the degrees of freedom of the interval are Satterthwaite's (1946). With one seed only the samples are counted: such
an interval says nothing of other seeds, so it screens and decides nothing.

Who looks at such an interval again and again, and stops once it lies on one side of 0, is wrong more often than it
says. What may be looked at on the way is a confidence sequence (Darling and Robbins, 1967; Howard, Ramdas, McAuliffe
and Sekhon, 2021): intervals C[1], C[2], … that hold all at once,

    P(for every look k: the mean difference at look k lies in C[k]) ≥ 1 − α

Here it is the interval above with the error α shared out over all looks that there can be (a union bound, so whatever
the looks have to do with each other, and with three seeds less than half as wide as the mixture of Lai (1976) for an
unknown variance): each of K evaluations, at n = 3, 4, … seeds, has

    α[k, n] = α / (K·(n − 1)·(n − 2))        since the sum of 1 / ((n − 1)(n − 2)) over n ≥ 3 is 1

so seeds may be added to a plan as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

DECIDING_SEEDS = 3
_ERROR = 0.05  # of a single interval, and of all looks on the way together
BETTER, WORSE, NOT_TOLD_APART = "better", "worse", "not told apart"


@dataclass(frozen=True)
class Difference:
    """Of a variant to the base; below 0 the variant is better."""

    mean: float
    low: float  # of the interval, 95% or wider (`at_look`); NaN where a single figure has none
    high: float
    seeds: int
    samples: int
    narrower: float  # by what factor the same samples in both make the interval narrower than different ones

    @property
    def verdict(self) -> str:
        if self.high < 0:
            return BETTER
        return WORSE if self.low > 0 else NOT_TOLD_APART

    @property
    def decides(self) -> bool:
        return self.seeds >= DECIDING_SEEDS and not math.isnan(self.low)

    def words(self) -> str:
        """`better`, `not told apart (about 7 seeds would tell)`, `better on one seed (3 decide)`."""
        if math.isnan(self.low):
            return "one figure: no interval"
        if self.verdict == NOT_TOLD_APART:
            return f"{NOT_TOLD_APART} ({self._would_tell()})"
        return self.verdict if self.decides else f"{self.verdict} on {self._few()}, {DECIDING_SEEDS} decide"

    def _few(self) -> str:
        return "one seed" if self.seeds == 1 else f"{self.seeds} seeds"

    def _would_tell(self) -> str:
        half = (self.high - self.low) / 2
        if not self.mean or half > 30 * abs(self.mean):
            return "too small a difference for any number of seeds that one would run"
        needed = max(DECIDING_SEEDS, math.ceil(self.seeds * (half / abs(self.mean)) ** 2))
        return f"about {needed} seeds would tell a difference of this size"


def at_look(base: np.ndarray, variant: np.ndarray, looks: int) -> Difference:
    """Of losses (seeds, samples) at one of so many looks, with an interval of the confidence sequence; none with fewer
    seeds than decide.
    """
    seeds = len(base)
    if seeds < DECIDING_SEEDS:
        return replace(difference(base, variant), low=math.nan, high=math.nan)
    return difference(base, variant, _ERROR / (looks * (seeds - 1) * (seeds - 2)))


def difference(base: np.ndarray, variant: np.ndarray, error: float = _ERROR) -> Difference:
    """Of figures (seeds, samples) of two recipes, pair by pair. With one row or column only the other counts.

    Args:
        error: how often the interval may miss.
    """
    pairs = variant - base
    seeds, samples = pairs.shape
    mean = float(pairs.mean())
    variance, freedom = _variance_of_mean(pairs)
    if not freedom:
        return Difference(mean, math.nan, math.nan, seeds, samples, math.nan)
    half = float(stats.t.ppf(1 - error / 2, freedom)) * math.sqrt(variance)
    unpaired = _variance_of_mean(base)[0] + _variance_of_mean(variant)[0]
    narrower = math.sqrt(unpaired / variance) if variance > 0 else math.inf
    return Difference(mean, mean - half, mean + half, seeds, samples, narrower)


def _variance_of_mean(table: np.ndarray) -> tuple[float, float]:
    """(variance of the mean of (seeds, samples), degrees of freedom); (0, 0) of a single figure."""
    seeds, samples = table.shape
    of_seeds, of_samples = table.mean(axis=1), table.mean(axis=0)
    if seeds == 1 and samples == 1:
        return 0.0, 0.0
    if seeds == 1:
        return float(of_samples.var(ddof=1)) / samples, samples - 1
    if samples == 1:
        return float(of_seeds.var(ddof=1)) / seeds, seeds - 1
    rest = table - of_seeds[:, None] - of_samples[None, :] + table.mean()
    parts = (  # (mean square, its degrees of freedom, its sign)
        (samples * float(of_seeds.var(ddof=1)), seeds - 1, 1),
        (seeds * float(of_samples.var(ddof=1)), samples - 1, 1),
        (float(np.square(rest).sum()) / ((seeds - 1) * (samples - 1)), (seeds - 1) * (samples - 1), -1),
    )
    # seeds or samples that vary less than the rest does leave the larger of what remains
    variance = max(sum(sign * square for square, _, sign in parts), parts[0][0], parts[1][0])
    spread = sum(square**2 / freedom for square, freedom, _ in parts)
    return variance / (seeds * samples), variance**2 / spread if spread else float(seeds - 1)
