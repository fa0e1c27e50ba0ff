"""Layouts of imagefolder, kohya, SimpleTuner, img2dataset and LAION, each made small: every picture has the caption
that its author meant, with its own pixels, or the error says how to say it.
"""

from __future__ import annotations

import json

import pytest

from dittool.data.source.item import Pairing
from dittool.data.source.scan import scan
from tests.data.source.layouts import (
    BUCKETS,
    BUS,
    CAPTIONS,
    CAT,
    DOG,
    error_of,
    image_bytes,
    pairs,
    parquet,
    put,
    read,
    table,
    tar,
)

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


def test_parquet_of_the_hub_with_the_pictures_inside(tmp_path):
    rows = [{"image": {"bytes": image_bytes(DOG, "png"), "path": "a.png"}, "text": CAPTIONS[DOG]}]
    parquet(tmp_path / "data/train-00000-of-00001.parquet", rows)
    pair = (CAPTIONS[DOG], DOG)
    assert read(tmp_path) == {"data/train-00000-of-00001/00000000": pair}
    assert read(tmp_path / "data/train-00000-of-00001.parquet") == {"00000000": pair}


def test_laion_tables_say_how_to_fetch_their_pictures(tmp_path):
    rows = [{"URL": "https://example.com/a.jpg", "TEXT": CAPTIONS[DOG], "WIDTH": 64, "similarity": 0.3}]
    parquet(tmp_path / "part-0.parquet", rows)
    hint = "img2dataset --url_list LIST --url_col URL"
    assert hint in error_of(tmp_path / "part-0.parquet").hint
    assert str(tmp_path / "part-0.parquet") in error_of(tmp_path).hint


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


# --- what is told ---


def test_captions_in_a_folder_of_their_own_are_named(tmp_path):
    put(tmp_path, {"images/a.png": DOG, "text/a.txt": CAPTIONS[DOG]})  # as CUB and MM-CelebA have them
    assert "text/a.txt is called like it and lies in another folder" in error_of(tmp_path).message


def test_json_above_the_images_that_is_not_read_is_named_with_its_keys(tmp_path):
    put(tmp_path, {"img/a.png": DOG, "train.json": [{"image": "img/a.png", "conversations": []}]})  # LLaVA
    assert "above it is train.json (with image, conversations)" in error_of(tmp_path).message


@pytest.mark.parametrize(
    ("name", "advice"),
    [("train.7z", "unpack it"), ("train.tar.gz", "unpack it"), ("data-00000.lmdb", "write its pictures to files")],
)
def test_archives_and_other_containers_say_what_to_do_with_them(tmp_path, name, advice):
    put(tmp_path / "set", {name: "x"})
    assert advice in error_of(tmp_path / "set").hint and advice in error_of(tmp_path / "set" / name).hint


def test_one_folder_around_all_classes_is_told(tmp_path, listener):
    put(tmp_path, {"images/dog/a.png": DOG, "images/cat/b.png": CAT})
    scan(tmp_path, BUCKETS, listener, pairing=Pairing("folder"))
    assert any("images, which becomes every caption: give it as SOURCE" in text for text in listener.warnings)
