"""WebDataset tars of images with captions as a source: what a sample is, what is refused, and that bytes come from
the tar alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile

import pytest

from dittool.data.source.containers import container_of, read_picture
from dittool.data.source.images import ImageRefused
from dittool.data.source.scan import load_pixels, scan, summary
from dittool.data.source.sources import list_source, source_root
from dittool.errors import BadDataError, UnsafeFileError
from dittool.geometry import Bucket
from tests.data.source.picture_files import encoded, picture

BUCKETS = [Bucket(64, 64), Bucket(96, 48), Bucket(48, 96)]
PNG = encoded(picture(200, 100))


def write_tar(path, members, **changes):
    """`members`: name → bytes, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return path


def listed(source):
    return {item.name: (item.image, item.reason) for item in source.items}


def refusals(source):
    return {item.name: item.reason for item in source.items if item.reason}


# --- what a sample is ---


def test_an_image_and_the_text_under_its_key_are_a_sample(tmp_path):
    path = write_tar(tmp_path / "set.tar", {"b.jpg": b"x", "b.txt": b"a ball", "a.PNG": b"x", "a.txt": b"an apple"})
    source = list_source(path)
    assert source.kind == "tar" and source.root == tmp_path == source_root(path)
    assert listed(source) == {"a": ("set.tar/a.png", ""), "b": ("set.tar/b.jpg", "")} and source.ignored == {}


def test_a_tar_that_the_webdataset_library_wrote_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "set.tar")) as writer:
        writer.write(
            {"__key__": "000000", "png": PNG, "txt": "a picture", "json": {"caption": "another", "width": 200}}
        )
    (record,) = scan(tmp_path / "set.tar", BUCKETS)
    assert record.used and (record.id, record.image, record.caption) == ("000000", "set.tar/000000.png", "a picture")


@pytest.mark.parametrize(
    ("value", "caption", "further"),
    [
        ({"caption": "a dog", "width": 3}, "a dog", 0),
        ({"text": ["a dog", "b"]}, "a dog", 1),
        (["a dog", "b", "c"], "a dog", 2),
        ("a dog", "a dog", 0),
    ],
)
def test_a_caption_may_stand_in_json(tmp_path, value, caption, further):
    (record,) = scan(write_tar(tmp_path / "s.tar", {"a.json": json.dumps(value).encode(), "a.png": PNG}), BUCKETS)
    assert record.caption == caption and [flag for flag in record.flags if "caption" in flag] == [
        f"further-captions:{further}"
    ] * bool(further)


def test_a_text_is_the_caption_even_beside_json_and_however_many_lines_it_has(tmp_path):
    members = {"a.png": PNG, "a.txt": b"a dog\non a sofa\n", "a.json": b'{"caption": "other"}', "a.cls": b"7"}
    source = write_tar(tmp_path / "s.tar", members)
    (record,) = scan(source, BUCKETS)
    assert record.caption == "a dog on a sofa" and list_source(source).ignored == {".json": 1, ".cls": 1}


def test_every_sample_ends_as_used_or_refused(tmp_path):
    members = {
        "good.png": PNG,
        "good.txt": b"x",
        "lonely.png": PNG,
        "words.txt": b"x",
        "two.png": PNG,
        "two.jpg": PNG,
        "two.txt": b"x",
        "html.jpg": b"<html>",
        "html.txt": b"x",
        "latin.png": PNG,
        "latin.txt": b"caf\xe9",
        "bad.png": PNG,
        "bad.json": b"{",
        "long.png": PNG,
        "long.txt": b"x" * 70_000,
        "img.v1.png": PNG,
        "img.v1.txt": b"x",
        "img.v2.png": PNG,
        "img.v2.txt": b"y",
        "dog.v1.png": PNG,
        "dog.v1.txt": b"one dot more is no harm",
    }
    records = scan(write_tar(tmp_path / "s.tar", members), BUCKETS)
    assert {record.name: record.reason for record in records} == {
        "good": "",
        "dog": "",
        "lonely": "no-caption",
        "words": "no-image",
        "two": "two-images",
        "html": "not-an-image",
        "latin": "caption-not-utf8",
        "bad": "caption-not-json",
        "long": "caption-too-long",
        "img": "two-images",
    }
    counts = summary(records)
    assert (counts.total, counts.used, counts.refused) == (10, 2, 8)
    assert next(record.image for record in records if record.name == "dog") == "s.tar/dog.v1.png"


