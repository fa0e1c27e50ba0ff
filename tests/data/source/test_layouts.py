"""Layouts that data sets and other trainers have, each made small: every picture has the caption that its author meant,
with its own pixels, or the error says how to say it.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from dittool.data.source.item import Pairing
from dittool.data.source.scan import load_pixels, scan
from dittool.data.source.sources import list_source
from dittool.errors import BadDataError
from dittool.geometry import Bucket

BUCKETS = [Bucket(64, 64)]
COLOURS = [(200, 30, 40), (20, 160, 60), (40, 60, 220), (240, 200, 10)]
DOG, CAT, BUS, SEA = range(4)
CAPTIONS = ["a red dog, asleep", "a green cat", 'a "blue" bus', "the sea; yellow"]


def image_bytes(number, suffix):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), COLOURS[number]).save(file, "JPEG" if suffix in ("jpg", "jpeg") else suffix.upper())
    return file.getvalue()


def put(folder, files):
    """Path → number of a picture, text, or JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            path.write_bytes(image_bytes(content, name.rpartition(".")[2]))
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def table(path, *rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in files.items():
            is_picture = isinstance(content, int)
            data = image_bytes(content, name.rpartition(".")[2]) if is_picture else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


def read(source, **pairing):
    """Name → (caption, the picture that its pixels are) of what embed would encode, or the reason why not."""
    found = {}
    for record in scan(source, BUCKETS, pairing=Pairing(**pairing)):
        if not record.used:
            found[record.name] = record.reason
            continue
        colour = load_pixels(record, source).reshape(-1, 3).mean(0)
        distances = np.abs(np.array(COLOURS) - colour).max(1)
        assert distances.min() < 3
        found[record.name] = (record.caption, int(distances.argmin()))
    return found


def pairs(names, captions=CAPTIONS):
    """What `read` gives when each picture, in this order, has its own caption."""
    return {name: (captions[number], number) for number, name in enumerate(names)}


def error_of(source, **pairing):
    with pytest.raises(BadDataError) as caught:
        list_source(source, Pairing(**pairing))
    return caught.value


# --- datasets: imagefolder ---


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("where", ["in each split", "above them"])
def test_imagefolder_with_splits_and_metadata(tmp_path, kind, where):
    names = ["train/0001.png", "train/0002.png", "test/0001.png", "test/0002.png"]
    put(tmp_path, {name: number for number, name in enumerate(names)})
    lists = {"": names} if where == "above them" else {"train/": names[:2], "test/": names[2:]}
    for folder, those in lists.items():
        rows = [
            {"file_name": name.removeprefix(folder), "text": CAPTIONS[names.index(name)], "objects": "[]"}
            for name in reversed(those)  # not in the order of the files
        ]
        if kind == "jsonl":
            put(tmp_path, {f"{folder}metadata.jsonl": "\n".join(map(json.dumps, rows))})
        elif kind == "csv":
            table(tmp_path / f"{folder}metadata.csv", list(rows[0]), *(list(row.values()) for row in rows))
        else:
            parquet(tmp_path / f"{folder}metadata.parquet", rows)
    assert read(tmp_path) == pairs([name.removesuffix(".png") for name in names])


@pytest.mark.parametrize("labels", ["kept", "dropped"])
def test_imagefolder_of_classes_has_no_captions_unless_names_of_folders_are_asked_for(tmp_path, labels):
    put(tmp_path, {"dog/a.png": DOG, "tabby_cat/b.png": CAT})
    if labels == "dropped":  # as with drop_labels: metadata beside the classes
        put(tmp_path, {"metadata.jsonl": '{"file_name": "dog/a.png", "text": "a red dog, asleep"}'})
        assert read(tmp_path) == {"dog/a": (CAPTIONS[DOG], DOG), "tabby_cat/b": "no-caption"}
        return
    assert "-s data.captions=folder" in error_of(tmp_path).hint
    assert read(tmp_path, captions="folder") == {"dog/a": ("dog", DOG), "tabby_cat/b": ("tabby cat", CAT)}


def test_imagefolder_of_pairs_asks_which_of_its_image_columns_is_meant(tmp_path):
    rows = [{"input_file_name": "in.png", "edited_file_name": "out.png", "prompt": CAPTIONS[CAT]}]
    put(tmp_path, {"in.png": DOG, "out.png": CAT, "metadata.jsonl": json.dumps(rows[0])})
    table(tmp_path / "pairs.csv", list(rows[0]), list(rows[0].values()))
    assert "-s data.image_column=NAME" in error_of(tmp_path / "pairs.csv").hint
    assert read(tmp_path / "pairs.csv", image_column="edited_file_name") == {"out": (CAPTIONS[CAT], CAT)}


def test_parquet_with_the_pictures_inside_says_to_write_them_to_files(tmp_path):
    rows = [{"image": {"bytes": image_bytes(DOG, "png"), "path": "a.png"}, "text": CAPTIONS[DOG]}]
    parquet(tmp_path / "data/train-00000-of-00001.parquet", rows)
    assert str(tmp_path / "data/train-00000-of-00001.parquet") in error_of(tmp_path).hint
    assert "write them to files" in error_of(tmp_path / "data/train-00000-of-00001.parquet").hint


# --- kohya ---


def test_kohya_folders_with_repeats_and_captions_in_txt_and_in_caption(tmp_path):
    put(tmp_path, {"img/10_dog/a.png": DOG, "img/10_dog/a.txt": CAPTIONS[DOG], "img/5_cat/b.jpg": CAT})
    put(tmp_path, {"img/5_cat/b.caption": CAPTIONS[CAT], "reg/1_dog/c.png": BUS})
    assert read(tmp_path) == {
        "img/10_dog/a": (CAPTIONS[DOG], DOG),
        "img/5_cat/b": (CAPTIONS[CAT], CAT),
        "reg/1_dog/c": "no-caption",
    }


@pytest.mark.parametrize("key", ["{stem}", "{stem}.png", "train/10_x/{stem}", "/home/me/train/10_x/{stem}.png"])
def test_kohya_metadata_in_json(tmp_path, key):
    put(tmp_path, {f"10_x/{stem}.png": number for number, stem in enumerate("abcd")})
    rows = {
        key.format(stem=stem): {"caption": CAPTIONS[number], "tags": "1girl, solo", "train_resolution": [64, 64]}
        for number, stem in reversed(list(enumerate("abcd")))
    }
    put(tmp_path, {"metadata_cap.json": rows})
    assert read(tmp_path) == pairs([f"10_x/{stem}" for stem in "abcd"])
    assert read(tmp_path, caption_column="tags")["10_x/a"] == ("1girl, solo", DOG)


def test_kohya_metadata_that_differs_from_a_text_beside_the_image_is_an_error_with_both_ways_to_say_it(tmp_path):
    put(tmp_path, {"10_x/a.png": DOG, "10_x/a.txt": "1girl", "meta_cap.json": {"a": {"caption": CAPTIONS[DOG]}}})
    hint = error_of(tmp_path).hint
    assert "-s data.captions=metadata" in hint and "-s data.captions=txt" in hint
    assert read(tmp_path, captions="metadata") == {"10_x/a": (CAPTIONS[DOG], DOG)}
    assert read(tmp_path, captions="txt") == {"10_x/a": ("1girl", DOG)}


def test_kohya_without_captions_is_an_error_and_its_repeats_are_told_when_folders_are_asked_for(tmp_path, listener):
    put(tmp_path, {"10_sks dog/a.png": DOG, "1_cat/b.png": CAT})
    assert "-s data.captions=folder" in error_of(tmp_path).hint
    scan(tmp_path, BUCKETS, listener, pairing=Pairing("folder"))
    assert any("kohya's repeats" in warning for warning in listener.warnings)


# --- SimpleTuner ---


def test_simpletuner_textfile(tmp_path):
    put(tmp_path, {f"{name}.png": number for number, name in enumerate("abcd")})
    put(tmp_path, {f"{name}.txt": CAPTIONS[number] + "\n" for number, name in enumerate("abcd")})
    assert read(tmp_path) == pairs("abcd")


def test_simpletuner_without_captions_for_an_instanceprompt_is_an_error(tmp_path):
    put(tmp_path, {"1.png": DOG, "2.png": CAT})
    assert "none of 2 images has a caption" in error_of(tmp_path).message


def test_simpletuner_captions_in_names_of_files_are_an_error_that_says_how_to_give_them(tmp_path):
    put(tmp_path, {"a_red_dog_asleep.png": DOG, "a_green_cat.png": CAT})
    error = error_of(tmp_path)
    assert "none of 2 images has a caption" in error.message
    assert "names of files are never captions: write each into its NAME.txt" in error.hint
    assert "a_red_dog_asleep.txt" in error.message or "a_green_cat.txt" in error.message


@pytest.mark.parametrize("identifier", ["name", "number"])
def test_simpletuner_parquet_whose_identifiers_have_no_suffix(tmp_path, identifier):
    ids = [7001, 7002, 7003, 7004] if identifier == "number" else ["a", "b", "c", "d"]
    put(tmp_path, {f"photos/{id}.png": number for number, id in enumerate(ids)})
    rows = [{"id": id, "description": CAPTIONS[number], "width": 64} for number, id in reversed(list(enumerate(ids)))]
    parquet(tmp_path / "metadata.parquet", rows)
    assert "-s data.image_column=NAME" in error_of(tmp_path).hint
    wanted = pairs([f"photos/{id}" for id in ids])
    assert read(tmp_path, image_column="id") == wanted
    assert read(tmp_path / "metadata.parquet", image_column="id") == wanted


# --- img2dataset, LAION ---


def test_img2dataset_files(tmp_path):
    for number in range(4):
        key = f"{number // 2:05d}/{number // 2:05d}{number % 2:04d}"
        put(tmp_path, {f"{key}.jpg": number, f"{key}.txt": CAPTIONS[number]})
        put(tmp_path, {f"{key}.json": {"caption": CAPTIONS[number], "url": "http://x/y.jpg", "key": key}})
    for part in ("00000", "00001"):
        parquet(tmp_path / f"{part}.parquet", [{"url": "http://x/y.jpg", "caption": "another", "key": "000000000"}])
        put(tmp_path, {f"{part}_stats.json": {"count": 2, "successes": 2, "status_dict": {"success": 2}}})
    assert read(tmp_path) == pairs(["00000/000000000", "00000/000000001", "00001/000010000", "00001/000010001"])


def test_img2dataset_files_of_captions_in_json_alone_name_the_key(tmp_path):
    put(tmp_path, {"0/0.jpg": DOG, "0/0.json": {"caption": CAPTIONS[DOG], "url": "u"}})
    assert "0.json (with caption, url)" in error_of(tmp_path).message


def test_img2dataset_webdataset(tmp_path):
    for part in range(2):
        files = {}
        for number in (2 * part, 2 * part + 1):
            key = f"{part:05d}{number % 2:04d}"
            files |= {f"{key}.jpg": number, f"{key}.txt": CAPTIONS[number]}
            files[f"{key}.json"] = json.dumps({"caption": "not this", "url": "u"})
        tar(tmp_path / f"{part:05d}.tar", files)
        put(tmp_path, {f"{part:05d}_stats.json": {"count": 2}})
        parquet(tmp_path / f"{part:05d}.parquet", [{"url": "u", "caption": "x", "key": "0"}])
    assert read(tmp_path) == pairs(["00000/000000000", "00000/000000001", "00001/000010000", "00001/000010001"])
    assert read(tmp_path / "00001.tar") == {f"00001000{number - 2}": (CAPTIONS[number], number) for number in (2, 3)}


@pytest.mark.parametrize("key", ["caption", "text", "prompt", "TEXT"])
def test_webdataset_with_captions_in_json(tmp_path, key):
    files = {f"{number}.png": number for number in range(4)}
    files |= {f"{number}.json": json.dumps({key: CAPTIONS[number], "url": "u"}) for number in range(4)}
    tar(tmp_path / "a.tar", files)
    assert read(tmp_path / "a.tar") == pairs(["0", "1", "2", "3"])


def test_webdataset_whose_caption_has_a_key_of_its_own(tmp_path):
    tar(tmp_path / "a.tar", {"0.png": DOG, "0.json": json.dumps({"p": CAPTIONS[DOG], "seed": 3})})
    (record,) = scan(tmp_path / "a.tar", BUCKETS)
    assert record.reason == "no-caption" and "its keys are p, seed: name one with data.caption_col" in record.detail
    assert read(tmp_path / "a.tar", caption_column="p") == {"0": (CAPTIONS[DOG], DOG)}


def test_webdataset_with_two_texts_of_an_image_is_refused_until_one_is_asked_for(tmp_path):
    tar(tmp_path / "a.tar", {"0.png": DOG, "0.txt": "1girl", "0.caption": CAPTIONS[DOG], "0.json": '{"text": "x"}'})
    (record,) = scan(tmp_path / "a.tar", BUCKETS)
    assert record.reason == "two-captions" and 'data.captions = "txt" or "caption"' in record.detail
    assert read(tmp_path / "a.tar", captions="caption") == {"0": (CAPTIONS[DOG], DOG)}


def test_laion_parquet_of_addresses_says_that_they_are_not_followed(tmp_path):
    parquet(tmp_path / "part-00000.parquet", [{"URL": "https://x.org/a.jpg", "TEXT": "a dog", "similarity": 0.3}])
    assert "its columns are URL, TEXT, similarity" in error_of(tmp_path / "part-00000.parquet").message
    (record,) = scan(tmp_path / "part-00000.parquet", BUCKETS, pairing=Pairing(image_column="URL"))
    assert record.reason == "no-image" and "addresses are not followed" in record.detail


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


# --- what is told ---


def test_captions_in_a_folder_of_their_own_are_named(tmp_path):
    put(tmp_path, {"images/a.png": DOG, "text/a.txt": CAPTIONS[DOG]})  # as CUB and MM-CelebA have them
    assert "text/a.txt is called like it and lies in another folder" in error_of(tmp_path).message


def test_json_above_the_images_that_is_not_read_is_named_with_its_keys(tmp_path):
    put(tmp_path, {"img/a.png": DOG, "train.json": [{"image": "img/a.png", "conversations": []}]})  # LLaVA
    assert "above it is train.json (with image, conversations)" in error_of(tmp_path).message


@pytest.mark.parametrize(
    ("name", "advice"),
    [("images.zip", "unpack it"), ("train.tar.gz", "unpack it"), ("data-00000.arrow", "write its pictures to files")],
)
def test_archives_and_other_containers_say_what_to_do_with_them(tmp_path, name, advice):
    put(tmp_path / "set", {name: "x"})
    assert advice in error_of(tmp_path / "set").hint and advice in error_of(tmp_path / "set" / name).hint


def test_one_folder_around_all_classes_is_told(tmp_path, listener):
    put(tmp_path, {"images/dog/a.png": DOG, "images/cat/b.png": CAT})
    scan(tmp_path, BUCKETS, listener, pairing=Pairing("folder"))
    assert any("images, which becomes every caption: give it as SOURCE" in text for text in listener.warnings)
