"""Do two features of a sample come from the same image? Retrieval says it, without an encoder.

A ridge regression learned on half of the samples predicts from the first feature what the second one holds. On the
other half the prediction from sample i is compared with what i and others of its kind hold:

    S_ij = cos(predicted_i, targets_j)

    place_i = ½·(share of j with S_ii > S_ij) + ½·(share of j with S_ii > S_ji)

A sample whose features belong together has a place near 1. One of two different images lies anywhere between 0 and 1,
half of the time below ½, where others hardly ever are: so these are counted, and twice their number are wrong. Samples
are compared within a bucket, and never with one that looks the same.

    found = pair_up([FeaturePair(id, bucket, inputs, targets, appearance), …])       # found.wrong_share, found.misfits

n cells of each sample, at the same places for all of one kind · F width of the first feature · S of the second
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, t

_RIDGE = 1e-2  # relative to the mean variance of what is seen
_FEWEST_OTHERS = 5  # that a sample is compared with
_ALIKE = 0.05  # squared distance of two looks, relative to how far they lie from the mean look
_CONFIDENCE = 0.999
_FEWEST_MISFITS = 3


@dataclass(frozen=True)
class FeaturePair:
    """What is kept of one sample."""

    id: str
    kind: str  # those of one kind are compared: a bucket
    inputs: np.ndarray  # (n, F) from which the other feature is predicted
    targets: np.ndarray  # (n, S) the other feature, or what is known of it
    # (places, statistics), of one shape in all samples: the picture roughly, to know which samples look the same
    appearance: np.ndarray
    text: str = ""  # samples of one and the same text are not compared


@dataclass(frozen=True)
class Paired:
    """How well the samples' own features fit, compared with those of others. `ids` and `places` are of the samples
    that could be judged.
    """

    ids: tuple[str, ...]
    places: np.ndarray
    others: float  # mean number of samples that each one was compared with

    @property
    def mean(self) -> float:
        """Share of comparisons that a sample's own feature wins; ½ is chance."""
        return float(self.places.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Of the mean, 99.9%."""
        error = self.places.std(ddof=1) / np.sqrt(len(self.places))
        reach = float(t.ppf((1 + _CONFIDENCE) / 2, len(self.places) - 1) * error)
        return max(self.mean - reach, 0.0), min(self.mean + reach, 1.0)

    @property
    def misfits(self) -> tuple[str, ...]:
        """The samples that most others would fit better, worst first. As many wrong ones again go unnamed."""
        order = np.argsort(self.places, kind="stable")
        return tuple(self.ids[i] for i in order if self.places[i] < 0.5)

    @property
    def wrong_share(self) -> float:
        """Of the samples, estimated: half of the wrong ones are misfits."""
        return min(2 * len(self.misfits) / len(self.ids), 1.0)

    @property
    def wrong_interval(self) -> tuple[float, float]:
        """Of the wrong share, 99.9% (Clopper and Pearson)."""
        low, high = clopper_pearson(len(self.misfits), len(self.ids), _CONFIDENCE)
        return 2 * low, min(2 * high, 1.0)

    def some_are_wrong(self, stray: float) -> bool:
        """More misfits than `stray`, the share of right samples that may fit another one better, explains.

        And they are not the end of a long tail. Of wrong samples 42% have a place between 0.5 and 0.8, so 0.84 for each
        misfit; where features say little of each other, far more right ones lie there.
        """
        misfits, between = len(self.misfits), int(((self.places >= 0.5) & (self.places < 0.8)).sum())
        tail = between - 0.84 * misfits
        clear = tail <= 0.02 * len(self.places) + np.sqrt(between + misfits)
        return misfits >= _FEWEST_MISFITS and self.wrong_interval[0] > 2 * stray and bool(clear)


def pair_up(samples: Sequence[FeaturePair]) -> Paired:
    """Judges every sample that has others to be compared with."""
    fold = _folds(samples)
    places, others = np.full(len(samples), np.nan), np.zeros(len(samples))
    for number in (0, 1):
        learned, judged = np.flatnonzero(fold != number).tolist(), np.flatnonzero(fold == number).tolist()
        if len(learned) and len(judged):
            predicted, targets = _predict([samples[i] for i in learned], [samples[i] for i in judged])
            places[judged], others[judged] = _places(predicted, targets, _comparable([samples[i] for i in judged]))
    known = np.flatnonzero(~np.isnan(places)).tolist()
    return Paired(
        tuple(samples[i].id for i in known), places[known], float(others[known].mean()) if len(known) else 0.0
    )


def clopper_pearson(count: int, of: int, confidence: float) -> tuple[float, float]:
    """The exact interval of a binomial share."""
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else float(beta.ppf(tail, count, of - count + 1))
    return low, 1.0 if count == of else float(beta.ppf(1 - tail, count + 1, of - count))


def _folds(samples: Sequence[FeaturePair]) -> np.ndarray:
    """0 or 1 for each sample, in turn within each kind."""
    met: dict[str, int] = defaultdict(int)
    fold = np.zeros(len(samples), int)
    for place, sample in enumerate(samples):
        fold[place] = met[sample.kind] % 2
        met[sample.kind] += 1
    return fold


def _predict(
    learned: Sequence[FeaturePair], judged: Sequence[FeaturePair]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the judged samples should hold, and what they hold: (n, S) each, without what all learned ones have in
    common at each place.
    """
    common = _Common(learned)
    pairs = [common.removed_from(sample) for sample in learned]
    x, y = (np.concatenate(part) for part in zip(*pairs, strict=True))  # (samples·n, F), (samples·n, S)
    scale = np.maximum(np.sqrt(np.square(y).mean(axis=0)), 1e-6)
    weights = ridge(x, y / scale)
    pairs = [common.removed_from(sample) for sample in judged]
    return [inputs @ weights for inputs, _ in pairs], [targets / scale for _, targets in pairs]


class _Common:
    """The mean of what samples see and hold, by kind and place; of kinds that are too rare, over all."""

    def __init__(self, samples: Sequence[FeaturePair]) -> None:
        by_kind = defaultdict(list)
        for sample in samples:
            by_kind[sample.kind].append(sample)
        self._overall = tuple(
            np.concatenate([getattr(sample, name) for sample in samples]).mean(axis=0) for name in ("inputs", "targets")
        )
        self._of_kind = {
            kind: tuple(np.mean([getattr(sample, name) for sample in some], axis=0) for name in ("inputs", "targets"))
            for kind, some in by_kind.items()
            if len(some) >= _FEWEST_OTHERS
        }

    def removed_from(self, sample: FeaturePair) -> tuple[np.ndarray, np.ndarray]:
        inputs, targets = self._of_kind.get(sample.kind, self._overall)
        return sample.inputs - inputs, sample.targets - targets


def ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(F, S): min ‖x·w − y‖² + λ‖w‖², by whichever of xᵀx and x·xᵀ is smaller."""
    penalty = max(_RIDGE * float(np.square(x).sum()) / x.shape[1], 1e-9)
    if len(x) < x.shape[1]:
        gram = (x @ x.T).astype(np.float64) + penalty * np.eye(len(x))
        return (x.T @ np.linalg.solve(gram, y)).astype(np.float32)
    gram = (x.T @ x).astype(np.float64) + penalty * np.eye(x.shape[1])
    return np.linalg.solve(gram, x.T @ y).astype(np.float32)


def _places(
    predicted: list[np.ndarray], targets: list[np.ndarray], comparable: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Place and number of others of each sample; NaN with too few others."""
    places, others = np.full(len(targets), np.nan), comparable.sum(axis=1)
    for count in {len(some) for some in targets}:  # places of one number go into one array
        rows = np.array([i for i, some in enumerate(targets) if len(some) == count])
        p, h = (np.stack([_unit(some[i]) for i in rows]) for some in (predicted, targets))
        fit, may = p @ h.T, comparable[np.ix_(rows, rows)]  # (samples, samples): S, and whether it counts
        own = np.diag(fit)
        wins = ((own[:, None] > fit) & may).sum(axis=1) + ((own[None] > fit) & may).sum(axis=0)
        places[rows] = wins / np.maximum(2 * may.sum(axis=1), 1)
    places[others < _FEWEST_OTHERS] = np.nan
    return places, others


def _unit(values: np.ndarray) -> np.ndarray:
    flat = values.ravel()
    return flat / max(float(np.linalg.norm(flat)), 1e-12)


def _comparable(samples: Sequence[FeaturePair]) -> np.ndarray:
    """(samples, samples) bool: of one kind, of different texts, and different to look at."""
    kinds, texts = (np.array([getattr(sample, name) for sample in samples]) for name in ("kind", "text"))
    looks = np.stack([sample.appearance for sample in samples]).astype(np.float64)  # (samples, places, statistics)
    looks -= looks.mean(axis=(0, 1))
    looks = (looks / np.maximum(looks.std(axis=(0, 1)), 1e-9)).reshape(len(samples), -1)
    size = np.square(looks).sum(axis=1)
    distance = size[:, None] + size[None] - 2 * looks @ looks.T
    alike = (distance <= _ALIKE * (size[:, None] + size[None])) | ((texts[:, None] == texts[None]) & (texts != ""))
    return (kinds[:, None] == kinds[None]) & ~alike
