"""From a source to records: everything is counted, nothing is lost; rows 39, 40, 44 and the whole path of an image
into a bucket.
"""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest
from PIL import Image

from dittool.data.records import read_records, write_records
from dittool.data.source.images import ImageRefused, fit_to_bucket
from dittool.data.source.scan import load_pixels, scan, summary
from dittool.errors import BadDataError
from dittool.geometry import Bucket
from tests.data.source.picture_files import BLUE, GREEN, RED, WHITE, encoded, exif_of, picture

BUCKETS = [Bucket(64, 64), Bucket(96, 48), Bucket(48, 96)]


def put(folder, name, image, caption="a picture"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image if isinstance(image, bytes) else encoded(image))
    if caption is not None:
        path.with_suffix(".txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())
    return path


def by_name(records):
    return {record.name: record for record in records}


def test_a_used_record_says_everything_about_its_image(tmp_path):
    raw = encoded(picture(300, 200))
    put(tmp_path, "sub/dog.png", raw, "a  dog\n")
    (record,) = scan(tmp_path, BUCKETS)
    assert record.used and record.name == "sub/dog" and record.image == "sub/dog.png" and record.caption == "a dog"
    assert record.image_sha256 == hashlib.sha256(raw).hexdigest()
    assert (record.width, record.height, record.bucket, record.crop, record.flags) == (
        300,
        200,
        "96x48",
        (0, 25, 300, 175),
        (),
    )


def test_every_input_ends_as_used_or_refused_and_the_counts_add_up(tmp_path):
    put(tmp_path, "good.png", picture())
    put(tmp_path, "alpha.png", Image.new("RGBA", (80, 80), (*RED, 0)))
    put(tmp_path, "tall.png", picture(100, 200))
    put(tmp_path, "html.jpg", b"<html>")
    put(tmp_path, "empty.png", b"")
    put(tmp_path, "tiny.png", picture(8, 8))
    put(tmp_path, "long.png", picture(400, 40))
    put(tmp_path, "blank.png", picture(), " \n")
    put(tmp_path, "latin.png", picture(64, 62), b"caf\xe9")
    put(tmp_path, "lonely.png", picture(), None)
    (tmp_path / "orphan.txt").write_text("words")
    (tmp_path / "README.md").write_text("not looked at")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "gone.txt").write_text("a link to nothing")
    records = scan(tmp_path, BUCKETS)
    counts = summary(records)
    assert counts.reasons == {
        "caption-not-utf8": 1,
        "empty-caption": 1,
        "extreme-aspect": 1,
        "no-caption": 1,
        "no-image": 2,
        "not-an-image": 2,
        "too-small": 1,
    }
    assert (counts.total, counts.used, counts.refused) == (12, 3, 9)
    assert counts.buckets == {"48x96": 1, "64x64": 1, "96x48": 1} and sum(counts.buckets.values()) == counts.used
    assert counts.flags == {"alpha-composited": 1, "upscaled": 1}
    assert all(record.reason and record.detail and not record.caption for record in records if not record.used)
    assert len({record.id for record in records}) == len(records)


def test_refused_records_keep_what_was_learnt_before(tmp_path):
    put(tmp_path, "latin.png", picture(64, 62), b"caf\xe9")
    (record,) = scan(tmp_path, BUCKETS)
    assert (record.width, record.height) == (64, 62) and record.image_sha256


def test_two_scans_give_equal_records_in_the_order_of_their_names(tmp_path):
    for number in range(40):
        put(tmp_path, f"{number * 7 % 40:02d}.png", Image.new("RGB", (40 + number, 64), (number, 0, 0)))
    records = scan(tmp_path, BUCKETS)
    assert [record.name for record in records] == [f"{number:02d}" for number in range(40)]
    assert scan(tmp_path, BUCKETS) == records


def test_records_survive_being_written_and_read_back(tmp_path):
    put(tmp_path / "images", os.fsdecode(b"odd \xff\nname") + ".png", picture(), "größe 🐕")
    put(tmp_path / "images", "bad.png", b"")
    records = scan(tmp_path / "images", BUCKETS)
    write_records(tmp_path / "records.jsonl", records)
    assert read_records(tmp_path / "records.jsonl") == records
    used = next(record for record in read_records(tmp_path / "records.jsonl") if record.used)
    assert load_pixels(used, tmp_path / "images").shape == (48, 96, 3)


