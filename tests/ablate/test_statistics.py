"""How sure a difference is: intervals that hold as often as they say, over seeds and samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dittool.ablate.statistics import BETTER, NOT_TOLD_APART, WORSE, difference


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
