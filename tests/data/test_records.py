"""Records and their ids: rows 45 and 46 of the fault catalogue, and a records.jsonl that somebody tampered with."""

import json
from dataclasses import replace

import pytest

from dittool.data.records import (
    REFUSED,
    USED,
    Record,
    is_safe_key,
    read_records,
    record_from_json,
    record_to_json,
    safe_key,
    write_records,
)
from dittool.errors import BadDataError

RECORD = Record(
    "dog",
    "dog",
    "dog.png",
    USED,
    caption="a dog",
    image_sha256="0" * 64,
    width=3,
    height=2,
    bucket="64x64",
    crop=(0.0, 0.5, 1.0, 1.5),
)


@pytest.mark.parametrize("name", ["dog", "IMG_0001", "a-b_c", "0", "x" * 100])
def test_plain_names_are_their_own_keys(name):
    assert safe_key(name) == name


ODD = [
    "",
    ".",
    "..",
    "../../etc/x",
    "/abs",
    "a/b",
    "a\\b",
    "img.v1.2",
    "line\nend",
    "nul\0",
    "tab\t",
    "two words",
    "-rf",
    "é",
    "中文",
    "\udcff",
    "x" * 101,
    "x" * 300,
    "con:",
    "a*b",
    "🐕",
]


@pytest.mark.row(45, 46)
@pytest.mark.parametrize("name", ODD)
def test_other_names_get_a_key_that_is_safe_everywhere(name):
    key = safe_key(name)
    assert key != name and is_safe_key(key) and len(key) <= 60
    assert key.isascii() and not set(key) & set("./\\ \n\0\t:*") and not key.startswith("-")


@pytest.mark.row(45, 46)
def test_different_names_have_different_keys():
    assert (
        len({safe_key(name) for name in [*ODD, "dog", "img.v1.3", "a/c", "two  words", "a.b", "a_b", "a-b"]})
        == len(ODD) + 7
    )


@pytest.mark.row(45)
def test_both_spellings_of_an_accent_have_one_key_that_can_be_read():
    assert safe_key("caf\u00e9 noir") == safe_key("cafe\u0301 noir")
    assert safe_key("caf\u00e9 noir").startswith("cafe-noir-")


def test_records_come_back_from_their_file_as_they_were(tmp_path):
    flipped = replace(RECORD, id="dog-flip", flipped=True)
    records = [
        RECORD,
        flipped,
        Record("x", '\udcff\n"odd"', "x.png", REFUSED, "no-caption", "no x.txt beside it", flags=("a", "b")),
    ]
    write_records(tmp_path / "records.jsonl", records)
    assert read_records(tmp_path / "records.jsonl") == records
    assert len((tmp_path / "records.jsonl").read_bytes().splitlines()) == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", "../../x"),
        ("id", "a.b"),
        ("id", ""),
        ("id", 7),
        ("status", "maybe"),
        ("status", None),
        ("caption", ["a"]),
        ("width", -1),
        ("width", True),
        ("height", "2"),
        ("crop", [1, 2, 3]),
        ("crop", "0,0,1,1"),
        ("flags", "alpha"),
        ("flags", [1]),
        ("image", None),
        ("flipped", 1),
        ("flipped", "true"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(key, value):
    with pytest.raises(BadDataError, match=rf"records.jsonl: not a record: {key} = "):
        record_from_json({**json.loads(json.dumps(record_to_json(RECORD))), key: value}, "records.jsonl")


def test_missing_keys_are_named_and_unknown_ones_left_out():
    with pytest.raises(BadDataError, match="image, status missing"):
        record_from_json({"id": "a", "name": "a"}, "records.jsonl")
    with pytest.raises(BadDataError, match="not a record but list"):
        record_from_json([], "records.jsonl")
    assert record_from_json({"id": "a", "name": "a", "image": "a.png", "status": "used", "later": 1}, "x") == Record(
        "a", "a", "a.png", USED
    )


def test_only_flipped_records_speak_of_flipping():
    assert "flipped" not in record_to_json(RECORD) and record_to_json(replace(RECORD, flipped=True))["flipped"] is True


def test_an_id_that_stands_twice_is_refused(tmp_path):
    write_records(tmp_path / "records.jsonl", [RECORD, RECORD])
    with pytest.raises(BadDataError, match="1 ids stand there twice, the first is 'dog'"):
        read_records(tmp_path / "records.jsonl")


def test_a_folder_without_records_is_not_a_derived_folder(tmp_path):
    with pytest.raises(BadDataError, match="not a derived folder"):
        read_records(tmp_path / "records.jsonl")
