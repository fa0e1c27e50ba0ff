"""CSV, TSV and Parquet tables as sources: which columns, which rows, and what a broken table says."""

from __future__ import annotations

import builtins
import csv

import pytest

from dittool.data.records import safe_key
from dittool.data.source.item import LONGEST_LINE
from dittool.data.source.scan import load_pixels, scan, summary
from dittool.data.source.sources import list_source, source_root
from dittool.errors import BadDataError, UsageError
from dittool.geometry import Bucket
from tests.data.source.picture_files import encoded, picture


def table(path, *rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def parquet_table(file, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), file)
    return file


def listed(source):
    return [(item.name, item.image, item.caption, item.reason) for item in source.items]


def error_of(source, kind=BadDataError):
    with pytest.raises(kind) as caught:
        list_source(source)
    assert str(source) in caught.value.message and caught.value.hint
    return caught.value


# --- columns ---


@pytest.mark.parametrize("caption", ["caption", "text"])
@pytest.mark.parametrize("path", ["image_path", "file_name", "path", "image"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_path_and_a_caption_column_make_a_source_whatever_they_are_called(tmp_path, kind, path, caption):
    file = tmp_path / f"list.{kind}"
    if kind == "parquet":
        parquet_table(file, width=[1, 2], **{caption: ["a ball, red", "an apple"], path: ["b.png", "sub/a.png"]})
    else:
        rows = [["width", caption, path], [1, "a ball, red", "b.png"], [2, "an apple", "sub/a.png"]]
        table(file, *rows, delimiter="\t" if kind == "tsv" else ",")
    source = list_source(file)
    assert source.kind == "table" and source.root == tmp_path == source_root(file)
    assert listed(source) == [("b", "b.png", "a ball, red", ""), ("sub/a", "sub/a.png", "an apple", "")]


def test_the_first_known_path_column_is_read(tmp_path):
    path = table(tmp_path / "list.csv", ["image", "path", "caption"], ["no.png", "yes.png", "x"])
    assert [item.image for item in list_source(path).items] == ["yes.png"]


@pytest.mark.parametrize(
    ("header", "missing", "looked_for"),
    [
        (["url", "caption"], "no column of image paths", "image_path, file_name, filename, path"),
        (["image_path", "label"], "no column of captions", "caption, captions, text, prompt"),
        ([], "no column of image paths", "image_path, file_name, filename, path"),
    ],
)
def test_a_missing_column_is_told_with_what_was_looked_for_and_what_is_there(tmp_path, header, missing, looked_for):
    error = error_of(table(tmp_path / "list.csv", header, ["a.png", "x"]))
    assert missing in error.message and f"looked for {looked_for}" in error.message
    assert f"its columns are {', '.join(header) or 'none'}" in error.message and "commas between them" in error.hint
    assert "-s data.image_column=NAME" in error.hint or "-s data.caption_column=NAME" in error.hint


def test_a_missing_column_of_a_parquet_table_is_told_too(tmp_path):
    assert (
        "its columns are url, text" in error_of(parquet_table(tmp_path / "list.parquet", url=["x"], text=["x"])).message
    )


def test_a_column_that_stands_twice_is_an_error(tmp_path):
    assert (
        "column caption stands there twice"
        in error_of(table(tmp_path / "list.csv", ["path", "caption", "caption"], ["a", "b", "c"])).message
    )


def test_ids_and_buckets_are_read_when_they_are_there(tmp_path):
    path = table(
        tmp_path / "list.csv",
        ["image_id", "image_path", "caption", "aspect_bucket"],
        ["7", "/data/a.png", "x", "1216x832"],
    )
    (item,) = list_source(path).items
    assert (item.name, item.image, item.bucket_hint) == ("7", "/data/a.png", "1216x832")


def test_caption_and_text_that_differ_are_refused(tmp_path):
    path = table(tmp_path / "list.csv", ["path", "caption", "text"], ["a.png", "x", "y"], ["b.png", "x", "x"])
    assert [item.reason for item in list_source(path).items] == ["two-captions", ""]


# --- rows ---


def test_quotes_line_ends_and_a_byte_order_mark_are_read_as_csv_has_them(tmp_path):
    (tmp_path / "list.csv").write_bytes(
        b'\xef\xbb\xbfpath,caption\r\na.png,"a ""big"" dog,\r\nasleep"\r\n\r\nb.png,gr\xc3\xb6\xc3\x9fe\r\n'
    )
    assert listed(list_source(tmp_path / "list.csv")) == [
        ("a", "a.png", 'a "big" dog,\r\nasleep', ""),
        ("b", "b.png", "größe", ""),
    ]


@pytest.mark.row(43)
def test_rows_of_another_width_or_with_wrong_bytes_are_refused_by_line_and_the_others_stand(tmp_path):
    (tmp_path / "list.csv").write_bytes(
        b"path,caption\na.png,good\nb.png,one,two\nc.png\nd.png,caf\xe9\n,no path\ne.png,\n"
    )
    source = list_source(tmp_path / "list.csv")
    assert {item.name: (item.reason, item.detail) for item in source.items} == {
        "a": ("", ""),
        "e": ("", ""),
        "list.csv:3": ("bad-line", "3 fields, the first line has 2"),
        "list.csv:4": ("bad-line", "1 fields, the first line has 2"),
        "list.csv:5": ("bad-line", "caption: byte 0xe9 is not UTF-8"),
        "list.csv:6": ("bad-line", "path is missing or not text"),
    }


@pytest.mark.row(43)
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b'a.png,"no end\nb.png,x\n', "unexpected end of data"),
        (b'a.png,"x" y\n', "expected after"),
        (b'a.png,"' + b"x\n" * 100_000 + b'"\n', "field larger"),
    ],
)
def test_broken_quotes_end_the_table_because_the_next_row_is_unknown(tmp_path, rows, message):
    (tmp_path / "list.csv").write_bytes(b"path,caption\n" + rows)
    error = error_of(tmp_path / "list.csv")
    assert message in error.message and "near line" in error.message and "double quotes" in error.hint


