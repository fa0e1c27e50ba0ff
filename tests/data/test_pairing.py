"""Which features belong together, told by retrieval: wrong ones are counted and named, right ones never."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dittool.data.pairing import FeaturePair, clopper_pearson, pair_up

CELLS, SEEN, HELD = 9, 12, 4


def samples(count: int, noise: float = 1.0, kinds: int = 2, seed: int = 0) -> list[FeaturePair]:
    """What is held follows from what is seen, and noise comes on top."""
    chance = np.random.default_rng(seed)
    mix = np.random.default_rng(1).normal(size=(SEEN, HELD)) / np.sqrt(SEEN)
    made = []
    for number in range(count):
        seen = chance.normal(size=(CELLS, SEEN)).astype(np.float32)
        held = (seen @ mix + noise * chance.normal(size=(CELLS, HELD))).astype(np.float32)
        made.append(FeaturePair(str(number), str(number % kinds), seen, held, held[:4]))
    return made


def exchanged(some: list[FeaturePair], share: float, seed: int = 0) -> tuple[list[FeaturePair], set[str]]:
    """So many samples hold what another of their kind should."""
    chance, made = np.random.default_rng(seed), list(some)
    wrong: set[str] = set()
    for kind in {sample.kind for sample in some}:
        places = [i for i, sample in enumerate(some) if sample.kind == kind]
        chosen = [int(i) for i in chance.permutation(places)[: round(share * len(places))]]
        for own, other in zip(chosen, [*chosen[1:], *chosen[:1]], strict=True):
            made[own] = replace(some[own], targets=some[other].targets, appearance=some[other].appearance)
            wrong.add(some[own].id)
    return made, wrong


@pytest.mark.parametrize("count", [24, 60, 240])
def test_features_that_belong_together_fit_best(count):
    found = pair_up(samples(count))
    assert found.mean > 0.95 and not found.misfits and not found.some_are_wrong(0.005)
    assert len(found.ids) == count and found.interval[1] <= 1.0 and found.wrong_share == 0


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_wrong_ones_are_counted_and_named(share):
    made, wrong = exchanged(samples(240), share)
    found = pair_up(made)
    assert found.some_are_wrong(0.005)
    low, high = found.wrong_interval
    assert low <= share <= high and abs(found.wrong_share - share) < 0.12
    assert len(found.misfits) > 0.25 * len(wrong) and set(found.misfits) <= wrong


def test_off_by_one_is_chance():
    some = samples(120, kinds=1)
    late = [
        replace(own, targets=other.targets, appearance=other.appearance)
        for own, other in zip(some, some[1:] + some[:1], strict=True)
    ]
    found = pair_up(late)
    assert found.interval[0] < 0.5 < found.interval[1] < 0.75 and found.some_are_wrong(0.005)


@pytest.mark.parametrize(("noise", "stray"), [(2.5, 0.005), (3, 0.005), (4, 0.05)])
def test_what_says_little_is_not_taken_for_wrong(noise, stray):
    """Some comparisons are lost by right samples, and the fewer, the nearer to chance."""
    for seed in range(20):
        found = pair_up(samples(200, noise=noise, seed=seed))
        assert 0.7 < found.mean < 0.95 and not found.some_are_wrong(stray), seed


def test_samples_that_look_the_same_are_not_compared():
    picture = samples(1)[0]
    chance = np.random.default_rng(0)
    alike = [
        replace(picture, id=str(n), targets=picture.targets + 1e-3 * chance.normal(size=picture.targets.shape))
        for n in range(60)
    ]
    assert not pair_up(alike).ids


def test_samples_of_one_text_are_not_compared():
    some = [replace(sample, text="the same") for sample in samples(60)]
    assert not pair_up(some).ids
    assert len(pair_up([replace(sample, text=sample.id) for sample in some]).ids) == 60


def test_a_kind_with_few_samples_is_left_out():
    some = samples(60, kinds=1) + [
        replace(sample, id=f"rare{n}", kind="rare") for n, sample in enumerate(samples(8, seed=5))
    ]
    assert not any(one.startswith("rare") for one in pair_up(some).ids)


def test_more_values_than_samples_are_learned_too():
    chance = np.random.default_rng(0)
    wide = [
        replace(one, inputs=np.tile(one.inputs, (1, 60)) + chance.normal(size=(CELLS, 60 * SEEN)))
        for one in samples(60)
    ]
    assert pair_up(wide).mean > 0.9


def test_the_interval_of_a_share_is_exact():
    assert clopper_pearson(0, 10, 0.95) == pytest.approx((0, 0.3085), abs=1e-4)
    assert clopper_pearson(10, 10, 0.95) == pytest.approx((0.6915, 1), abs=1e-4)
    assert clopper_pearson(8, 40, 0.95) == pytest.approx((0.0905, 0.3565), abs=1e-4)
