"""Several captions of an image: where they come from, and which of them are kept."""

from __future__ import annotations

import json

import pytest

from dittool.data.source.captions import CaptionRefused, KindedTexts
from dittool.data.source.flip import with_flips
from dittool.data.source.item import Pairing
from dittool.data.source.scan import scan, summary
from dittool.data.source.several import MOST_CAPTIONS, captions_of
from tests.data.source.layouts import BUCKETS, CAT, DOG, parquet, put, table, tar

TWO = Pairing(caption_columns=("short", "Long text"))
ALL, LINES = Pairing(several="all"), Pairing(several="lines")
SHORT_AND_LONG = (("short", "a dog"), ("long_text", "a red dog, asleep on a sofa"))


def kept(source, pairing):
    """Name → captions that are kept, or the reason why not."""
    found = scan(source, BUCKETS, pairing=pairing)
    return {record.name: record.captions if record.used else record.reason for record in found}


def row(**more):
    return {"file_name": "a.png", "short": "a dog", "Long text": "a red dog, asleep on a sofa", **more}


# --- columns and fields that are named ---


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "json"])
def test_named_columns_of_a_list_are_kinds_in_the_order_in_which_they_are_named(tmp_path, kind):
    put(tmp_path, {"a.png": DOG, "b.png": CAT})
    rows = [row(), row(file_name="b.png", short="", caption="not asked for")]
    if kind == "jsonl":
        put(tmp_path, {"list.jsonl": "\n".join(map(json.dumps, rows))})
    elif kind == "json":
        put(tmp_path, {"list.json": rows})
    elif kind == "csv":
        table(tmp_path / "list.csv", list(rows[1]), [*rows[0].values(), ""], list(rows[1].values()))
    else:
        parquet(tmp_path / "list.parquet", rows)
    assert kept(tmp_path / f"list.{kind}", TWO) == {"a": SHORT_AND_LONG, "b": SHORT_AND_LONG[1:]}
    turned = Pairing(caption_columns=("Long text", "short"))
    assert kept(tmp_path / f"list.{kind}", turned)["a"] == SHORT_AND_LONG[::-1]


def test_metadata_in_a_folder_and_json_in_a_tar_may_have_several(tmp_path):
    put(tmp_path / "folder", {"a.png": DOG, "metadata.jsonl": json.dumps(row())})
    assert kept(tmp_path / "folder", TWO) == {"a": SHORT_AND_LONG}
    tar(tmp_path / "a.tar", {"a.png": DOG, "a.json": json.dumps(row(width=3)), "b.png": CAT, "b.json": "{}"})
    assert kept(tmp_path / "a.tar", TWO) == {"a": SHORT_AND_LONG, "b": "no-caption"}


def test_a_list_in_a_named_column_gives_its_first_text_or_all(tmp_path):
    put(tmp_path, {"a.png": DOG, "list.jsonl": json.dumps(row(short=["a dog", "one dog"]))})
    (record,) = scan(tmp_path / "list.jsonl", BUCKETS, pairing=TWO)
    assert record.captions == SHORT_AND_LONG and record.flags == ("further-captions:1",)
    all_of_them = Pairing(caption_columns=TWO.caption_columns, several="all")
    short, long = SHORT_AND_LONG
    assert kept(tmp_path / "list.jsonl", all_of_them)["a"] == (short, ("short", "one dog"), long)


def test_a_caption_that_cannot_be_used_is_left_out_and_counted(tmp_path):
    put(tmp_path, {"a.png": DOG, "b.png": CAT})
    rows = [row(short="bell\a"), row(file_name="b.png", short="bell\a", **{"Long text": 7})]
    put(tmp_path, {"list.jsonl": "\n".join(map(json.dumps, rows))})
    used, refused = scan(tmp_path / "list.jsonl", BUCKETS, pairing=TWO)
    assert used.captions == SHORT_AND_LONG[1:] and used.caption == SHORT_AND_LONG[1][1]
    assert used.flags == ("captions-left-out:1",) and refused.reason == "caption-control"
    assert ("captions-left-out: of several, that cannot be used", 1, "a: 1") in summary([used]).rows_of_flags()


# --- several under one name ---


def test_lists_and_repeated_rows_are_kept_where_all_are_asked_for(tmp_path):
    put(tmp_path, {"a.png": DOG, "b.png": CAT})
    rows = [{"file_name": "a.png", "text": ["one", "two", "one"]}, {"file_name": "b.png", "text": "b"}]
    put(tmp_path, {"list.jsonl": "\n".join(json.dumps(one) for one in [*rows, {"file_name": "b.png", "text": "c"}])})
    all_of = {"a": (("caption", "one"), ("caption", "two")), "b": (("caption", "b"), ("caption", "c"))}
    assert kept(tmp_path / "list.jsonl", ALL) == all_of
    assert kept(tmp_path / "list.jsonl", Pairing()) == {"a": (), "b": ()}


def test_lines_of_a_text_are_captions_only_where_lines_are_asked_for(tmp_path):
    put(tmp_path, {"a.png": DOG, "a.txt": "a dog\n\n  a red   dog\n", "b.png": CAT, "b.caption": "a cat"})
    assert kept(tmp_path, ALL) == {"a": (("caption", "a dog a red dog"),), "b": (("caption", "a cat"),)}
    lines = {"a": (("caption", "a dog"), ("caption", "a red dog")), "b": (("caption", "a cat"),)}
    assert kept(tmp_path, LINES) == lines
    tar(tmp_path / "t/a.tar", {"a.png": DOG, "a.txt": "a dog\na red dog"})
    assert kept(tmp_path / "t/a.tar", LINES) == {"a": lines["a"]}


def test_an_image_keeps_so_many_captions_at_most():
    found = captions_of([f"dog {number}" for number in range(MOST_CAPTIONS + 5)], ALL)
    assert len(found.kept) == MOST_CAPTIONS and found.further == 5
    with pytest.raises(CaptionRefused, match="empty"):
        captions_of(KindedTexts((("short", "  "),)), TWO)
    with pytest.raises(CaptionRefused, match="the list of captions is empty"):
        captions_of([], ALL)


# --- mirrored ---


def mirrored(tmp_path, **columns):
    put(tmp_path, {"a.png": DOG, "list.jsonl": json.dumps(row(**columns))})
    return with_flips(scan(tmp_path / "list.jsonl", BUCKETS, pairing=TWO))


def test_left_and_right_are_swapped_in_each_caption(tmp_path):
    record, flip = mirrored(tmp_path, short="a dog on the left", **{"Long text": "a cat to the right of a dog"})
    assert flip.flipped and flip.caption == "a dog on the right"
    assert flip.captions == (("short", "a dog on the right"), ("long_text", "a cat to the left of a dog"))
    assert record.captions[0][1] == "a dog on the left"


def test_a_caption_that_is_unclear_is_left_out_of_the_variant_and_one_that_tells_of_text_forbids_it(tmp_path):
    _, flip = mirrored(tmp_path, short="a dog left behind", **{"Long text": "a dog on the left"})
    assert flip.captions == (("long_text", "a dog on the right"),) and flip.caption == "a dog on the right"
    (record,) = mirrored(tmp_path, **{"Long text": 'a dog beside a sign that says "stop"'})
    assert record.flags == ("not-flipped:text-in-image",)
