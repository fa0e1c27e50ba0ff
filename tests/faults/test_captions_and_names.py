"""Rows 41 to 46: captions and names."""

from __future__ import annotations

import json
import os
import tarfile

import numpy as np
import pytest

from dittool.data.records import FEATURES
from dittool.encoders.torchvision_remedy import ensure_torchvision
from tests.data.source.picture_files import BLUE, GREEN, RED
from tests.faults.files import files_of, flat, near, write_lines

# --- rows 41 to 43: captions ---


@pytest.mark.row(41)
def test_empty_captions_are_refused_and_counted(desk):
    for name, caption in {
        "empty": b"",
        "spaces": b" \n\t\r\n",
        "ideographic": "\u3000".encode(),
        "mark_only": b"\xef\xbb\xbf",
    }.items():
        desk.put(f"{name}.png", flat(RED), caption)
    names = ("empty", "spaces", "ideographic", "mark_only")
    assert desk.embed().lost_nothing(**dict.fromkeys(names, "empty-caption")).answer["reasons"] == {"empty-caption": 4}


@pytest.mark.row(42)
def test_a_caption_beyond_512_tokens_is_cut_counted_and_said(desk):
    desk.put("long.png", flat(RED), " ".join(f"word{number}" for number in range(600)))
    desk.put("full.png", flat(BLUE), " ".join(f"word{number}" for number in range(512)))
    done = desk.embed().lost_nothing()
    assert (
        done.answer["cut_captions"] == 1
        and "1 captions are longer than encoders.max_text_tokens = 512" in done.outcome.err
    )
    assert len(done.array("t5_hidden", "long")) == len(done.array("t5_hidden", "full")) == 512
    assert np.array_equal(done.array("t5_hidden", "long"), done.array("t5_hidden", "full"))
    assert done.rows["long"]["caption"].endswith("word599")  # the record keeps all of it


DAMAGED_CAPTIONS = {
    "latin1": (b"caf\xe9", "caption-not-utf8"),
    "utf16": ("a dog".encode("utf-16"), "caption-not-utf8"),
    "overlong": (b"\xc0\xaf", "caption-not-utf8"),
    "cesu": (b"\xed\xa0\x80", "caption-not-utf8"),
    "nul": (b"a\0b", "caption-control"),
    "escape": (b"a \x1b[31mred\x1b[0m dog", "caption-control"),
    "bidi": ("a \u202egod".encode(), "caption-control"),
    "megabyte": (b"a" * 1_000_000, "caption-too-long"),
}


@pytest.mark.row(43)
def test_damaged_captions_are_refused_and_never_repaired(desk):
    for name, (caption, _) in DAMAGED_CAPTIONS.items():
        desk.put(f"{name}.png", flat(RED), caption)
    desk.put("marked.png", flat(BLUE), b"\xef\xbb\xbfa dog\r\n")
    done = desk.embed().lost_nothing(**{name: reason for name, (_, reason) in DAMAGED_CAPTIONS.items()})
    assert done.rows["marked"]["caption"] == "a dog"


@pytest.mark.row(43)
def test_captions_in_json_that_are_no_text_are_refused(desk):
    wrong = {
        "number": 5,
        "list": ["a", 5],
        "object": {"text": "a"},
        "yes": True,
        "none": None,
        "surrogate": "a \ud800 b",
    }
    rows = [
        {"file_name": f"{name}.png", "text": f"caption of {name}"}
        for name in ("scene-0001", "scene-0002", "scene-0003")
    ]
    for text in desk.images.glob("*.txt"):  # or it would be for the user to say which caption is meant
        text.unlink()
    for number, (name, caption) in enumerate(wrong.items()):
        desk.put(f"{name}.png", flat((number, 0, 0)), None)
        rows.append({"file_name": f"{name}.png", "text": caption})
    write_lines(desk.images / "metadata.jsonl", rows)
    with (desk.images / "metadata.jsonl").open("ab") as file:
        file.write(b'{"file_name": "torn.png", "te\n[1, 2]\n' + b"[" * 100_000 + b"\n")
    done = desk.embed()
    assert {name: done.reasons[name] for name in wrong} == dict.fromkeys(
        ("number", "list", "object", "yes"), "caption-not-text"
    ) | {
        "none": "no-caption",
        "surrogate": "caption-control",
    }
    assert sum(reason == "bad-line" for reason in done.reasons.values()) == 3
    done.lost_nothing(**done.reasons)


