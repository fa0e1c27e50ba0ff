"""Captions: rows 41 and 43 of the fault catalogue, and what a clean caption looks like."""

import os

import pytest

from dittool.data.source.captions import (
    LARGEST_CAPTION,
    LARGEST_JSON,
    CaptionRefused,
    caption_in,
    check_caption,
    choose_caption,
    read_caption,
    read_caption_file,
)
from dittool.data.source.columns import read_caption_json
from dittool.errors import BadDataError


def reason(call, *arguments):
    with pytest.raises(CaptionRefused) as caught:
        call(*arguments)
    return caught.value.reason


def test_a_plain_caption_comes_back_as_it_is():
    assert read_caption(b"a red circle on the left, a blue background") == "a red circle on the left, a blue background"


def test_ends_are_stripped_and_white_space_and_lines_are_joined():
    assert read_caption(b"  a red\tcircle \r\n on  the\nleft\n") == "a red circle on the left"
    assert read_caption("a\u00a0b\u2003c".encode()) == "a b c"


def test_characters_of_any_script_stay():
    assert read_caption("一只黑狗 — größe 🐕‍🦺".encode()) == "一只黑狗 — größe 🐕‍🦺"
    assert read_caption("\u200fכלב שחור".encode()) == "\u200fכלב שחור"


def test_both_spellings_of_an_accent_give_the_same_caption():
    assert read_caption("cafe\u0301".encode()) == read_caption("café".encode()) == "caf\u00e9"


@pytest.mark.row(41)
@pytest.mark.parametrize("raw", [b"", b"   ", b"\n\r\n\t", b"\xef\xbb\xbf", "\u00a0\u3000".encode()])
def test_empty_and_blank_captions_are_refused(raw):
    assert reason(read_caption, raw) == "empty-caption"


@pytest.mark.row(43)
def test_a_byte_order_mark_is_dropped():
    assert read_caption(b"\xef\xbb\xbfa dog") == "a dog"


@pytest.mark.row(43)
@pytest.mark.parametrize("raw", [b"caf\xe9", b"a dog\xff", b"\xc0\xaf", b"\xed\xa0\x80", "a dog".encode("utf-16")])
def test_bytes_that_are_not_utf8_are_refused(raw):
    assert reason(read_caption, raw) == "caption-not-utf8"


@pytest.mark.row(43)
def test_the_wrong_byte_is_named():
    with pytest.raises(CaptionRefused, match="byte 0xe9 at offset 3"):
        read_caption(b"caf\xe9")


@pytest.mark.row(43)
@pytest.mark.parametrize(
    "letter", ["\0", "\x1b", "\x07", "\x0b", "\x1c", "\x7f", "\x85", "\u202e", "\u202a", "\u2066", "\u2069"]
)
def test_control_and_reordering_characters_are_refused_by_code_point(letter):
    with pytest.raises(CaptionRefused) as caught:
        read_caption(f"a {letter} dog".encode())
    assert caught.value.reason == "caption-control"
    assert f"U+{ord(letter):04X} at character 2" in caught.value.detail and letter not in str(caught.value)


@pytest.mark.row(43)
def test_a_lone_surrogate_from_json_is_refused():
    assert reason(check_caption, "a \ud800 dog") == "caption-control"


@pytest.mark.row(43)
@pytest.mark.parametrize("value", [None, 7, 1.5, True, ["a dog"], {"text": "a dog"}])
def test_a_json_value_that_is_not_text_is_refused(value):
    assert reason(check_caption, value) == "caption-not-text"


@pytest.mark.row(43)
def test_a_megabyte_is_refused_and_its_size_is_named(tmp_path):
    raw = b"dog " * 262144
    assert reason(read_caption, raw) == reason(check_caption, raw.decode()) == "caption-too-long"
    (tmp_path / "a.txt").write_bytes(raw)
    with pytest.raises(CaptionRefused, match="1,048,576 bytes"):
        read_caption_file(tmp_path / "a.txt")


@pytest.mark.row(43)
def test_the_limit_counts_bytes_in_both_ways_in():
    just_fits, too_long = "é" * (LARGEST_CAPTION // 2), "é" * (LARGEST_CAPTION // 2 + 1)
    assert check_caption(just_fits) == read_caption(just_fits.encode()) == just_fits
    assert reason(check_caption, too_long) == reason(read_caption, too_long.encode()) == "caption-too-long"


def test_a_caption_is_read_from_its_file(tmp_path):
    (tmp_path / "a.txt").write_text("a dog\n")
    assert read_caption_file(tmp_path / "a.txt") == "a dog"


def test_files_that_cannot_be_read_are_refused_and_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for name in ("missing.txt", "pipe.txt"):
        assert reason(read_caption_file, tmp_path / name) == "caption-unreadable"


def test_a_refusal_that_nobody_catches_is_a_clear_error_of_bad_data(tmp_path):
    with pytest.raises(BadDataError) as caught:
        read_caption_file(tmp_path / "missing.txt")
    assert "missing.txt" in caught.value.message and "No such file" in caught.value.message and caught.value.hint


# --- several captions ---


def test_of_a_list_the_first_is_taken_and_the_others_are_counted():
    assert choose_caption("a  dog") == ("a dog", 0)
    assert choose_caption(["a  dog"]) == ("a dog", 0)
    assert choose_caption(["a dog", "a black dog", "a dog"]) == ("a dog", 2)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ([], "empty-caption"),
        (["", "a dog"], "empty-caption"),
        (["a dog", 7], "caption-not-text"),
        ([["a dog"]], "caption-not-text"),
        ({"caption": "a dog"}, "caption-not-text"),
        (["a \0 dog", "a dog"], "caption-control"),
    ],
)
def test_a_list_with_a_bad_first_caption_or_other_things_in_it_is_refused_and_not_searched_for_a_better_one(
    value, wanted
):
    assert reason(choose_caption, value) == wanted


def test_a_row_may_say_caption_or_text_and_both_when_they_agree():
    assert caption_in({"caption": "x"}) == caption_in({"text": "x"}) == caption_in({"text": "x", "caption": "x"}) == "x"
    assert caption_in({"caption": None, "text": ["x"]}) == ["x"]
    assert reason(caption_in, {"caption": "x", "text": "y"}) == "two-captions"
    assert reason(caption_in, {"captions": "x", "text": None}) == "no-caption"


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b'"a dog"', ("a dog", 0)),
        (b'["a dog", "b"]', ("a dog", 1)),
        (b'{"caption": "a dog", "width": 3}', ("a dog", 0)),
        (b'\xef\xbb\xbf{"text": ["a dog", "b", "c"]}', ("a dog", 2)),
    ],
)
def test_a_json_file_holds_text_or_a_list_or_an_object(raw, wanted):
    assert read_caption_json(raw) == wanted


@pytest.mark.row(43)
@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b"", "caption-not-json"),
        (b"a dog", "caption-not-json"),
        (b"[" * 100_000, "caption-not-json"),
        (b"7", "caption-not-text"),
        (b"null", "caption-not-text"),
        (b'{"url": "x"}', "no-caption"),
        (b'"caf\xe9"', "caption-not-utf8"),
        (b" " * (LARGEST_JSON + 1), "caption-too-long"),
    ],
)
def test_other_json_is_refused(raw, wanted):
    assert reason(read_caption_json, raw) == wanted
