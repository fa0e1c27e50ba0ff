"""The margin between two references, and the chance of a mean margin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dittool.validate.swap import margins_between, sign_flip_p


@pytest.fixture
def features():
    """(CLS, patches) of originals and references, five of each."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(5, 16, generator=generator), torch.randn(5, 12, 16, generator=generator)) for _ in range(2)]


def test_a_result_equal_to_the_reference_has_margin_1_and_to_the_original_minus_1(features):
    originals, references = features
    assert margins_between(references, originals, references).flatten().tolist() == pytest.approx([1] * 10)
    assert margins_between(originals, originals, references).flatten().tolist() == pytest.approx([-1] * 10)


def test_cls_and_patches_have_margins_of_their_own(features):
    (cls_a, patches_a), references = features
    assert margins_between((cls_a, references[1]), (cls_a, patches_a), references).mean(
        dim=1
    ).tolist() == pytest.approx([-1, 1])


def test_a_result_between_both_has_margin_0(features):
    originals, references = ([x / x.norm(dim=-1, keepdim=True) for x in side] for side in features)
    between = tuple((a + b) / 2 for a, b in zip(originals, references, strict=True))
    assert margins_between(between, tuple(originals), tuple(references)).abs().max() < 1e-5


def test_a_large_common_part_of_all_features_does_not_drown_the_margin(features):
    originals, references = (tuple(x + 20 for x in side) for side in features)
    nearer = tuple(0.2 * a + 0.8 * b for a, b in zip(originals, references, strict=True))
    assert (margins_between(nearer, originals, references) > 0.7).all()


def test_patches_are_compared_at_their_places(features):
    originals, (cls, patches) = features
    moved = cls, patches.flip(1)
    at_place, elsewhere = (margins_between(result, originals, (cls, patches)) for result in ((cls, patches), moved))
    assert at_place[1].mean() > elsewhere[1].mean() + 0.4 and at_place[0].tolist() == elsewhere[0].tolist()


def test_two_equal_references_tell_nothing(features):
    originals, _ = features
    assert margins_between(originals, originals, originals).flatten().tolist() == [0] * 10


def test_the_chance_is_exact_for_few_pairs():
    assert sign_flip_p([1.0, 2.0, 3.0]) == 1 / 8
    assert sign_flip_p([-1.0, -2.0, -3.0]) == 1
    assert sign_flip_p([1.0, -1.0]) == 3 / 4


def test_the_chance_is_that_of_scipys_permutation_test_where_both_count_every_pattern():
    from scipy.stats import permutation_test

    margins = np.random.default_rng(3).normal(0.3, 1, 9).round(2)
    theirs = permutation_test(
        (margins,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert sign_flip_p(margins) == theirs.pvalue


def test_the_chance_for_many_pairs_is_small_when_all_agree_about_a_half_when_they_do_not_and_always_the_same():
    assert sign_flip_p([0.3] * 30) == 1 / 10000
    mixed = [0.3, -0.3] * 15
    assert 0.4 < sign_flip_p(mixed) < 0.7
    assert sign_flip_p(mixed) == sign_flip_p(mixed)