@pytest.mark.row(43)
def test_names_that_steer_a_terminal_are_shown_and_not_obeyed(desk, one_error):
    name = "evil\x1b[2J\u202egnp"
    desk.put(f"{name}.png", flat(RED), "a picture")
    done = desk.embed().lost_nothing()
    (done.folder / "vae_latents" / f"{done.rows[name]['id']}.npy").unlink()
    failed = desk.run("shard", done.folder, "--out", desk.root / "shards")
    line = one_error(failed, 3, "1 of 4", "vae")
    assert r"evil\x1b[2J" in line and not set(failed.err) & {"\x1b", "\u202e"}


@pytest.mark.row(43)
def test_a_name_with_line_breaks_does_not_pass_for_lines_of_ours(desk, one_error):
    name = "evil\nerror: all is well\n  next: remove everything"
    desk.put(f"{name}.png", flat(RED), "a picture")
    done = desk.embed().lost_nothing()
    (done.folder / "vae_latents" / f"{done.rows[name]['id']}.npy").unlink()
    failed = desk.run("shard", done.folder, "--out", desk.root / "shards")
    one_error(failed, 3, "1 of 4")
    assert [line for line in failed.err.splitlines() if line.startswith("  next: ")] == [failed.err.splitlines()[-1]]


# --- rows 44 to 46: names ---


@pytest.mark.row(44)
def test_a_folder_with_a_lonely_caption_is_packed_and_embedded_again(desk):
    (desk.images / "orphan.txt").write_text("nothing to see")
    done = desk.embed().lost_nothing(**{"orphan.txt": "no-image"})
    assert desk.embed().lost_nothing(**{"orphan.txt": "no-image"}).answer["made"] == {"dinov3": 0, "vae": 0, "t5": 0}
    assert desk.run("shard", done.folder, "--out", desk.root / "shards").code == 0


@pytest.mark.row(44)
def test_captions_and_images_without_each_other_are_reported_with_counts(desk):
    desk.put("lonely.png", flat(RED), None)
    desk.put("Photo.png", flat(GREEN), None)
    (desk.images / "photo.txt").write_text("differs in case")
    (desk.images / "orphan.txt").write_text("nothing to see")
    done = desk.embed().lost_nothing(
        **{"lonely": "no-caption", "Photo": "no-caption", "photo.txt": "no-image", "orphan.txt": "no-image"}
    )
    assert done.answer["reasons"] == {"no-caption": 2, "no-image": 2}
    assert "photo.txt" in done.rows["Photo"]["detail"] and "upper and lower case" in done.rows["Photo"]["detail"]


ODD_IDS = (
    "../../etc/x",
    "/abs/olute",
    "a\nb",
    "x" * 300,
    "nul\0byte",
    "caf\u00e9",
    "lone \ud800 half",
    "-rf",
    "con",
    " ",
    "📷",
    "a/b/../c",
)


