"""Which captions are edited, and how."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dittool.validate.text_edit import exchange, find_edits
from tests.validate.oracle import trial_of


@pytest.mark.parametrize(
    ("caption", "edited"),
    [
        ("a red circle on the left", "a red circle on the right"),
        ("a red circle on the right.", "a red circle on the left."),
        ("Left of the house", "Right of the house"),
        ("TURN LEFT", "TURN RIGHT"),
        ("on the left, far left", "on the right, far right"),
        ("from left to right", "from right to left"),
        ("leftovers, bright and upright", None),
        ("left_over", None),
        ("", None),
    ],
)
def test_whole_words_are_exchanged_in_both_directions_with_their_case(caption, edited):
    assert exchange(caption, ("left", "right")) == edited


def test_words_of_any_script_and_of_several_parts_are_exchanged():
    assert exchange("ein roter Kreis über dem Haus", ("über", "unter")) == "ein roter Kreis unter dem Haus"
    assert exchange("a man sitting down", ("sitting down", "standing up")) == "a man standing up"
    assert exchange("costs 3$ (net)", ("3$", "4$")) == "costs 4$ (net)"


def test_edits_are_of_captions_that_hold_a_word_and_change_only_that(drawn, oracle):
    shards, trial = drawn[0], trial_of(oracle(), drawn[0], limit=100)
    edits = find_edits(trial, [["left", "right"], ["red", "blue"], ["purple", "orange"]])
    assert {edit.words for edit in edits} == {("left", "right"), ("red", "blue")}
    for edit in edits:
        before, after = edit.caption.split(), edit.edited.split()
        assert [{a.strip(","), b.strip(",")} for a, b in zip(before, after, strict=True) if a != b] == [set(edit.words)]
    holding = [
        s
        for s in trial.subjects
        if any(word in shards.read_record(s.ref).caption.replace(",", "").split() for word in ("left", "right"))
    ]
    assert sum(edit.words == ("left", "right") for edit in edits) == len(holding) > 0


def test_the_limit_holds_and_a_larger_one_begins_with_the_smaller(drawn, oracle):
    trial = trial_of(oracle(), drawn[0], limit=100)
    pairs = [["left", "right"], ["red", "blue"], ["top", "bottom"]]
    six, four = (find_edits(replace(trial, limit=limit), pairs) for limit in (6, 4))
    assert (len(six), len(four)) == (6, 4) and six[:4] == four
