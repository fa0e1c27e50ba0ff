"""Which caption an image gets where several places may hold one: layouts that people have, none wrong in silence."""

from __future__ import annotations

import csv
import json

import pytest

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.source.by_name import ImagesByName
from dittool.data.source.coco import coco_captions
from dittool.data.source.item import Pairing
from dittool.data.source.scan import scan
from dittool.data.source.sources import list_source
from dittool.errors import BadDataError, UsageError
from dittool.geometry import Bucket
from tests.data.source.picture_files import encoded, picture

BUCKETS = [Bucket(64, 64)]
PNG = encoded(picture(64, 64))


def put(folder, **files):
    """Writes files: `a__b_png` is a/b.png. Texts as they are, other values as JSON, lists as lines of it."""
    for key, content in files.items():
        stem, _, suffix = key.replace("__", "/").rpartition("_")
        path = folder / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix in ("png", "jpg"):
            path.write_bytes(PNG)
        elif isinstance(content, list) and suffix == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def found(source, captions="auto", listener=None, **columns):
    """Name → caption, or the reason why not."""
    pairing = Pairing(captions, **columns)
    talk = {} if listener is None else {"talk": listener}
    return {record.name: record.caption or record.reason for record in scan(source, BUCKETS, pairing=pairing, **talk)}


def error_of(source, captions="auto"):
    with pytest.raises(BadDataError) as caught:
        list_source(source, Pairing(captions))
    return caught.value


