"""How sure a difference is: intervals that hold as often as they say, over seeds and samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dittool.ablate.statistics import BETTER, NOT_TOLD_APART, WORSE, at_look, difference


def drawn(rng, seeds, samples, effect=0.0, of_seed=0.05, of_sample=0.05, rest=0.02):
    """(Base, variant): losses with a part of each sample that both share, and of each run that they do not."""
    shared = rng.normal(1.0, 0.3, (1, samples))
    base = shared + rng.normal(0, of_seed, (seeds, 1)) + rng.normal(0, rest, (seeds, samples))
    own = rng.normal(0, of_sample, (1, samples)) + rng.normal(0, of_seed, (seeds, 1))
    return base, shared + effect + own + rng.normal(0, rest, (seeds, samples))


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_sample"), [(3, 0.05, 0.05), (3, 0.05, 0.0), (3, 0.0, 0.05), (6, 0.02, 0.1)]
)
def test_rows_that_do_nothing_are_told_apart_in_at_most_a_tenth(seeds, of_seed, of_sample):
    rng = np.random.default_rng(0)
    told = sum(
        difference(*drawn(rng, seeds, 32, 0.0, of_seed, of_sample)).verdict != NOT_TOLD_APART for _ in range(400)
    )
    assert told <= 40


def test_what_is_better_and_what_is_worse_are_found():
    rng = np.random.default_rng(1)
    verdicts = [difference(*drawn(rng, 3, 64, effect)).verdict for effect in (-0.5, 0.5)]
    assert verdicts == [BETTER, WORSE]


def test_samples_that_both_saw_make_the_interval_narrower():
    found = difference(*drawn(np.random.default_rng(2), 3, 64, of_seed=0.0, of_sample=0.01))
    assert found.narrower > 5


def test_one_seed_decides_nothing_and_says_so():
    found = difference(*drawn(np.random.default_rng(3), 1, 64, -0.5))
    assert found.verdict == BETTER and not found.decides
    assert found.words() == "better on one seed, 3 decide"


def test_what_is_not_told_apart_says_how_many_seeds_would_tell():
    base = np.zeros((3, 1))
    found = difference(base, np.array([[0.1], [0.2], [-0.15]]))
    assert found.verdict == NOT_TOLD_APART
    half = (found.high - found.low) / 2
    assert f"about {math.ceil(3 * (half / found.mean) ** 2)} seeds" in found.words()


def test_a_single_figure_has_no_interval():
    found = difference(np.zeros((1, 1)), np.ones((1, 1)))
    assert math.isnan(found.low) and found.words() == "one figure: no interval"


def test_equal_tables_are_not_told_apart():
    table = np.random.default_rng(4).normal(size=(3, 8))
    found = difference(table, table)
    assert (found.mean, found.verdict) == (0, NOT_TOLD_APART)


LOOKS = 4  # three on the way and the end


def curves(rng, effect=0.0, of_seed=0.05, of_sample=0.05, rest=0.02, seeds=3, samples=32):
    """(LOOKS, seeds, samples) differences: what is luck of a seed, of a sample and of both drifts from look to look."""

    def luck(*size):
        return rng.normal(0, 1, (LOOKS, *size)).cumsum(axis=0) / math.sqrt(LOOKS)

    return effect + of_seed * luck(seeds, 1) + of_sample * luck(1, samples) + rest * luck(seeds, samples)


def looked_at(found):
    """(Whether it is stopped at one of the looks on the way, told apart there or at the end)"""
    *on_the_way, end = found
    stopped = any(at_look(np.zeros_like(one), one, LOOKS).verdict == WORSE for one in on_the_way)
    return stopped, stopped or difference(np.zeros_like(end), end).verdict != NOT_TOLD_APART


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_sample"),
    [(3, 0.05, 0.05), (3, 0.05, 0.0), (3, 0.0, 0.05), (3, 0.01, 0.05), (6, 0.02, 0.1)],
)
def test_rows_that_do_nothing_may_be_looked_at_at_every_evaluation(seeds, of_seed, of_sample):
    """Stopped in at most 5 of 100, and told apart, there or at the end, in at most 10."""
    rng = np.random.default_rng(5)
    found = [looked_at(curves(rng, 0.0, of_seed, of_sample, seeds=seeds)) for _ in range(400)]
    stopped, told_apart = map(sum, zip(*found, strict=True))
    assert stopped <= 20 and told_apart <= 40


def test_intervals_of_95_percent_would_not_bear_so_many_looks():
    """Why there is a sequence: the same rows with the interval of a single look."""
    rng = np.random.default_rng(5)
    zero = np.zeros((3, 32))
    found = [any(difference(zero, one).verdict != NOT_TOLD_APART for one in curves(rng)) for _ in range(400)]
    assert sum(found) > 40


def test_planted_harm_is_seen_at_the_first_look():
    rng = np.random.default_rng(6)
    first = [at_look(np.zeros((3, 32)), curves(rng, 0.5)[0], LOOKS).verdict for _ in range(100)]
    assert first.count(WORSE) > 90


def test_a_look_needs_three_seeds():
    found = at_look(np.zeros((2, 8)), np.ones((2, 8)), LOOKS)
    assert found.mean == 1 and math.isnan(found.low)
    assert found.verdict == NOT_TOLD_APART
