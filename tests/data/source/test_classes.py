"""A folder of class folders: where it is asked for, the folder's name is class and caption, and goes with the sample
into the shards.
"""

from __future__ import annotations

import json

import pytest
from PIL import Image

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.records import record_from_json, record_to_json
from dittool.data.shards.read import ShardSet
from dittool.data.shards.write import shard
from dittool.data.source.item import Pairing
from dittool.data.source.scan import scan
from dittool.data.source.sources import list_source
from dittool.errors import BadDataError
from dittool.geometry import Bucket

SMALL = ['data.buckets=["64x64"]', "data.holdout=0.0", "data.captions=folder"]
BY_FOLDER = Pairing("folder")


@pytest.fixture
def images(tmp_path):
    for path in ("red-fox/one.png", "red-fox/deep/two.png", "owl/one.png"):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (len(path), 90, 10)).save(tmp_path / "images" / path)
    return tmp_path / "images"


def test_the_outermost_folder_is_the_class_and_its_words_the_caption(images):
    source = list_source(images, BY_FOLDER)
    assert source.kind == "classes"
    found = {item.name: (item.cls, item.caption) for item in source.items}
    assert found == {
        "red-fox/one": ("red-fox", "red fox"),
        "red-fox/deep/two": ("red-fox", "red fox"),
        "owl/one": ("owl", "owl"),
    }


def test_a_folders_name_is_no_caption_unless_it_is_asked_for_and_the_error_says_both_ways(images):
    with pytest.raises(BadDataError) as caught:
        list_source(images)
    assert "none of 3 images has a caption" in caught.value.message and "NAME.txt" in caught.value.message
    assert "-s data.captions=folder" in caught.value.hint and "give each image its caption" in caught.value.hint


def test_one_caption_makes_nobody_else_fall_back_to_the_folders_name(images):
    (images / "owl/one.txt").write_text("an owl on a branch")
    found = {item.name: (item.cls, item.reason) for item in list_source(images).items}
    assert found == {"owl/one": ("", ""), "red-fox/one": ("", "no-caption"), "red-fox/deep/two": ("", "no-caption")}


def test_what_is_asked_for_holds_beside_captions_too_and_they_are_counted_and_told(images, listener):
    (images / "owl/one.txt").write_text("an owl on a branch")
    records = scan(images, [Bucket(64, 64)], listener, pairing=BY_FOLDER)
    assert sorted(record.caption for record in records) == ["owl", "red fox", "red fox"]
    assert any("1 captions in texts are not read" in text for text in listener.warnings)


def test_folders_that_are_called_as_splits_are_told(tmp_path, listener):
    for path in ("train/cat/a.png", "val/cat/b.png"):
        (tmp_path / path).parent.mkdir(parents=True)
        Image.new("RGB", (64, 64), (len(path), 90, 10)).save(tmp_path / path)
    scan(tmp_path, [Bucket(64, 64)], listener, pairing=BY_FOLDER)
    assert any("called as splits are" in text for text in listener.warnings)


def test_numbers_before_names_are_told_because_they_become_words(tmp_path, listener):
    (tmp_path / "10_stamp").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "10_stamp/a.png")
    assert scan(tmp_path, [Bucket(64, 64)], listener, pairing=BY_FOLDER)[0].caption == "10 stamp"
    assert any("as kohya's repeats" in text for text in listener.warnings)


def test_an_image_outside_of_a_folder_has_no_class_and_is_refused(images):
    Image.new("RGB", (64, 64)).save(images / "loose.png")
    found = {item.name: item.reason for item in list_source(images, BY_FOLDER).items if item.reason}
    assert found == {"loose": "no-caption"}


@pytest.mark.parametrize(("preset", "captions"), [("drift-demo", "folder"), ("drift-b2", "folder"), ("nano", "auto")])
def test_presets_of_classes_ask_for_folders_names_by_themselves(preset, captions):
    assert load_config(preset).data.captions == captions
    assert load_config(preset, ["data.captions=txt"]).data.captions == "txt"


def test_classes_go_with_the_samples_into_the_index_and_the_records_of_shards(images, tmp_path):
    done = embed(images, tmp_path / "derived", load_config("demo", SMALL))
    assert {record.cls for record in done.records} == {"red-fox", "owl"}
    shard(tmp_path / "derived", tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    assert shards.classes == ["owl", "red-fox"]
    assert sorted(shards.read_record(ref).cls for ref in shards.samples) == ["owl", "red-fox", "red-fox"]


def test_a_captioned_set_has_no_classes(tiny_shards):
    shards = ShardSet.open(tiny_shards.folder)
    assert shards.classes == [] and shards.read_record(shards.samples[0]).cls == ""


def test_an_index_whose_classes_are_no_names_is_refused(images, tmp_path):
    embed(images, tmp_path / "derived", load_config("demo", SMALL))
    shard(tmp_path / "derived", tmp_path / "shards")
    path = tmp_path / "shards/index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": ["owl", 7]}))
    with pytest.raises(BadDataError, match="classes is no list of different names"):
        ShardSet.open(tmp_path / "shards")


def test_a_class_in_a_record_must_be_text():
    record = {"id": "a", "name": "a", "image": "a.png", "status": "used", "cls": "owl"}
    assert record_to_json(record_from_json(record, "here"))["cls"] == "owl"
    with pytest.raises(BadDataError, match="cls = 3"):
        record_from_json(record | {"cls": 3}, "here")
