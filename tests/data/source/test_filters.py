"""Filters: what does not pass is refused with its own reason, counted, and taken back when the filter goes."""

from __future__ import annotations

import json

import pytest

from dittool.config.features import Keep
from dittool.config.load import ConfigError, load_config
from dittool.data.features.embed import embed
from dittool.data.source.item import Pairing
from dittool.data.source.scan import scan, summary
from dittool.errors import UsageError
from tests.data.source.layouts import BUCKETS, BUS, CAPTIONS, CAT, DOG, SEA, image_bytes, parquet, put, table
from tests.data.source.picture_files import encoded, picture


@pytest.fixture
def images(tmp_path):
    folder = put(tmp_path / "images", {f"{name}.png": n for n, name in enumerate("abcd")})
    for number, name in enumerate("abcd"):
        (folder / f"{name}.txt").write_text(CAPTIONS[number])
    (folder / "wide.png").write_bytes(encoded(picture(192, 64)))
    (folder / "wide.txt").write_text("\u4e00\u53ea\u9ed1\u72d7 dog")
    return folder


def reasons(source, pairing=None, **keep):
    found = scan(source, BUCKETS, pairing=pairing or Pairing(), keep=Keep(**keep))
    return {record.name: record.reason for record in found if not record.used}


def test_each_filter_refuses_what_does_not_pass_with_its_own_reason(images, tmp_path):
    everyone = dict.fromkeys(("a", "b", "c", "d", "wide"), "filtered:min-side")
    assert reasons(images, min_side=65) == everyone and reasons(images, min_side=64) == {}
    assert reasons(images, max_aspect=2.9) == {"wide": "filtered:max-aspect"} and reasons(images, max_aspect=3.0) == {}
    assert reasons(images, caption="dog|cat") == {"c": "filtered:caption", "d": "filtered:caption"}
    assert reasons(images, not_caption="(?i)DOG") == {"a": "filtered:not-caption", "wide": "filtered:not-caption"}
    assert reasons(images, scripts=["latin"]) == {"wide": "filtered:scripts"}
    assert reasons(images, scripts=["LATIN", "CJK"]) == {}
    (tmp_path / "some.txt").write_text("a\n\nwide.png\n")
    assert set(reasons(images, names=str(tmp_path / "some.txt"))) == {"b", "c", "d"}
    assert reasons(images, not_names=str(tmp_path / "some.txt")) == dict.fromkeys(("a", "wide"), "filtered:not-names")
    counts = summary(scan(images, BUCKETS, keep=Keep(max_aspect=2.0, caption="dog|cat")))
    assert counts.reasons == {"filtered:caption": 2, "filtered:max-aspect": 1} and counts.used == 2
    with pytest.raises(UsageError, match=r"data\.keep\.names: .*none\.txt cannot be read"):
        reasons(images, names=str(tmp_path / "none.txt"))


@pytest.mark.parametrize("kind", ["csv", "parquet", "embedded"])
def test_scores_of_a_list_or_table(tmp_path, kind):
    scores = [4.0, 6.5, 7.0, None]
    if kind == "embedded":
        rows = [
            {"image": {"bytes": image_bytes(n, "png"), "path": None}, "text": CAPTIONS[n], "Aesthetic Score": scores[n]}
            for n in (DOG, CAT, BUS, SEA)
        ]
        parquet(tmp_path / "list.parquet", rows)
    else:
        put(tmp_path, {f"{name}.png": n for n, name in enumerate("abcd")})
        rows = [
            {"path": f"{name}.png", "text": CAPTIONS[n], "Aesthetic Score": scores[n]} for n, name in enumerate("abcd")
        ]
        if kind == "csv":
            table(
                tmp_path / "list.csv", list(rows[0]), *(["" if v is None else v for v in row.values()] for row in rows)
            )
        else:
            parquet(tmp_path / "list.parquet", rows)
    source = tmp_path / ("list.csv" if kind == "csv" else "list.parquet")
    found = scan(source, BUCKETS, pairing=Pairing(scores=(("aesthetic_score", 5.0, 6.9),)))
    assert [record.reason for record in found] == ["filtered:scores", "", "filtered:scores", "filtered:scores"]
    assert "aesthetic_score is 4, kept are 5 to 6.9" in found[0].detail and "is no number" in found[3].detail


def test_of_several_captions_those_that_do_not_pass_are_taken_out(tmp_path):
    rows = [
        {"file": "a.png", "short": "a dog", "long": "stock photo of a dog"},
        {"file": "b.png", "long": "stock photo"},
    ]
    put(tmp_path, {"a.png": DOG, "b.png": CAT, "list.jsonl": "\n".join(map(json.dumps, rows))})
    kinds = Pairing(caption_columns=("long", "short"))
    used, refused = scan(tmp_path / "list.jsonl", BUCKETS, pairing=kinds, keep=Keep(not_caption="stock photo"))
    assert used.captions == (("short", "a dog"),) and used.caption == "a dog"
    assert refused.reason == "filtered:not-caption"


def test_a_filter_is_taken_back_without_reading_anything_anew(images, tmp_path, listener):
    def run(*overrides):
        small = ("data.area=None", "data.buckets=['64x64','192x64']", "data.near_copies=ignored")
        return embed(images, tmp_path / "derived", load_config("demo", [*small, *overrides]), ["t5"], listener)

    assert len(run().used) == 5
    filtered = run("data.keep.max_aspect=2.0", "data.keep.caption=dog|cat|bus")
    assert [record.name for record in filtered.used] == ["a", "b", "c"] and filtered.made == {"t5": 0}
    again = run()
    assert len(again.used) == 5 and again.made["t5"] <= 2  # what was refused meanwhile


def test_a_filter_that_cannot_be_is_a_mistake_of_the_configuration():
    for bad in (
        "data.keep.caption=(",
        "data.keep.max_aspect=0.5",
        "data.keep.min_size=3",
        "data.keep.scores={a=[1.0]}",
    ):
        with pytest.raises(ConfigError, match=r"data\.keep"):
            load_config("nano", [bad])
