"""Caption lists of COCO, Karpathy, Flickr and others, and tars, each made small: every picture has the caption that its
author meant, with its own pixels, or the error says how to say it.
"""

from __future__ import annotations

import csv
import io
import json

import pytest

from dittool.data.source.scan import scan
from tests.data.source.layouts import BUCKETS, BUS, CAPTIONS, CAT, DOG, SEA, error_of, pairs, put, read, table, tar

# --- COCO, Karpathy, Flickr ---


def coco(names, numbers):
    return {
        "images": [{"id": 10 + number, "file_name": name} for name, number in zip(names, numbers, strict=True)],
        "annotations": [
            {"id": i, "image_id": 10 + number, "caption": text}
            for i, (number, text) in enumerate((n, t) for n in reversed(numbers) for t in (CAPTIONS[n], "another"))
        ],
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_coco_with_splits(tmp_path, encoding):
    put(tmp_path, {"train2017/0.jpg": DOG, "train2017/1.jpg": CAT, "val2017/0.jpg": BUS, "val2017/1.jpg": SEA})
    for split, numbers in (("train2017", [0, 1]), ("val2017", [2, 3])):
        path = put(tmp_path, {f"annotations/captions_{split}.json": ""}) / f"annotations/captions_{split}.json"
        path.write_text(json.dumps(coco(["0.jpg", "1.jpg"], numbers)), encoding=encoding)
        put(tmp_path, {f"annotations/instances_{split}.json": {"images": [], "annotations": [{"bbox": [0, 0, 1, 1]}]}})
    assert read(tmp_path) == pairs(["train2017/0", "train2017/1", "val2017/0", "val2017/1"])


def karpathy(rows):
    return {
        "dataset": "x",
        "images": [
            {"sentids": [0, 1], "imgid": number, "split": "train"}
            | {"sentences": [{"raw": text, "tokens": text.split()} for text in (CAPTIONS[number], "another")]}
            | row
            for number, row in enumerate(rows)
        ],
    }


def test_karpathy_of_flickr_and_of_coco(tmp_path):
    put(tmp_path / "flickr", {f"images/{name}.jpg": number for number, name in enumerate("abcd")})
    put(tmp_path / "flickr", {"dataset_flickr8k.json": karpathy([{"filename": f"{name}.jpg"} for name in "abcd"])})
    assert read(tmp_path / "flickr") == pairs([f"images/{name}" for name in "abcd"])
    assert read(tmp_path / "flickr/dataset_flickr8k.json") == pairs([f"images/{name}" for name in "abcd"])
    folders = ["train2014", "val2014", "train2014", "val2014"]
    put(tmp_path / "coco", {f"{folder}/{number % 2}{number}.jpg": number for number, folder in enumerate(folders)})
    rows = [{"filepath": folder, "filename": f"{number % 2}{number}.jpg"} for number, folder in enumerate(folders)]
    put(tmp_path / "coco", {"dataset_coco.json": karpathy(rows)})
    assert read(tmp_path / "coco") == pairs([f"{folder}/{n % 2}{n}" for n, folder in enumerate(folders)])
    flags = [record.flags for record in scan(tmp_path / "coco", BUCKETS)]
    assert flags == [("further-captions:1",)] * 4


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", ["flickr8k of kaggle", "flickr30k of kaggle", "tokens", "results.token"])
def test_flickr(tmp_path, kind, encoding):
    put(tmp_path, {f"Images/{name}.jpg": number for number, name in enumerate("abcd")})
    rows = [(name, text) for number, name in enumerate("abcd") for text in (CAPTIONS[number], "another", "a third")]
    file = io.StringIO(newline="")
    if kind == "flickr8k of kaggle":
        path = tmp_path / "captions.txt"
        csv.writer(file).writerows([("image", "caption"), *((f"{name}.jpg", text) for name, text in rows)])
    elif kind == "flickr30k of kaggle":
        path = tmp_path / "captions.txt"
        lines = [f"{name}.jpg| {i % 3}| {text}" for i, (name, text) in enumerate(rows)]
        file.write("\n".join(["image_name| comment_number| comment", *lines]) + "\n")
    else:
        path = tmp_path / ("text/Flickr8k.token.txt" if kind == "tokens" else "results_20130124.token")
        file.write("".join(f"{name}.jpg#{i % 3}\t{text}\n" for i, (name, text) in enumerate(rows)))
        put(tmp_path, {"text/Flickr8k.lemma.token.txt": "a.jpg#0\ta red dog sleep\n"})
        put(tmp_path, {"text/Flickr_8k.trainImages.txt": "a.jpg\nb.jpg\n"})
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(file.getvalue().encode(encoding))
    found = {name: what for name, what in read(tmp_path).items() if what != "no-image"}
    assert found == pairs([f"Images/{name}" for name in "abcd"])
    assert all(record.flags == ("further-captions:2",) for record in scan(tmp_path, BUCKETS) if record.used)
    if path.parent == tmp_path:
        assert read(path) == pairs([f"Images/{name}" for name in "abcd"])
    else:
        assert "give the folder that holds both" in error_of(path).hint


def test_flickr_annotations_whose_cells_hold_lists(tmp_path):
    put(tmp_path, {"photos/a.jpg": DOG, "photos/b.jpg": CAT})
    rows = [(json.dumps([CAPTIONS[DOG], "another"]), "a.jpg"), (str([CAPTIONS[CAT], "it's"]), "b.jpg")]
    table(tmp_path / "flickr_annotations_30k.csv", ("raw", "filename"), *rows)
    error = error_of(tmp_path / "flickr_annotations_30k.csv")
    assert "its columns are raw, filename" in error.message and "-s data.caption_column=NAME" in error.hint
    found = read(tmp_path / "flickr_annotations_30k.csv", caption_column="raw")
    assert found == pairs(["photos/a", "photos/b"])


@pytest.mark.parametrize("shape", ["objects", "lines", "texts", "lists of texts", "under a key"])
def test_lists_in_json(tmp_path, shape):
    put(tmp_path, {f"img/{name}.jpg": number for number, name in enumerate("abcd")})
    rows = [{"image": f"img/{name}.jpg", "caption": CAPTIONS[number], "id": 3} for number, name in enumerate("abcd")]
    shapes = {
        "objects": rows,
        "texts": {row["image"]: row["caption"] for row in rows},
        "lists of texts": {row["image"]: [row["caption"], "another"] for row in rows},
        "under a key": {"info": {"version": 1}, "data": rows},
    }
    shapes["lines"] = "\n".join(map(json.dumps, rows))  # ControlNet's prompt.json
    put(tmp_path, {"train.json": shapes[shape], "config.json": {"caption": "of nothing", "size": 3}})
    assert read(tmp_path) == read(tmp_path / "train.json") == pairs([f"img/{name}" for name in "abcd"])


# --- plain tar, and lists that were written elsewhere ---


def test_a_plain_tar_of_a_folder(tmp_path):
    files = {f"./photos/{name}.png": number for number, name in enumerate("abcd")}
    tar(tmp_path / "a.tar", files | {f"./photos/{name}.txt": CAPTIONS[n] for n, name in enumerate("abcd")})
    assert read(tmp_path / "a.tar") == pairs([f"photos/{name}" for name in "abcd"])


@pytest.mark.parametrize("path", ["img\\{name}.png", "data/set/img/{name}.png", "{name}.png", "img/{name}"])
def test_lists_written_for_another_place_are_read_and_that_is_said(tmp_path, path, listener):
    put(tmp_path, {f"img/{name}.png": number for number, name in enumerate("abcd")})
    rows = [(path.format(name=name), CAPTIONS[number]) for number, name in enumerate("abcd")]
    table(tmp_path / "metadata.csv", ("file_name", "text"), *reversed(rows))
    assert read(tmp_path) == read(tmp_path / "metadata.csv") == pairs([f"img/{name}" for name in "abcd"])
    for source in (tmp_path, tmp_path / "metadata.csv"):
        listener.notes.clear()
        scan(source, BUCKETS, listener)
        (note,) = [note for note in listener.notes if "written for another folder" in note]
        assert "metadata.csv" in note and " is img/d.png" in note


def test_a_name_that_two_images_have_is_refused(tmp_path):
    put(
        tmp_path, {"one/a.png": DOG, "two/a.png": CAT, "two/b.png": BUS, "captions.txt": "image,caption\na.png,a dog\n"}
    )
    (tmp_path / "captions.txt").write_text("image,caption\na.png,a dog\nb.png,a bus\n")
    reasons = read(tmp_path)
    assert reasons["two/b"] == ("a bus", BUS) and "two-images" in reasons.values()
    assert reasons["one/a"] == reasons["two/a"] == "no-caption"


def test_where_all_names_are_those_of_two_images_each_is_refused_and_said(tmp_path):
    put(tmp_path, {"train/0.png": DOG, "test/0.png": CAT, "text/captions.txt": "image,caption\n0.png,a dog\n"})
    assert "none of 2 images has a caption" in error_of(tmp_path).message
    table(tmp_path / "list.csv", ("file_name", "text"), ("0.png", "a dog"))
    (record,) = scan(tmp_path / "list.csv", BUCKETS)
    assert record.reason == "two-images" and record.detail == "0.png may be test/0.png and train/0.png"


def test_a_damaged_list_in_a_text_is_an_error_that_says_how_to_leave_it_unread(tmp_path):
    put(tmp_path, {"a.png": DOG, "a.txt": "a dog", "captions.txt": 'image,caption\na.png,"a "dog"\n'})
    error = error_of(tmp_path)
    assert "captions.txt" in error.message and "-s data.captions=txt" in error.hint
    assert read(tmp_path, captions="txt")["a"] == ("a dog", DOG)


def test_a_list_one_of_whose_images_is_there_looks_for_none_elsewhere(tmp_path):
    put(tmp_path, {"a.png": DOG, "old/b.png": CAT, "metadata.csv": "file_name,text\na.png,a dog\nb.png,a cat\n"})
    assert read(tmp_path) == {"a": ("a dog", DOG), "b": "no-image", "old/b": "no-caption"}


@pytest.mark.parametrize(
    "text",
    [
        "a.png\t3\nb.png\t4\n",  # labels
        "a.png\tdog\nb.png\tcat\n",
        "a.png\nb.png\n",  # names of a split
        "a.png,b.png\n",
        "see a.png for the dog\n",
        "a.png\t0.5\t0.5\t0.1 0.2\n",
    ],
)
def test_texts_that_are_no_lists_of_captions_caption_nothing(tmp_path, text):
    put(tmp_path, {"a.png": DOG, "b.png": CAT, "list.txt": text})
    assert "none of 2 images has a caption" in error_of(tmp_path).message


def test_names_with_labels_in_json_are_captions_only_when_asked_for(tmp_path):
    put(tmp_path, {"a.png": DOG, "b.png": CAT, "labels.json": {"a.png": "dog", "b.png": "cat"}})
    assert "labels.json (with a.png, b.png)" in error_of(tmp_path).message
    assert read(tmp_path, captions="metadata") == {"a": ("dog", DOG), "b": ("cat", CAT)}


@pytest.mark.parametrize("name", ["list.json", "list.txt"])
def test_captions_in_a_script_without_spaces_are_no_labels(tmp_path, name):
    pairs_there = {"a.png": "一只黑狗", "b.png": "绿色的猫"}
    lines = "".join(f"{image}\t{text}\n" for image, text in pairs_there.items())
    put(tmp_path, {"a.png": DOG, "b.png": CAT, name: pairs_there if name == "list.json" else lines})
    assert read(tmp_path) == {"a": ("一只黑狗", DOG), "b": ("绿色的猫", CAT)}
