"""D8 on sets of older programs: the mask against the text that it masks, and against the caption."""

from __future__ import annotations

import numpy as np
import pytest

from tests.audit.misplaced import clean, colour_eyes
from tests.audit.older import judge, pack, some_text

IMAGES = 24


@pytest.fixture(scope="module")
def pictures():
    return [np.full((64, 64, 3), number, np.uint8) for number in range(IMAGES)]


def judged(folder, pictures, texts):
    eyes = colour_eyes()
    return judge(pack(folder, pictures, [clean(eyes, picture) for picture in pictures], texts=texts), "D8")["D8"]


def texts(length, padding=0.0, caption="picture number {}"):
    return {number: some_text(caption.format(number), length, number, padding) for number in range(IMAGES)}


@pytest.mark.parametrize("padding", [0.0, 0.25], ids=["of zeros", "as the encoder gave it"])
def test_padding_behind_the_mask_is_no_fault(pictures, padding, tmp_path):
    finding = judged(tmp_path, pictures, texts(6, padding))
    assert finding.status == "pass" and "6 tokens on average" in finding.evidence, finding


def test_a_mask_of_ones_over_zeros_is_told_from_the_text(pictures, tmp_path):
    masked = {number: (caption, text, np.ones(512, bool)) for number, (caption, text, _) in texts(6).items()}
    finding = judged(tmp_path, pictures, masked)
    assert finding.status == "fail" and "says 512 tokens, only 6 rows hold text" in finding.evidence, finding


def test_a_mask_of_ones_over_what_the_encoder_made_of_padding_is_told_from_the_caption(pictures, tmp_path):
    masked = {
        number: (caption, text, np.ones(512, bool)) for number, (caption, text, _) in texts(6, padding=0.25).items()
    }
    finding = judged(tmp_path, pictures, masked)
    assert finding.status == "fail" and "says 512 tokens, its caption has 16 bytes" in finding.evidence, finding


def test_a_mask_with_holes_fails(pictures, tmp_path):
    masked = {
        number: (caption, text, mask & (np.arange(512) != 3)) for number, (caption, text, mask) in texts(6).items()
    }
    finding = judged(tmp_path, pictures, masked)
    assert finding.status == "fail" and "not ones and then zeros" in finding.evidence, finding


def test_captions_that_end_at_the_same_long_length_look_cut(pictures, tmp_path):
    finding = judged(
        tmp_path, pictures, texts(77, caption="picture number {} " + "and what else there is to see in it " * 10)
    )
    assert finding.status == "warn" and "24 of 24 end at exactly 77 tokens" in finding.evidence, finding


def test_equal_captions_fail(pictures, tmp_path):
    finding = judged(tmp_path, pictures, texts(6, caption="a picture"))
    assert finding.status == "fail" and "all 24 captions are equal" in finding.evidence, finding


def test_one_text_with_other_axes_is_named(pictures, tmp_path):
    odd = texts(6)
    odd[7] = (odd[7][0], odd[7][1].reshape(-1), odd[7][2])
    finding = judged(tmp_path, pictures, odd)
    assert finding.status == "fail" and "0007: its text features have shape (4096,)" in finding.evidence, finding
