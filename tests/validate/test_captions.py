"""Captions trained on beside captions never seen: who has learned the words draws both, who knows captions by heart
draws the first alone.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dittool.config.load import load_config
from dittool.demo.checker import SCENE_CHECKER, parse_caption, scenes_to_ask_for
from dittool.demo.drawing import KNOWN
from dittool.validate.captions import ALONE, WITH_REFERENCE, Share, draw_captions
from tests.validate.conftest import SIMPLE
from tests.validate.oracle import CAPTIONS, Oracle, judge

FEW = replace(SCENE_CHECKER, scenes=lambda _: scenes_to_ask_for(6))


class KnowsCaptionsByHeart(Oracle):
    """Answers a caption that no data set holds with the nearest one that it was trained on."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        said = map(parse_caption, CAPTIONS)
        known = [(one.colour, one.shape, one.position, one.background) in KNOWN for one in said]
        self._words[~torch.tensor(known)] = 1e3


def test_who_has_learned_the_words_draws_both_kinds(oracle):
    found = draw_captions(oracle(), FEW, FEW.scenes(6))
    assert found.share(True, ALONE) == found.share(False, ALONE) == Share(6, 6)


def test_who_knows_captions_by_heart_draws_those_alone(drawn):
    model = KnowsCaptionsByHeart(drawn[0], load_config("demo", SIMPLE))
    found = draw_captions(model, FEW, FEW.scenes(6))
    assert found.share(True, ALONE) == Share(6, 6)
    assert found.share(False, ALONE) == Share(0, 6)


def test_who_reads_no_caption_draws_neither(oracle):
    found = draw_captions(oracle(cut=["text", "reference"]), FEW, FEW.scenes(6))
    assert found.share(True, ALONE).right + found.share(False, ALONE).right <= 1


def test_the_reference_is_given_where_it_is_said_to_be(drawn):
    seen = []

    class Noting(Oracle):
        def latents(self, conditions, noise, settings=None):
            seen.append((conditions.cls is not None, conditions.patches is not None))
            return super().latents(conditions, noise)

    found = draw_captions(Noting(drawn[0], load_config("demo", SIMPLE)), FEW, FEW.scenes(6))
    assert set(seen) == {(False, False), (True, True)}
    assert len(found.of(True, WITH_REFERENCE)) == len(found.of(False, ALONE)) == 6


def test_a_judgement_reports_both_kinds_side_by_side(drawn, oracle, tmp_path):
    limits = ("validate.thresholds.known_captions=0.9", "validate.thresholds.new_captions=0.5")
    done = judge(oracle(*limits), drawn[0], tmp_path, checker=FEW, tests=["text_manip"], limit=8)
    found = done.results["captions"]
    assert found["new"]["text_only"]["shape"]["of"] == found["known"]["both"]["all"]["of"] == 6
    passed = {one.name: one.passed for one in done.criteria}
    assert passed["known_captions"] is passed["new_captions"] is True
    page = done.report.read_text()
    assert "never seen" in page and FEW.scenes(6)[-1].caption in page


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, 0.097), (18, 0.345, 0.655), (36, 0.903, 1.0)])
def test_a_share_comes_with_wilsons_interval(right, low, high):
    assert Share(right, 36).interval == pytest.approx((low, high), abs=2e-3)