def test_the_hash_is_that_of_the_members_bytes_and_the_pixels_are_the_files(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a.png").write_bytes(PNG)
    (tmp_path / "files/a.txt").write_text("a picture")
    tar = write_tar(
        tmp_path / "s.tar",
        {"other.png": encoded(picture(64, 64)), "other.txt": b"x", "a.png": PNG, "a.txt": b"a picture"},
    )
    (from_file,), from_tar = (
        scan(tmp_path / "files", BUCKETS),
        next(record for record in scan(tar, BUCKETS) if record.name == "a"),
    )
    assert from_tar.image_sha256 == from_file.image_sha256 == hashlib.sha256(PNG).hexdigest()
    assert (from_tar.bucket, from_tar.crop, from_tar.caption) == (from_file.bucket, from_file.crop, from_file.caption)
    assert (load_pixels(from_tar, tar) == load_pixels(from_file, tmp_path / "files")).all()


# --- folders of tars ---


def test_a_folder_of_tars_is_one_source_and_keys_may_repeat_in_it(tmp_path):
    for name, size in (("00.tar", 64), ("01.tar", 128), ("sub/00.tar", 192)):
        write_tar(tmp_path / name, {"0.png": encoded(picture(size, size)), "0.txt": name.encode()})
    (tmp_path / "README.md").write_text("x")
    source = list_source(tmp_path)
    assert listed(source) == {
        "00/0": ("00.tar/0.png", ""),
        "01/0": ("01.tar/0.png", ""),
        "sub/00/0": ("sub/00.tar/0.png", ""),
    }
    assert source.kind == "tar" and source.ignored == {".md": 1} and source_root(tmp_path) == tmp_path
    records = scan(tmp_path, BUCKETS)
    assert [(record.name, record.width, record.caption) for record in records] == [
        ("00/0", 64, "00.tar"),
        ("01/0", 128, "01.tar"),
        ("sub/00/0", 192, "sub/00.tar"),
    ]
    assert all(load_pixels(record, tmp_path).shape == (64, 64, 3) for record in records)


def test_images_beside_tars_make_it_a_folder_of_images(tmp_path):
    write_tar(tmp_path / "more.tar", {"0.png": PNG, "0.txt": b"x"})
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "a.txt").write_text("an apple")
    source = list_source(tmp_path)
    assert source.kind == "folder" and source.ignored == {".tar": 1}


def test_a_folder_called_like_a_tar_is_a_folder(tmp_path):
    (tmp_path / "odd.tar").mkdir()
    (tmp_path / "odd.tar/a.png").write_bytes(PNG)
    (tmp_path / "odd.tar/a.txt").write_text("x")
    (record,) = scan(tmp_path, BUCKETS)
    assert record.image == "odd.tar/a.png" and load_pixels(record, tmp_path).shape == (48, 96, 3)
    assert container_of(tmp_path / "odd.tar/a.png") is None


def test_a_manifest_may_name_images_in_tars(tmp_path):
    write_tar(tmp_path / "shards/s.tar", {"a.png": PNG})
    row = {"image_id": "a", "image_path": "shards/s.tar/a.png", "caption": "an apple"}
    (tmp_path / "m.jsonl").write_text(
        json.dumps(row) + "\n" + json.dumps({**row, "image_id": "b", "image_path": "shards/s.tar/b.png"})
    )
    used, refused = scan(tmp_path / "m.jsonl", BUCKETS)
    assert load_pixels(used, tmp_path / "m.jsonl").shape == (48, 96, 3)
    assert (refused.reason, refused.detail) == ("no-image", "no such member in the tar")


# --- what is refused as a whole ---


@pytest.mark.row(49)
@pytest.mark.parametrize("folder", [True, False])
def test_a_tar_cut_at_any_block_is_an_error_that_names_it(tmp_path, folder):
    path = write_tar(tmp_path / "set/s.tar", {"a.png": PNG, "a.txt": b"x", "b.png": PNG, "b.txt": b"y"})
    raw = path.read_bytes()
    whole = len(raw.rstrip(b"\0")) // 512 + 1
    for blocks in range(whole + 2):  # with the second closing block it is whole again
        path.write_bytes(raw[: 512 * blocks])
        with pytest.raises(BadDataError) as caught:
            list_source(path.parent if folder else path)
        assert str(path) in caught.value.message and "dit shard" not in caught.value.hint


@pytest.mark.row(50)
@pytest.mark.parametrize(
    "content", [b"", b"<html>" * 200, b"version https://git-lfs.github.com/spec/v1\n", b"\x1f\x8b\x08" + b"x" * 2000]
)
def test_what_is_no_tar_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(BadDataError, match=r"s\.tar"):
        list_source(tmp_path / "s.tar")


@pytest.mark.row(50)
def test_an_empty_tar_is_an_error(tmp_path):
    with pytest.raises(BadDataError, match="the tar is empty"):
        list_source(write_tar(tmp_path / "s.tar", {}))


@pytest.mark.row(51)
@pytest.mark.parametrize(
    "members",
    [
        [("a.png", PNG), ("a.txt", b"x"), ("a.png", PNG)],
        [("a.png", PNG), ("./a.png", PNG), ("a.txt", b"x")],
    ],
)
def test_a_member_twice_is_an_error(tmp_path, members):
    with pytest.raises(BadDataError, match="there twice"):
        list_source(write_tar(tmp_path / "s.tar", members))