@pytest.mark.row(43)
def test_an_endless_line_is_not_read_to_its_end(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"path,caption\na.png," + b"x" * (2 * LONGEST_LINE))
    assert "line 2 is longer than 1,048,576 characters" in error_of(tmp_path / "list.csv").message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_tables_in_utf16_as_spreadsheets_write_it_are_read(tmp_path, kind, encoding):
    mark = "\t" if kind == "tsv" else ";"
    text = f"path{mark}caption\r\na.png{mark}größe 猫\r\n"
    if kind == "jsonl":
        text = '{"path": "a.png", "caption": "größe 猫"}\r\n'
    (tmp_path / f"list.{kind}").write_bytes(text.encode(encoding))
    assert listed(list_source(tmp_path / f"list.{kind}")) == [("a", "a.png", "größe 猫", "")]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_damaged_utf16_is_told_as_such(tmp_path, kind):
    text = "path,caption\na.png,x\n" if kind == "csv" else '{"path": "a.png", "caption": "x"}\n'
    (tmp_path / f"list.{kind}").write_bytes(text.encode("utf-16")[:-1])
    error = error_of(tmp_path / f"list.{kind}")
    assert "damaged utf-16" in error.message and "save it as UTF-8" in error.hint


def test_rows_that_repeat_a_path_are_several_captions_of_one_image(tmp_path):
    rows = [["a.png", "first"], ["b.png", "other"], ["a.png", "second"], ["a.png", "third"]]
    source = list_source(table(tmp_path / "list.csv", ["image", "caption"], *rows))
    assert listed(source) == [("a", "a.png", ["first", "second", "third"], ""), ("b", "b.png", "other", "")]