def coco(names, captions=None, first_id=0):
    notes = captions if captions is not None else [(i, f"first of {name}") for i, name in enumerate(names)]
    return {
        "info": {"year": 2017},
        "images": [{"id": first_id + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": first_id + i, "caption": text} for n, (i, text) in enumerate(notes)],
    }


# --- layouts of other programs ---


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_imagefolder_with_metadata_in_each_split(tmp_path, kind):
    for split in ("train", "test"):
        put(tmp_path, **{f"{split}__{i}_png": "" for i in range(3)})
        rows = [{"file_name": f"{i}.png", "text": f"a {split} picture {i}"} for i in range(3)]
        path = tmp_path / split / f"metadata.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif kind == "parquet":
            pyarrow = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            with path.open("w", newline="") as file:
                writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
                writer.writerows([["file_name", "text"], *([row["file_name"], row["text"]] for row in rows)])
    assert found(tmp_path) == {
        f"{split}/{i}": f"a {split} picture {i}" for split in ("train", "test") for i in range(3)
    }


def test_one_metadata_for_the_whole_tree_whose_paths_lead_into_its_folders(tmp_path):
    rows = [{"file_name": f"{split}/{i}.png", "text": f"{split} {i}"} for split in ("train", "val") for i in range(2)]
    put(tmp_path, metadata_jsonl=rows, **{row["file_name"].replace("/", "__").replace(".", "_"): "" for row in rows})
    assert found(tmp_path) == {f"{split}/{i}": f"{split} {i}" for split in ("train", "val") for i in range(2)}


def test_a_metadata_that_is_nearer_and_agrees_changes_nothing_and_one_that_differs_refuses_the_image(tmp_path):
    put(tmp_path, a__x_png="", a__y_png="")
    put(tmp_path, metadata_jsonl=[{"file_name": "a/x.png", "text": "one"}, {"file_name": "a/y.png", "text": "far"}])
    put(tmp_path, a__metadata_csv="file_name,text\nx.png,one\ny.png,near\n")
    assert found(tmp_path) == {"a/x": "one", "a/y": "two-captions"}
    detail = next(item.detail for item in list_source(tmp_path).items if item.reason)
    assert "a/metadata.csv" in detail and "metadata.jsonl" in detail and "give one as SOURCE" in detail
    assert found(tmp_path / "a/metadata.csv") == {"x": "one", "y": "near"}


def test_kohya_with_repeats_in_folder_names_and_captions_in_files(tmp_path):
    put(tmp_path, **{"10_stamp__a_png": "", "10_stamp__a_caption": "a red stamp\n"})
    put(tmp_path, **{"5_coin__b_png": "", "5_coin__b_caption": "an old coin", "5_coin__c_png": ""})
    assert found(tmp_path) == {"10_stamp/a": "a red stamp", "5_coin/b": "an old coin", "5_coin/c": "no-caption"}


def test_kohya_with_tags_in_txt_and_captions_beside_them_is_an_error_with_both_ways_to_say_it(tmp_path):
    put(tmp_path, x__a_png="", x__a_txt="1girl, solo", x__a_caption="a woman in a field", x__b_png="", x__b_txt="same")
    put(tmp_path, x__b_caption=" same\n")
    error = error_of(tmp_path)
    assert "1 images have two captions that differ" in error.message and "x/a.png" in error.message
    assert "'1girl, solo'" in error.message and "'a woman in a field'" in error.message
    assert "-s data.captions=txt" in error.hint and "-s data.captions=caption" in error.hint
    assert found(tmp_path, "txt") == {"x/a": "1girl, solo", "x/b": "same"}
    assert found(tmp_path, "caption") == {"x/a": "a woman in a field", "x/b": "same"}


def test_metadata_and_texts_that_differ_are_an_error_with_both_ways_to_say_it(tmp_path):
    put(tmp_path, a_png="", a_txt="0 0.5 0.5 0.1 0.2", metadata_jsonl=[{"file_name": "a.png", "text": "a dog"}])
    error = error_of(tmp_path)
    assert "-s data.captions=metadata" in error.hint and "-s data.captions=txt" in error.hint
    assert found(tmp_path, "metadata") == {"a": "a dog"} and found(tmp_path, "txt") == {"a": "0 0.5 0.5 0.1 0.2"}


def test_an_image_that_metadata_leaves_out_is_refused_and_no_text_beside_it_answers_instead(tmp_path):
    put(tmp_path, a_png="", b_png="", b_txt="wrong", metadata_jsonl=[{"file_name": "a.png", "text": "a dog"}])
    assert found(tmp_path) == {"a": "a dog", "b": "no-caption"}
    item = next(item for item in list_source(tmp_path).items if item.reason)
    assert item.detail == "not in metadata.jsonl; beside it is b.txt"


def test_texts_answer_outside_of_what_metadata_speaks_for_and_that_is_told_with_counts(tmp_path, listener):
    put(tmp_path, train__a_png="", train__metadata_jsonl=[{"file_name": "a.png", "text": "a dog"}])
    put(tmp_path, more__b_png="", more__b_txt="a cat", more__c_png="")
    assert found(tmp_path, listener=listener) == {"train/a": "a dog", "more/b": "a cat", "more/c": "no-caption"}
    (warning,) = listener.warnings
    assert "1 in metadata.jsonl (as train/a.png)" in warning and "1 in .txt (as more/b.png)" in warning


def test_img2dataset_files_with_json_beside_and_a_parquet_of_addresses(tmp_path):
    for i in range(3):
        put(tmp_path, **{f"00000__00000000{i}_jpg": "", f"00000__00000000{i}_txt": f"caption {i}"})
        put(tmp_path, **{f"00000__00000000{i}_json": {"caption": f"caption {i}", "url": "http://x/y.jpg"}})
    (tmp_path / "00000.parquet").write_bytes(b"PAR1")
    put(tmp_path, **{"00000_stats_json": {"count": 3}})
    assert found(tmp_path) == {f"00000/00000000{i}": f"caption {i}" for i in range(3)}


def test_simpletuner_with_one_line_captions_and_parquet_with_its_own_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    put(tmp_path, photos__1_png="", photos__2_png="")
    rows = [{"id": 1, "where": "photos/1.png", "short": "one"}, {"id": 2, "where": "photos/2.png", "short": "two"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "set.parquet")
    columns = {"image_column": "where", "caption_column": "short"}
    assert found(tmp_path / "set.parquet", **columns) == {"photos/1": "one", "photos/2": "two"}
    assert "its columns are id, where, short" in error_of(tmp_path / "set.parquet").message


def test_laion_and_diffusiondb_columns(tmp_path):
    put(
        tmp_path, a_png="", list_csv="image_name,PROMPT,seed\na.png,a castle,3\n", other_csv="FILE,TEXT\na.png,a wall\n"
    )
    assert found(tmp_path / "list.csv") == {"a": "a castle"} and found(tmp_path / "other.csv") == {"a": "a wall"}


def test_class_folders_with_a_metadata_of_labels_ask_for_the_caption_column(tmp_path):
    put(tmp_path, cat__a_png="", metadata_csv="file_name,label\ncat/a.png,0\n")
    error = error_of(tmp_path)
    assert "no column of captions" in error.message and "its columns are file_name, label" in error.message
    assert "-s data.caption_column=NAME" in error.hint and "-s data.captions=txt" in error.hint


# --- COCO ---


def test_coco_captions_of_images_in_other_folders_are_found_by_name(tmp_path):
    put(tmp_path, train2017__000_jpg="", train2017__001_jpg="", val2017__002_jpg="")
    put(tmp_path, annotations__captions_train2017_json=coco(["000.jpg", "001.jpg"]))
    put(tmp_path, annotations__captions_val2017_json=coco(["002.jpg"], first_id=7, captions=[(0, "x"), (0, "y")]))
    put(tmp_path, annotations__instances_train2017_json={"images": [], "annotations": [{"bbox": [0, 0, 1, 1]}]})
    records = {record.name: record for record in scan(tmp_path, BUCKETS)}
    assert {name: record.caption for name, record in records.items()} == {
        "train2017/000": "first of 000.jpg",
        "train2017/001": "first of 001.jpg",
        "val2017/002": "x",
    }
    assert "further-captions:1" in records["val2017/002"].flags and list_source(tmp_path).kind == "coco"


def test_one_file_name_in_two_folders_belongs_to_the_folder_that_the_file_speaks_of(tmp_path):
    put(tmp_path, train__0_jpg="", val__0_jpg="", ann__train_captions_json=coco(["0.jpg"], [(0, "of train")]))
    put(tmp_path, ann__val_captions_json=coco(["0.jpg"], [(0, "of val")]))
    assert found(tmp_path) == {"train/0": "of train", "val/0": "of val"}


def test_and_when_that_does_not_decide_no_image_gets_the_caption(tmp_path):
    put(tmp_path, a1__0_jpg="", b1__0_jpg="", c1__1_jpg="", captions_json=coco(["0.jpg", "1.jpg"]))
    reasons = found(tmp_path)
    assert reasons == {
        "captions.json:images[0]": "two-images",
        "a1/0": "no-caption",
        "b1/0": "no-caption",
        "c1/1": "first of 1.jpg",
    }


def test_coco_beside_its_images_and_below_its_own_folder(tmp_path):
    put(tmp_path, train__images__0_jpg="", train__captions_json=coco(["0.jpg"], [(0, "of train")]))
    put(tmp_path, val__0_jpg="", val__coco_json=coco(["0.jpg"], [(0, "of val")]))
    assert found(tmp_path) == {"train/images/0": "of train", "val/0": "of val"}


def test_images_that_coco_does_not_caption_are_refused_whatever_lies_beside_them(tmp_path):
    put(tmp_path, images__0_jpg="", images__1_jpg="", images__2_jpg="", images__2_txt="wrong")
    put(tmp_path, captions_json=coco(["0.jpg", "1.jpg", "9.jpg"], [(0, "right"), (2, "not here"), (77, "stray")]))
    source = list_source(tmp_path)
    reasons = {item.name: item.reason for item in source.items}
    assert reasons == {"images/0": "", "images/1": "no-caption", "images/2": "no-caption", "9": "no-image"}
    assert source.ignored == {".txt": 1, "caption of an image that COCO's file does not list": 1}


def test_coco_captions_may_be_the_source_themselves(tmp_path):
    put(tmp_path, images__0_jpg="", captions_json=coco(["0.jpg"]), other_json={"images": []})
    assert found(tmp_path / "captions.json") == {"images/0": "first of 0.jpg"}
    assert "no list of captions: COCO captions need images" in error_of(tmp_path / "other.json").message
    put(tmp_path, empty__captions_json=coco(["0.jpg"]))
    assert "none of its 1 images lies below" in error_of(tmp_path / "empty/captions.json").message


@pytest.mark.parametrize(
    "change",
    [
        {"images": [{"id": 0}]},
        {"images": ["x", None, 7]},
        {"images": [{"id": 0, "file_name": 7}]},
        {"images": [{"id": [0], "file_name": "0.jpg"}]},
        {"images": [{"id": 0, "file_name": "../0.jpg"}, {"id": 1, "file_name": "/etc/0.jpg"}]},
        {"images": [{"id": 0, "file_name": "0.jpg"}, {"id": 0, "file_name": "1.jpg"}]},
        {"annotations": [{"image_id": 0, "caption": 7}]},
        {
            "annotations": [
                {"image_id": [0], "caption": "x"},
                None,
                "x",
                {"caption": "y"},
                {"image_id": 0, "caption": ""},
            ]
        },
        {"annotations": [{"image_id": 0, "caption": "a \x00 b"}]},
    ],
)
def test_odd_coco_files_give_refusals_with_reasons_and_no_caption(tmp_path, change):
    put(tmp_path, images__0_jpg="", images__1_jpg="", spare__x_jpg="", spare__x_txt="spare")
    put(tmp_path, captions_json={**coco(["0.jpg"]), **change})
    for record in scan(tmp_path, BUCKETS):
        assert record.caption == ("spare" if record.name == "spare/x" else "")
        assert record.used or record.reason in {
            *("bad-line", "outside-source", "no-caption", "empty-caption", "caption-not-text", "caption-control"),
        }


def test_damaged_coco_is_an_error_and_other_json_is_passed_over(tmp_path):
    put(tmp_path, a_jpg="", a_txt="a dog", b_json="[1, 2", c_json='{"images": "none"}', d_json={"version": 3})
    assert found(tmp_path) == {"a": "a dog"} and list_source(tmp_path).ignored == {".json": 3}
    (tmp_path / "captions.json").write_text('{"images": [], "annotations": [{"caption": "x", ')
    assert "cannot be read as JSON" in error_of(tmp_path).message


def test_a_file_of_boxes_is_not_parsed(tmp_path, monkeypatch):
    put(tmp_path, a_jpg="", boxes_json={"images": [{"id": 0, "file_name": "a.jpg"}], "annotations": [{"bbox": [1]}]})
    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("it was parsed"))
    assert coco_captions(tmp_path, "boxes.json", ImagesByName(["a.jpg"])) is None


# --- columns ---


@pytest.mark.parametrize("path", ["filename", "FILE", "img", "Image Path", "image-path", "Image_Name"])
@pytest.mark.parametrize("caption", ["prompt", "Caption", "TEXT", "description"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_usual_columns_in_any_case_with_any_separator(tmp_path, path, caption, mark):
    put(tmp_path, a_png="", list_csv=f"nr{mark}{caption}{mark}{path}\n1{mark}a dog, asleep{mark}a.png\n")
    if mark == ",":
        put(tmp_path, list_csv=f'nr,{caption},{path}\n1,"a dog, asleep",a.png\n')
    assert found(tmp_path / "list.csv") == {"a": "a dog, asleep"}


def test_the_line_with_which_excel_names_the_separator_is_no_header(tmp_path):
    put(tmp_path, a_png="", list_csv="sep=;\nfile;caption\na.png;a dog\nb.png\n")
    source = list_source(tmp_path / "list.csv")
    assert [(item.name, item.reason) for item in source.items] == [("a", ""), ("list.csv:4", "bad-line")]


def test_lines_of_json_have_the_same_names(tmp_path):
    put(tmp_path, a_png="", list_jsonl=[{"Filename": "a.png", "Prompt": "a dog"}, {"url": "x"}])
    source = list_source(tmp_path / "list.jsonl")
    assert [(item.name, item.caption, item.reason) for item in source.items] == [
        ("a", "a dog", ""),
        ("list.jsonl:2", "", "bad-line"),
    ]
    assert "its keys are url" in source.items[1].detail


def test_captions_that_differ_between_usual_columns_are_refused_and_naming_one_decides(tmp_path):
    put(tmp_path, a_png="", list_csv="file,caption,prompt,description\na.png,a dog,dog 4k masterpiece,unrelated\n")
    assert found(tmp_path / "list.csv") == {"a": "two-captions"}
    assert "data.caption_column" in list_source(tmp_path / "list.csv").items[0].detail
    assert found(tmp_path / "list.csv", caption_column="Prompt") == {"a": "dog 4k masterpiece"}


def test_a_named_column_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path):
    put(tmp_path, a_png="", list_csv="file,caption\na.png,a dog\n")
    with pytest.raises(
        BadDataError, match=r"looked for alt, which data\.caption_column names; its columns are file, cap"
    ):
        list_source(tmp_path / "list.csv", Pairing(caption_column="alt"))


# --- what is said ---


def test_without_any_caption_the_message_says_what_was_looked_for_and_what_lies_there(tmp_path):
    put(tmp_path, a__x_png="", a__x_json={"caption": "a dog", "url": "u"}, a__labels_csv="x")
    error = error_of(tmp_path)
    for part in ("none of 1 images has a caption", "NAME.txt", "metadata.jsonl", "COCO", "1 .csv, 1 .json"):
        assert part in error.message
    assert "no x.txt or x.caption beside it; beside it is x.json (with caption, url), labels.csv" in error.message
    assert str(tmp_path / "a/labels.csv") in error.hint and "-s data.captions=folder" in error.hint


def test_a_list_in_json_that_is_not_read_is_named_with_its_keys(tmp_path):
    put(tmp_path, x_png="", y_png="", part_json={"x.png": {"p": "a dog", "seed": 3}}, other_json=[{"src": "y.png"}])
    message = error_of(tmp_path).message
    assert "part.json (with p, seed)" in message and "other.json (with src)" in message
    assert found(tmp_path, caption_column="p") == {"x": "a dog", "y": "no-caption"}


@pytest.mark.parametrize(("captions", "wanted"), [("txt", "x.txt"), ("caption", "x.caption"), ("coco", "COCO")])
def test_what_is_asked_for_and_not_there_is_an_error_that_names_it(tmp_path, captions, wanted):
    put(tmp_path, x_png="", metadata_jsonl=[{"file_name": "x.png", "text": "a dog"}])
    error = error_of(tmp_path, captions)
    assert wanted in error.message and "-s data.captions=auto" in error.hint


def test_the_configuration_reaches_the_source_and_wrong_words_are_refused(tmp_path):
    put(tmp_path / "in", a_png="", a_txt="tags", a_caption="a dog")
    config = load_config("demo", ["data.captions=caption", 'data.buckets=["64x64"]'])
    assert [record.caption for record in embed(tmp_path / "in", tmp_path / "out", config, ["t5"]).records] == ["a dog"]
    with pytest.raises(UsageError, match=r"data\.captions"):
        load_config("demo", ["data.captions=labels"])


@pytest.mark.parametrize("text", ["\u200b", "\u200b\u200d\ufeff", "\u2060 \u00ad", "\u3164", "\u2800\u2800", "\ufe0f"])
def test_a_caption_in_which_nothing_can_be_seen_is_empty(tmp_path, text):
    put(tmp_path, a_png="", a_txt=text, b_png="", b_txt=f"a{text} dog")
    assert found(tmp_path)["a"] == "empty-caption" and found(tmp_path)["b"].endswith("dog")