@pytest.mark.row(51)
def test_members_of_a_sample_are_found_wherever_they_stand(tmp_path):
    members = [("a.png", PNG), ("b.png", PNG), ("b.txt", b"a ball"), ("a.txt", b"an apple")]
    records = scan(write_tar(tmp_path / "s.tar", members), BUCKETS)
    assert {record.name: record.caption for record in records} == {"a": "an apple", "b": "a ball"}


def test_a_tar_that_tar_made_of_a_folder_is_read_with_its_folders(tmp_path):
    long = "n" * 120
    for name in ("x.png", "sub/deep/y.png", f"{long}.png", ".hidden/z.png", "._x.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(PNG)
        (tmp_path / "in" / name).with_suffix(".txt").write_text(f"caption of {name[-5:]}")
    (tmp_path / "in/LICENSE").write_text("free")
    for form in ("gnu", "pax", "ustar"):
        if form != "ustar":
            subprocess.run(["tar", f"--format={form}", "-cf", tmp_path / "a.tar", "."], cwd=tmp_path / "in", check=True)
        else:
            subprocess.run(["tar", "--exclude=nnn*", "-cf", tmp_path / "a.tar", "in"], cwd=tmp_path, check=True)
        source = list_source(tmp_path / "a.tar")
        records = scan(tmp_path / "a.tar", BUCKETS)
        before = "in/" if form == "ustar" else ""
        names = {f"{before}x": "caption of x.png", f"{before}sub/deep/y": "caption of y.png"}
        names |= {long: "caption of n.png"} if form != "ustar" else {}
        assert {record.name: record.caption for record in records} == names
        assert source.ignored == {"hidden": 4, "no suffix": 1}
        assert all(load_pixels(record, tmp_path / "a.tar").shape == (48, 96, 3) for record in records)


@pytest.mark.row(52)
@pytest.mark.parametrize("name", ["../", "a/../../", "/abs/"])
def test_folders_that_lead_elsewhere_are_unsafe(tmp_path, name):
    with pytest.raises(UnsafeFileError):
        list_source(write_tar(tmp_path / "s.tar", {name: b""}, type=tarfile.DIRTYPE))


@pytest.mark.row(52)
@pytest.mark.parametrize("name", ["../../etc/x.png", "/abs.png", "sub/../../x.png", "..png", "a\\b.png"])
def test_member_names_that_lead_elsewhere_are_unsafe(tmp_path, name):
    with pytest.raises(UnsafeFileError) as caught:
        list_source(write_tar(tmp_path / "s.tar", {name: PNG}))
    assert "s.tar" in caught.value.message and caught.value.exit_code == 4


@pytest.mark.row(52)
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_unsafe(tmp_path, kind):
    with pytest.raises(UnsafeFileError, match="not a regular file"):
        list_source(write_tar(tmp_path / "s.tar", {"a.png": b""}, type=kind, linkname="/etc/passwd"))


@pytest.mark.row(52)
def test_nothing_is_ever_written_beside_a_tar(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"a.png": PNG, "a.txt": b"x"})
    (record,) = scan(path, BUCKETS)
    load_pixels(record, path)
    assert os.listdir(tmp_path) == ["s.tar"]


def test_a_tar_of_features_says_what_is_missing(tmp_path):
    with pytest.raises(BadDataError) as caught:
        list_source(write_tar(tmp_path / "shard-000000.tar", {"a.json": b"{}", "a.vae.npy": b"x"}))
    assert "1 samples without an image" in caught.value.message and "dit train" in caught.value.hint


# --- what happens after the scan ---


@pytest.mark.row(40)
def test_a_tar_that_changed_after_the_scan_is_noticed(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"a.png": PNG, "a.txt": b"x"})
    (record,) = scan(path, BUCKETS)
    assert load_pixels(record, path).shape == (48, 96, 3)

    def reason_after(change):
        change()
        with pytest.raises(ImageRefused) as caught:
            load_pixels(record, path)
        assert "s.tar" in caught.value.message
        return caught.value.reason

    assert reason_after(lambda: write_tar(path, {"a.png": encoded(picture(64, 64)), "a.txt": b"x"})) == "changed"
    assert reason_after(lambda: write_tar(path, {"b.png": PNG, "b.txt": b"x"})) == "no-image"
    assert reason_after(lambda: path.write_bytes(b"x" * 100)) == "unreadable"
    assert reason_after(path.unlink) in ("no-image", "unreadable")


def test_a_member_larger_than_an_image_may_be_is_not_read(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "s.tar", {"a.png": PNG})
    monkeypatch.setattr("dittool.data.source.archive.LARGEST_FILE", len(PNG) - 1)
    with pytest.raises(ImageRefused) as caught:
        read_picture(path / "a.png")
    assert caught.value.reason == "too-large"
