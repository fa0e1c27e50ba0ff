"""A folder of class folders: the folder's name is class and caption, and goes with the sample into the shards."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.records import record_from_json, record_to_json
from dittool.data.shards.read import ShardSet
from dittool.data.shards.write import shard
from dittool.data.source.sources import list_source
from dittool.errors import BadDataError

SMALL = ['data.buckets=["64x64"]', "data.holdout=0.0"]


@pytest.fixture
def images(tmp_path):
    for path in ("red-fox/one.png", "red-fox/deep/two.png", "owl/one.png"):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (len(path), 90, 10)).save(tmp_path / "images" / path)
    return tmp_path / "images"


def test_the_outermost_folder_is_the_class_and_its_words_the_caption(images):
    source = list_source(images)
    assert source.kind == "classes"
    found = {item.name: (item.cls, item.caption) for item in source.items}
    assert found == {
        "red-fox/one": ("red-fox", "red fox"),
        "red-fox/deep/two": ("red-fox", "red fox"),
        "owl/one": ("owl", "owl"),
    }


@pytest.mark.parametrize("stray", ["owl/one.txt", "readme.txt"])
def test_one_caption_makes_it_a_captioned_folder_again(images, stray):
    (images / stray).write_text("an owl")
    source = list_source(images)
    assert source.kind == "folder" and all(item.cls == "" for item in source.items)


def test_an_image_outside_of_a_folder_makes_it_no_class_folder(images):
    Image.new("RGB", (64, 64)).save(images / "loose.png")
    assert list_source(images).kind == "folder"


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
