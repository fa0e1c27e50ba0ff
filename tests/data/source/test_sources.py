"""Listing a source: folders, metadata.jsonl, manifests; rows 43 to 46 of the fault catalogue as far as names and
pairing go.

Tables and tars have their own files: test_source_table.py and test_source_tar.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dittool.data.records import safe_key
from dittool.data.source.sources import list_source, source_root
from dittool.errors import BadDataError, UsageError


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def manifest(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def names(source):
    return [item.name for item in source.items]


def reasons(source):
    return {item.name: item.reason for item in source.items if item.reason}


def error_of(source):
    with pytest.raises(BadDataError if source.exists() else UsageError) as caught:
        list_source(source)
    assert str(source) in caught.value.message and caught.value.hint
    return caught.value


# --- folders ---


def test_images_are_paired_with_the_text_beside_them_in_nested_folders_too(tmp_path):
    touch(tmp_path, "b.jpg", "b.txt", "a.png", "a.txt", "sub/deep/c.webp", "sub/deep/c.txt")
    source = list_source(tmp_path)
    assert source.kind == "folder" and source.root == tmp_path == source_root(tmp_path)
    assert [(item.name, item.image, item.caption) for item in source.items] == [
        ("a", "a.png", tmp_path / "a.txt"),
        ("b", "b.jpg", tmp_path / "b.txt"),
        ("sub/deep/c", "sub/deep/c.webp", tmp_path / "sub/deep/c.txt"),
    ]
    assert reasons(source) == {} and source.ignored == {}


def test_the_order_is_that_of_the_names_whatever_the_disk_says(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{name}.{suffix}" for name in ("c", "a", "sub/b", "d") for suffix in ("png", "txt")))
    first = list_source(tmp_path)
    walk = os.walk
    monkeypatch.setattr(
        os, "walk", lambda *a, **k: ((where, folders, names[::-1]) for where, folders, names in walk(*a, **k))
    )
    assert list_source(tmp_path) == first and names(first) == ["a", "c", "d", "sub/b"]


def test_upper_case_suffixes_count(tmp_path):
    touch(tmp_path, "a.JPG", "a.TXT", "b.Png", "b.txt")
    assert reasons(list_source(tmp_path)) == {} and names(list_source(tmp_path)) == ["a", "b"]


def test_other_files_are_counted_and_left_alone(tmp_path):
    touch(tmp_path, "a.png", "a.txt", "README.md", "notes", "sub/list.csv", ".DS_Store", "._a.png", ".git/config.png")
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    source = list_source(tmp_path)
    assert names(source) == ["a"]
    assert source.ignored == {".md": 1, "no suffix": 1, ".csv": 1, "hidden": 3, "linked folder": 1}


def test_pictures_in_formats_that_are_not_read_are_inputs_all_the_same(tmp_path):
    touch(tmp_path, "a.heic", "a.txt", "b.svg", "b.txt")
    assert names(list_source(tmp_path)) == ["a", "b"]


@pytest.mark.row(44)
def test_captions_and_images_without_each_other_are_refused_by_name(tmp_path):
    touch(tmp_path, "both.png", "both.txt", "lonely.png", "words.txt", "sub/more.txt")
    source = list_source(tmp_path)
    assert reasons(source) == {"lonely": "no-caption", "words.txt": "no-image", "sub/more.txt": "no-image"}
    assert (
        "no lonely.txt or lonely.caption beside it"
        in next(item for item in source.items if item.name == "lonely").detail
    )


@pytest.mark.row(44)
def test_a_caption_that_differs_in_case_is_not_taken_but_named(tmp_path):
    touch(tmp_path, "Dog.jpg", "dog.txt")
    assert "dog.txt differs in upper and lower case" in error_of(tmp_path).message
    touch(tmp_path, "cat.jpg", "cat.txt")
    source = list_source(tmp_path)
    assert reasons(source) == {"Dog": "no-caption", "dog.txt": "no-image"}
    assert "dog.txt differs in upper and lower case" in source.items[0].detail


@pytest.mark.row(44)
def test_two_captions_for_one_image_are_refused(tmp_path):
    touch(tmp_path, "a.png", "a.txt", "a.TXT")
    if len(list(tmp_path.iterdir())) == 3:  # a disk that tells case apart
        assert reasons(list_source(tmp_path)) == {"a": "two-captions"}


@pytest.mark.row(45)
def test_two_images_of_one_name_give_one_item_and_one_refusal(tmp_path):
    touch(tmp_path, "dog.jpg", "dog.png", "dog.txt")
    source = list_source(tmp_path)
    assert [(item.name, item.image, item.reason) for item in source.items] == [
        ("dog", "dog.jpg", ""),
        ("dog.png", "dog.png", "duplicate-name"),
    ]
    assert "'dog'" not in source.items[1].detail and "dog is taken" in source.items[1].detail


@pytest.mark.row(45)
def test_names_equal_after_nfc_are_one_name(tmp_path):
    touch(tmp_path, "caf\u00e9.png", "cafe\u0301.png", "caf\u00e9.txt")
    if len(list(tmp_path.iterdir())) == 3:
        source = list_source(tmp_path)
        assert [item.reason for item in source.items] == ["", "duplicate-name"]
        assert len({safe_key(item.name) for item in source.items}) == 2


@pytest.mark.row(45)
def test_a_caption_in_the_other_spelling_belongs_to_its_image(tmp_path):
    touch(tmp_path, "cafe\u0301.png", "caf\u00e9.txt")
    assert reasons(list_source(tmp_path)) == {}


@pytest.mark.row(45)
def test_names_that_differ_only_in_case_would_share_files_on_some_disks(tmp_path):
    touch(tmp_path, "Dog.png", "Dog.txt", "dog.png", "dog.txt")
    if len(list(tmp_path.iterdir())) == 4:
        assert reasons(list_source(tmp_path)) == {"dog.png": "duplicate-name"}


@pytest.mark.row(45)
def test_a_name_that_equals_another_names_key_is_found(tmp_path):
    key = safe_key("two words")
    touch(tmp_path, "two words.png", "two words.txt", f"{key}.png", f"{key}.txt")
    source = list_source(tmp_path)
    assert sorted(reasons(source).values()) == ["duplicate-name"]
    assert len({safe_key(item.name) for item in source.items}) == 2


@pytest.mark.row(45)
def test_a_file_name_with_a_line_end_is_listed(tmp_path):
    touch(tmp_path, "line\nend.png", "line\nend.txt")
    source = list_source(tmp_path)
    assert reasons(source) == {} and names(source) == ["line\nend"]


@pytest.mark.row(45)
def test_a_file_name_that_is_no_text_is_listed(tmp_path):
    bad = os.fsdecode(b"caf\xe9")
    try:
        touch(tmp_path, f"{bad}.png", f"{bad}.txt")
    except OSError:
        pytest.skip("this disk takes only UTF-8 names")
    source = list_source(tmp_path)
    assert reasons(source) == {} and names(source) == [bad]


@pytest.mark.row(12)
def test_a_folder_that_cannot_be_listed_is_refused_by_name(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "a.txt", "locked/b.png", "locked/b.txt")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = list_source(tmp_path)
    assert reasons(source) == {"locked/": "unreadable"}
    assert names(source) == ["a", "locked/"]


# --- metadata.jsonl ---


@pytest.mark.parametrize("key", ["text", "caption"])
def test_metadata_lines_pair_file_names_with_text_or_caption(tmp_path, key):
    touch(tmp_path, "b.png", "sub/a.jpg", "README.md")
    (tmp_path / "b.txt").write_text("a  ball\n")
    manifest(
        tmp_path / "metadata.jsonl",
        {"file_name": "sub/a.jpg", key: "an apple"},
        {"file_name": "b.png", key: "a ball", "extra": 1},
    )
    source = list_source(tmp_path)
    assert source.kind == "metadata"
    assert [(item.name, item.image, item.caption, item.reason) for item in source.items] == [
        ("b", "b.png", "a ball", ""),
        ("sub/a", "sub/a.jpg", "an apple", ""),
    ]
    assert source.ignored == {".txt": 1, ".md": 1}


@pytest.mark.row(44)
def test_images_that_metadata_does_not_list_are_refused(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    manifest(tmp_path / "metadata.jsonl", {"file_name": "./a.png", "text": "an apple"}, {"file_name": "c.png"})
    assert reasons(list_source(tmp_path)) == {"b": "no-caption", "c": "no-caption"}


def test_text_and_caption_that_differ_are_refused(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    rows = [{"file_name": "a.png", "text": "x", "caption": "y"}, {"file_name": "b.png", "text": "x", "caption": "x"}]
    manifest(tmp_path / "metadata.jsonl", *rows)
    assert reasons(list_source(tmp_path)) == {"a": "two-captions"}


def test_a_list_of_captions_passes_as_it_is(tmp_path):
    touch(tmp_path, "a.png")
    manifest(tmp_path / "metadata.jsonl", {"file_name": "a.png", "caption": ["one", "two"]})
    assert list_source(tmp_path).items[0].caption == ["one", "two"]


@pytest.mark.row(45)
@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "sub/../../secret.png"])
def test_metadata_does_not_lead_out_of_its_folder(tmp_path, name):
    touch(tmp_path, "data/a.png", "secret.png")
    manifest(tmp_path / "data/metadata.jsonl", {"file_name": name, "text": "x"}, {"file_name": "a.png", "text": "x"})
    assert list(reasons(list_source(tmp_path / "data")).values()) == ["outside-source"]


# --- manifests ---


def test_a_manifest_gives_ids_paths_captions_and_bucket_hints(tmp_path):
    rows = [
        {"image_id": "z", "image_path": "images/z.png", "caption": "last", "aspect_bucket": "1216x832"},
        {"image_id": 7, "image_path": "/data/seven.png", "caption": "seven"},
        {"image_id": "a.b/c", "image_path": "../up.png", "caption": "odd", "aspect_bucket": None},
    ]
    path = manifest(tmp_path / "approved.jsonl", *rows)
    source = list_source(path)
    assert source.kind == "manifest" and source.root == tmp_path == source_root(path)
    assert [(item.name, item.image, item.caption, item.bucket_hint, item.reason) for item in source.items] == [
        ("7", "/data/seven.png", "seven", "", ""),
        ("a.b/c", "../up.png", "odd", "", ""),
        ("z", "images/z.png", "last", "1216x832", ""),
    ]


GOOD = {"image_id": "good", "image_path": "good.png", "caption": "x"}


@pytest.mark.row(43)
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"image_id": "torn", "image_pa', "bad-line"),
        ('["a", "list"]', "bad-line"),
        ("null", "bad-line"),
        ("[" * 100_000, "bad-line"),
        ('{"n": 1' + "0" * 5000 + "}", "bad-line"),
        ('{"image_id": "a", "caption": "x"}', "bad-line"),
        ('{"image_id": "", "image_path": "a.png", "caption": "x"}', "bad-line"),
        ('{"image_id": true, "image_path": "a.png", "caption": "x"}', "bad-line"),
        ('{"image_id": "a", "image_path": 7.5, "caption": "x"}', "bad-line"),
        ('{"image_id": "a", "image_path": "a.png"}', "no-caption"),
    ],
)
def test_a_bad_line_is_refused_by_its_number_and_the_others_stand(tmp_path, line, reason):
    source = list_source(manifest(tmp_path / "m.jsonl", GOOD, "", line))
    assert list(reasons(source).values()) == [reason]
    assert sorted(names(source)) == sorted(["good", "m.jsonl:3" if reason == "bad-line" else "a"])


@pytest.mark.row(43)
def test_lines_that_are_not_utf8_or_endless_are_refused_one_by_one(tmp_path):
    good = json.dumps(GOOD).encode()
    lines = [
        b"\xef\xbb\xbf" + good,
        b'{"caption": "caf\xe9"}',
        b'{"caption": "' + b"x" * 3_000_000 + b'"}',
        good.replace(b'"good"', b'"last"'),
    ]
    (tmp_path / "m.jsonl").write_bytes(b"\r\n".join(lines))
    source = list_source(tmp_path / "m.jsonl")
    assert reasons(source) == {"m.jsonl:2": "bad-line", "m.jsonl:3": "bad-line"}
    assert [item.detail for item in source.items if item.reason] == [
        "byte 0xe9 at offset 16 is not UTF-8",
        "longer than 1,048,576 bytes",
    ]
    assert names(source) == ["good", "last", "m.jsonl:2", "m.jsonl:3"]


@pytest.mark.row(45)
def test_of_rows_with_one_id_the_first_in_the_file_is_used(tmp_path):
    rows = [{"image_id": "a", "image_path": f"{n}.png", "caption": str(n)} for n in (3, 1, 2)]
    source = list_source(manifest(tmp_path / "m.jsonl", *rows, rows[0]))
    assert [(item.name, item.image, item.reason) for item in source.items] == [
        ("a", "3.png", ""),
        ("1.png", "1.png", "duplicate-name"),
        ("2.png", "2.png", "duplicate-name"),
        ("3.png", "3.png", "duplicate-name"),
    ]
    assert len({safe_key(item.name) for item in source.items}) == 4


def test_every_refused_twin_gets_an_id_of_its_own(tmp_path):
    rows = [{"image_id": "a", "image_path": "same.png", "caption": "x"}] * 4
    source = list_source(manifest(tmp_path / "m.jsonl", *rows))
    assert len({safe_key(item.name).casefold() for item in source.items}) == 4


# --- nothing to list ---


def test_a_missing_source_says_where_images_are_looked_for(tmp_path):
    assert "no such file or folder" in error_of(tmp_path / "nowhere").message


def test_an_empty_folder_says_so(tmp_path):
    error = error_of(tmp_path)
    assert "it is empty" in error.message and "NAME.jpg" in error.hint


def test_a_folder_of_text_files_says_what_it_holds(tmp_path):
    touch(tmp_path, "a.txt", "b.txt", "notes.md")
    assert "no images in it (2 .txt, 1 .md)" in error_of(tmp_path).message


def test_a_folder_around_a_manifest_points_to_it(tmp_path):
    manifest(tmp_path / "approved.jsonl", GOOD)
    assert str(tmp_path / "approved.jsonl") in error_of(tmp_path).hint


def test_a_folder_around_a_table_points_to_it(tmp_path):
    touch(tmp_path, "list.csv")
    assert str(tmp_path / "list.csv") in error_of(tmp_path).hint


@pytest.mark.parametrize("name", ["images.7z", "images.tar.gz", "list.md", "images"])
def test_a_file_of_another_kind_is_refused(tmp_path, name):
    touch(tmp_path, name)
    message = error_of(tmp_path / name).message
    assert "neither a folder nor a .jsonl, .csv" in message and ".tar" in message


@pytest.mark.parametrize("name", ["pipe.jsonl", "pipe.csv", "pipe.parquet", "pipe.tar"])
def test_pipes_are_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "neither a folder nor" in error_of(tmp_path / name).message


@pytest.mark.row(54)
def test_commands_and_addresses_are_not_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("pipe:touch gotcha", "http://localhost/x.tar", "s3://bucket/x.tar", "hf://datasets/x"):
        assert "addresses and commands are not followed" in error_of(Path(text)).hint
    assert list(tmp_path.iterdir()) == []


def test_patterns_of_shard_lists_point_to_the_folder(tmp_path):
    assert "give the folder that holds these files" in error_of(tmp_path / "shard-{000..010}.tar").hint


def test_a_manifest_of_bad_lines_names_the_keys_that_are_needed(tmp_path):
    error = error_of(manifest(tmp_path / "m.jsonl", {"url": "a.png"}, "x"))
    assert "2 bad-line" in error.message and "its keys are url" in error.message
    assert "image_path" in error.hint and "data.image_column" in error.hint and "data.caption_column" in error.hint
    (tmp_path / "m.jsonl").rename(tmp_path / "metadata.jsonl")
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    assert "file_name" in error_of(tmp_path).hint and "text" in error_of(tmp_path).hint