@pytest.mark.row(35)
def test_sizes_and_crops_are_those_of_the_upright_image(tmp_path):
    put(tmp_path, "a.jpg", encoded(picture(200, 100), "JPEG", exif=exif_of(6)))
    (record,) = scan(tmp_path, BUCKETS)
    assert (record.width, record.height, record.bucket, record.flags) == (100, 200, "48x96", ("exif-rotated",))


@pytest.mark.row(35)
def test_a_rotated_image_fills_its_bucket_upright(tmp_path):
    put(tmp_path, "a.png", encoded(picture(200, 100).transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif_of(6)))
    (record,) = scan(tmp_path, BUCKETS)
    pixels = load_pixels(record, tmp_path)
    corners = [tuple(pixels[y, x].tolist()) for y, x in ((4, 4), (4, 90), (43, 4), (43, 90))]
    assert record.bucket == "96x48" and corners == [RED, GREEN, BLUE, WHITE]


@pytest.mark.row(39)
def test_equal_images_under_two_names_are_used_and_flagged(tmp_path):
    for name in ("b.png", "a.png", "sub/c.png"):
        put(tmp_path, name, picture(), f"caption of {name}")
    put(tmp_path, "other.png", picture(64, 62))
    records = by_name(scan(tmp_path, BUCKETS))
    assert all(record.used for record in records.values())
    assert "duplicate-of:a" not in records["a"].flags
    assert records["b"].flags[-1] == records["sub/c"].flags[-1] == "duplicate-of:a"
    assert summary(list(records.values())).flags["duplicate-of"] == 2


@pytest.mark.row(39)
def test_a_refused_image_is_nobodys_original(tmp_path):
    put(tmp_path, "a.png", picture(), None)
    put(tmp_path, "b.png", picture())
    assert not any(flag.startswith("duplicate-of") for record in scan(tmp_path, BUCKETS) for flag in record.flags)


@pytest.mark.row(40)
def test_a_file_that_changed_after_the_scan_is_refused(tmp_path):
    path = put(tmp_path, "a.png", picture())
    (record,) = scan(tmp_path, BUCKETS)
    assert load_pixels(record, tmp_path).shape == (48, 96, 3)
    path.write_bytes(encoded(picture(60, 42)))
    with pytest.raises(ImageRefused) as caught:
        load_pixels(record, tmp_path)
    assert caught.value.reason == "changed" and "a.png" in caught.value.message
    path.unlink()
    with pytest.raises(ImageRefused) as caught:
        load_pixels(record, tmp_path)
    assert caught.value.reason == "no-image"


@pytest.mark.row(28)
def test_a_body_cut_off_passes_the_scan_and_is_refused_by_name_when_it_is_decoded(tmp_path):
    raw = encoded(picture(200, 200), "JPEG")
    put(tmp_path, "a.jpg", raw[: len(raw) * 2 // 3])
    (record,) = scan(tmp_path, BUCKETS)
    assert record.used
    with pytest.raises(ImageRefused) as caught:
        load_pixels(record, tmp_path)
    assert caught.value.reason == "truncated" and "a.jpg" in caught.value.message


def test_loaded_pixels_are_the_crop_that_the_record_says(tmp_path):
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (120, 333, 3), dtype=np.uint8))
    put(tmp_path, "a.png", image)
    (record,) = scan(tmp_path, BUCKETS)
    pixels, box = fit_to_bucket(np.asarray(image), Bucket.from_name(record.bucket))
    assert box == record.crop and np.array_equal(load_pixels(record, tmp_path), pixels)
    by_hand = image.resize((96, 48), Image.Resampling.LANCZOS, box=record.crop)
    assert np.array_equal(np.asarray(by_hand), pixels)


def test_small_images_are_flagged_as_upscaled(tmp_path):
    put(tmp_path, "small.png", picture(63, 63))
    put(tmp_path, "wide.png", picture(120, 63))
    put(tmp_path, "exact.png", picture(64, 64))
    flags = {record.name: record.flags for record in scan(tmp_path, [Bucket(64, 64)])}
    assert flags == {"small": ("upscaled",), "wide": ("upscaled",), "exact": ()}


# --- manifests ---