@pytest.mark.row(45)
def test_odd_ids_become_safe_keys_that_lead_nowhere_and_the_real_ones_are_kept(desk):
    rows = [
        {"image_id": name, "image_path": f"images/{name}.png", "caption": "a picture"}
        for name in ("scene-0001", "scene-0002", "scene-0003")
    ]
    rows += [
        {"image_id": name, "image_path": "images/scene-0001.png", "caption": f"number {number}"}
        for number, name in enumerate(ODD_IDS)
    ]
    manifest = write_lines(desk.root / "odd.jsonl", rows)
    before = files_of(desk.root)
    done = desk.embed(source=manifest).lost_nothing()
    assert set(ODD_IDS) <= done.used
    keys = [row["id"] for row in done.rows.values()]
    assert len({key.casefold() for key in keys}) == len(keys)
    assert all(
        key.isascii() and key.replace("-", "").replace("_", "").isalnum() and len(key) <= 100 and key[0] != "-"
        for key in keys
    )
    assert {name: raw for name, raw in files_of(desk.root).items() if not name.startswith("derived/")} == before
    assert desk.run("shard", done.folder, "--out", desk.root / "shards", "--holdout", "0").code == 0
    named = {}
    for path in (desk.root / "shards").rglob("*.tar"):
        with tarfile.open(path) as tar:
            named |= {
                member.name: json.load(tar.extractfile(member))
                for member in tar.getmembers()
                if member.name.endswith(".json")
            }
    assert {record["name"] for record in named.values()} == done.used
    assert all(name == f"{record['id']}.json" for name, record in named.items())


@pytest.mark.row(45)
def test_ids_that_are_equal_or_become_equal_are_refused_and_both_are_recorded(desk):
    names = ("scene-0001", "scene-0002", "scene-0003", "scene-0001", "caf\u00e9", "cafe\u0301")
    rows = [
        {"image_id": name, "image_path": "images/scene-0002.png", "caption": f"number {number}"}
        for number, name in enumerate(names)
    ]
    done = desk.embed(source=write_lines(desk.root / "twice.jsonl", rows))
    assert list(done.reasons.values()) == ["duplicate-name"] * 2 and len(done.rows) == len(rows)
    done.lost_nothing(**done.reasons)
    assert len([path for path in (desk.images.parent / "derived/t5_hidden").iterdir()]) == 4


@pytest.mark.row(45)
def test_file_names_that_are_no_text_or_differ_only_in_their_accents_are_distinguished_or_refused(desk):
    desk.put(os.fsdecode(b"bytes \xff\xfe\nname") + ".png", flat(RED))
    desk.put("caf\u00e9.png", flat(GREEN))
    desk.put("cafe\u0301.png", flat(BLUE), None)
    done = desk.embed()
    odd = next(name for name in done.rows if name.startswith("bytes"))
    assert near(done.colour(odd), RED) and os.fsencode(odd) == b"bytes \xff\xfe\nname"
    assert list(done.reasons.values()) == ["duplicate-name"]
    done.lost_nothing(**done.reasons)


@pytest.mark.row(46)
def test_names_with_dots_stay_different_for_every_reader(desk):
    names = ["img.v1.2", "img.v1.3", "img", "archive.tar.gz", "x.JSON"]
    for number, name in enumerate(names):
        desk.put(f"{name}.png", flat((50 * number, 0, 0)), f"caption {number}")
        (desk.images / f"{name}.txt").write_text(f"caption {number}")
    done = desk.embed().lost_nothing()
    assert set(names) <= done.used
    assert desk.run("shard", done.folder, "--out", desk.root / "shards", "--holdout", "0").code == 0
    ensure_torchvision()
    import webdataset

    read = {}
    for path in (desk.root / "shards").rglob("*.tar"):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            assert {"json", *(feature.member for feature in FEATURES)} <= set(sample)
            read[json.loads(sample["json"])["name"]] = sample["__key__"]
    assert read == {name: row["id"] for name, row in done.rows.items()}


@pytest.mark.row(46)
def test_names_that_differ_only_in_case_do_not_share_a_file(desk):
    desk.put("Dog.png", flat(RED))
    desk.put("dog.png", flat(BLUE))
    done = desk.embed()
    assert list(done.reasons.values()) == ["duplicate-name"]
    done.lost_nothing(**done.reasons)