def test_rows_with_ids_of_their_own_stay_apart_even_with_one_image(tmp_path):
    rows = [["1", "a.png", "first"], ["2", "a.png", "second"], ["2", "a.png", "third"]]
    source = list_source(table(tmp_path / "list.csv", ["image_id", "path", "caption"], *rows))
    assert [(item.name, item.reason) for item in source.items] == [("1", ""), ("2", ""), ("a.png", "duplicate-name")]
    assert len({safe_key(item.name) for item in source.items}) == 3


# --- Parquet ---


def test_lists_and_missing_cells_of_parquet_come_as_they_are(tmp_path):
    source = list_source(
        parquet_table(tmp_path / "l.parquet", path=["a.png", "b.png", None], caption=[["x", "y"], None, ["z"]])
    )
    assert {item.name: (item.caption, item.reason) for item in source.items} == {
        "a": (["x", "y"], ""),
        "b": ("", "no-caption"),
        "l.parquet:3": ("", "bad-line"),
    }


@pytest.mark.row(43)
def test_parquet_text_that_is_not_utf8_is_refused_row_by_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    captions = pyarrow.array([b"good", b"caf\xe9"]).view(pyarrow.string())
    source = list_source(parquet_table(tmp_path / "l.parquet", path=["a.png", "b.png"], caption=captions))
    assert {item.name: item.detail for item in source.items} == {
        "a": "",
        "l.parquet:2": "caption: byte 0xe9 is not UTF-8",
    }


def test_dictionary_encoded_paths_are_paths(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    path = parquet_table(tmp_path / "l.parquet", path=pyarrow.array(["a.png"]).dictionary_encode(), caption=["x"])
    assert listed(list_source(path)) == [("a", "a.png", "x", "")]


def test_pictures_inside_a_parquet_table_are_not_taken_for_paths(tmp_path):
    parquet_table(tmp_path / "metadata.parquet", image=[{"bytes": b"x", "path": "a.png"}], text=["x"])
    (tmp_path / "a.png").write_bytes(b"x")
    error = error_of(tmp_path)
    assert "column image holds struct" in error.message and "no picture lies beside it" in error.hint


@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_damaged_parquet_file_is_named(tmp_path, content):
    pytest.importorskip("pyarrow")
    (tmp_path / "l.parquet").write_bytes(content)
    assert "cannot be read as Parquet" in error_of(tmp_path / "l.parquet").message


def test_a_parquet_file_that_is_cut_anywhere_is_an_error(tmp_path):
    path = parquet_table(tmp_path / "l.parquet", path=["a.png"] * 50, caption=["x"] * 50)
    raw = path.read_bytes()
    for cut in range(0, len(raw), 97):
        path.write_bytes(raw[:cut])
        assert "cannot be read as Parquet" in error_of(path).message


def test_without_pyarrow_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    (tmp_path / "l.parquet").write_bytes(b"x")
    really_import = builtins.__import__

    def without_pyarrow(name, *arguments, **options):
        if name.partition(".")[0] == "pyarrow":
            raise ImportError("No module named 'pyarrow'")
        return really_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    error = error_of(tmp_path / "l.parquet", UsageError)
    assert "needs pyarrow" in error.message and "pip install 'pyarrow>=" in error.hint


# --- the whole way ---


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_tables_images_are_scanned_and_loaded_and_the_counts_add_up(tmp_path, kind):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(encoded(picture(200, 100)))
    paths, captions = ["images/a.png", "images/gone.png", "images/a.png"], ["an apple", "gone", "a red apple"]
    file = tmp_path / f"list.{kind}"
    parquet_table(file, path=paths, text=captions) if kind == "parquet" else table(
        file, ["path", "text"], *zip(paths, captions, strict=True)
    )
    records = scan(file, [Bucket(64, 64), Bucket(96, 48)])
    counts = summary(records)
    assert (counts.total, counts.used, counts.reasons, counts.further_captions) == (
        2,
        1,
        {"no-image": 1},
        1,
    )
    used = next(record for record in records if record.used)
    assert used.caption == "an apple" and load_pixels(used, file).shape == (48, 96, 3)