def write_manifest(folder, *rows):
    path = folder / "approved.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_manifests_images_lie_relative_to_it_or_absolute(tmp_path):
    put(tmp_path, "set/images/a.png", picture(), None)
    absolute = put(tmp_path, "elsewhere/b.png", picture(100, 200), None)
    rows = [
        {"image_id": "a.1", "image_path": "images/a.png", "caption": "an apple"},
        {"image_id": "b", "image_path": str(absolute), "caption": "a ball"},
        {"image_id": "c", "image_path": "images/c.png", "caption": "not there"},
        {"image_id": "d", "image_path": "images/a.png", "caption": {"text": "nested"}},
    ]
    path = write_manifest(tmp_path / "set", *rows)
    records = by_name(scan(path, BUCKETS))
    assert {name: record.reason for name, record in records.items()} == {
        "a.1": "",
        "b": "",
        "c": "no-image",
        "d": "caption-not-text",
    }
    assert load_pixels(records["a.1"], path).shape == (48, 96, 3) and load_pixels(records["b"], path).shape == (
        96,
        48,
        3,
    )
    assert records["a.1"].caption == "an apple" and "." not in records["a.1"].id


def test_a_manifests_bucket_is_taken_when_it_exists_and_flagged_when_it_is_not_the_nearest(tmp_path):
    put(tmp_path, "a.png", picture(200, 200), None)
    row = {"image_path": "a.png", "caption": "x"}
    hints = {"same": "64x64", "other": "96x48", "unknown": "1216x832", "nonsense": "wide"}
    path = write_manifest(tmp_path, *({"image_id": name, "aspect_bucket": hint, **row} for name, hint in hints.items()))
    found = {
        record.name: (record.bucket, [flag for flag in record.flags if "bucket" in flag])
        for record in scan(path, BUCKETS)
    }
    assert found == {
        "same": ("64x64", []),
        "other": ("96x48", ["bucket-from-manifest"]),
        "unknown": ("64x64", ["bucket-hint-unused"]),
        "nonsense": ("64x64", ["bucket-hint-unused"]),
    }
    other = by_name(scan(path, BUCKETS))["other"]
    assert other.crop == (0, 50, 200, 150) and load_pixels(other, path).shape == (48, 96, 3)


def test_of_several_captions_the_first_is_taken_and_the_others_are_counted(tmp_path):
    put(tmp_path, "a.png", picture(), None)
    rows = [
        {"image_id": str(n), "image_path": "a.png", "caption": ["first", "second", "third"][:n]} for n in (0, 1, 2, 3)
    ]
    records = by_name(scan(write_manifest(tmp_path, *rows), BUCKETS))
    assert records["0"].reason == "empty-caption"
    assert [records[name].caption for name in "123"] == ["first"] * 3
    found = [[flag for flag in records[name].flags if flag.startswith("further")] for name in "123"]
    assert found == [[], ["further-captions:1"], ["further-captions:2"]]
    counts = summary(list(records.values()))
    assert (counts.flags["further-captions"], counts.further_captions) == (2, 3)


def test_lines_of_a_text_file_are_one_caption(tmp_path):
    put(tmp_path, "a.png", picture(), "a dog\non a sofa\n")
    (record,) = scan(tmp_path, BUCKETS)
    assert record.caption == "a dog on a sofa" and not any(flag.startswith("further") for flag in record.flags)


# --- what is said on the way ---


def test_what_is_passed_over_is_said(tmp_path, listener):
    put(tmp_path / "in", "a.png", picture())
    (tmp_path / "in/README.md").write_text("x")
    (tmp_path / "more").mkdir()
    (tmp_path / "in/more").symlink_to(tmp_path / "more")
    scan(tmp_path / "in", BUCKETS, listener)
    assert "1 .md" in listener.notes[0] and listener.notes[1:] == [f"{tmp_path / 'in'}: captions: 1 in .txt (as a.png)"]
    assert len(listener.warnings) == 1 and "1 linked folders are not followed" in listener.warnings[0]


def test_tars_beside_images_are_not_read_and_that_is_said(tmp_path, listener):
    put(tmp_path, "a.png", picture())
    (tmp_path / "more.tar").write_bytes(b"x")
    assert len(scan(tmp_path, BUCKETS, listener)) == 1
    assert listener.warnings == [
        f"{tmp_path}: 1 .tar files beside the images are not read; give them a folder of their own"
    ]


def test_a_source_without_images_is_an_error_and_not_an_empty_list(tmp_path):
    with pytest.raises(BadDataError, match="it is empty"):
        scan(tmp_path, BUCKETS)
