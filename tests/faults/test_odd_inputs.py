"""Odd inputs beyond the catalogue: what a clumsy or hostile hand leaves in the folders that the commands read and
write.

Whatever stands there, a command ends with a code of the contract and one line; 70, a bug of ours, is never the answer.
"""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from tests.data.source.picture_files import encoded

PNG = encoded(Image.new("RGB", (80, 80), (200, 30, 30)))


@pytest.fixture
def train(desk, tiny_shards):
    """`train(shards)`: a tiny training on them."""
    options = [part for override in tiny_shards.overrides for part in ("-s", override)]
    return lambda shards: desk.run("train", "--preset", "demo", "--data", shards, "--out", desk.root / "run", *options)


# --- a source ---


def test_pipes_loops_and_folders_called_like_files_are_neither_waited_for_nor_followed(desk):
    os.mkfifo(desk.images / "pipe.png")
    (desk.images / "pipe.txt").write_text("a pipe")
    desk.put("mute.png", PNG, None)
    os.mkfifo(desk.images / "mute.txt")
    (desk.images / "one.png").symlink_to("other.png")
    (desk.images / "other.png").symlink_to("one.png")
    (desk.images / "one.txt").write_text("a loop")
    (desk.images / "around").symlink_to(".")
    (desk.images / "folder.png").mkdir()
    (desk.images / "folder.txt").write_text("a folder")
    done = desk.embed()
    assert done.reasons == {
        "pipe": "unreadable",
        "mute": "caption-unreadable",
        "one": "unreadable",
        "other": "no-caption",
        "folder.txt": "no-image",
    }
    done.lost_nothing(**done.reasons)
    assert "1 linked folders are not followed" in done.outcome.err


def test_what_a_name_can_hold_a_name_may_hold(desk, train):
    names = [
        "new\nline",
        "tab\tb",
        " lead",
        "trail ",
        "-dash",
        "quote'\"",
        "a" * 250,
        "dot.",
        "CON",
        "semi;rm -rf",
        "$(x)",
        "\u202eabc",
        "smile😀",
    ]
    for name in names:
        (desk.images / f"{name}.png").write_bytes(PNG)
        (desk.images / f"{name}.txt").write_text("a name")
    done = desk.embed().lost_nothing()
    assert set(names) <= done.used
    assert desk.run("shard", done.folder, "--out", desk.root / "shards", "--holdout", "0").code == 0
    assert desk.run("audit", desk.root / "shards").code in (0, 1) and train(desk.root / "shards").code == 0


@pytest.mark.parametrize(
    "image",
    [
        "/dev/zero",
        "../../../../../../etc/passwd",
        "images\0.png",
        "images/\ud800.png",
        "images",
        "pipe:touch x",
        "x/" * 5000,
    ],
)
def test_a_manifest_that_points_at_something_else_than_an_image_gets_a_refusal(desk, image):
    rows = [
        {"image_id": name, "image_path": f"images/{name}.png", "caption": "x"}
        for name in ("scene-0001", "scene-0002", "scene-0003")
    ]
    manifest = desk.root / "odd.jsonl"
    manifest.write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"image_id": "odd", "image_path": image, "caption": "x"}])
    )
    done = desk.embed(source=manifest)
    assert set(done.reasons) == {"odd"}
    done.lost_nothing(**done.reasons)


# --- an output folder ---


def test_files_of_other_programs_in_an_output_folder_stay(desk, train):
    for folder in ("derived", "shards", "run"):
        (desk.root / folder / "mine").mkdir(parents=True)
        for name in (".tmp-mine", "mine/.tmp-mine", "mine/photo.png"):
            (desk.root / folder / name).write_text("mine")
    done = desk.embed()
    assert (
        desk.run("shard", done.folder, "--out", desk.root / "shards", "--holdout", "0").code == 0
        and train(desk.root / "shards").code == 0
    )
    assert (
        len([path for path in desk.root.rglob("*mine*") if path.is_file()]) == 6
        and len(list(desk.root.rglob("mine/photo.png"))) == 3
    )


def test_shards_that_stand_there_without_an_index_of_ours_are_not_removed(desk, one_error):
    done = desk.embed().lost_nothing()
    path = desk.root / "shards/bucket_1x1/shard-000000.tar"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"somebody's only copy")
    one_error(desk.run("shard", done.folder, "--out", desk.root / "shards"), 2, "shard-000000.tar")
    assert path.read_bytes() == b"somebody's only copy"


@pytest.mark.parametrize(
    "name", ["records.jsonl", ".lock", "journal.rows", "journal.jsonl", "identity.json", "vae_latents/scene-0001.npy"]
)
def test_a_folder_where_a_file_should_be_is_named(desk, one_error, name):
    (desk.root / "derived" / name).mkdir(parents=True)
    one_error(desk.embed().outcome, 5, str(desk.root / "derived" / name))


def test_a_file_where_a_folder_should_be_is_named(desk, one_error):
    (desk.root / "derived").mkdir()
    (desk.root / "derived/vae_latents").write_text("x")
    one_error(desk.embed().outcome, 5, "derived/vae_latents")


def test_a_link_as_output_folder_is_followed_and_a_loop_is_reported(desk, one_error):
    (desk.root / "real").mkdir()
    (desk.root / "derived").symlink_to("real")
    desk.embed().lost_nothing()
    assert (desk.root / "real/records.jsonl").is_file()
    (desk.root / "loop").symlink_to("loop")
    one_error(desk.embed(out="loop").outcome, 5, "loop")


# --- what a derived folder says of itself ---


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../../../x"},
        {"bucket": "../../x"},
        {"caption": 5},
        {"width": -1},
        {"crop": [1]},
        {"image_sha256": "zz"},
        {"flags": [5]},
        {"status": "lost"},
    ],
)
def test_a_record_that_was_edited_stops_packing(desk, one_error, change):
    done = desk.embed().lost_nothing()
    path = done.folder / "records.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), **change}), *others]) + "\n")
    one_error(desk.run("shard", done.folder, "--out", desk.root / "shards"), 3, str(done.folder))
    assert not list(desk.root.rglob("x.npy"))


@pytest.mark.parametrize(
    "line",
    [b"\x00\xff garbage", b"5", b"[1]", b'{"id": 1}', b'{"id": ["a"], "stage": "vae", "source": "x"}', b"[" * 100_000],
)
def test_a_journal_of_garbage_is_named(desk, one_error, line):
    done = desk.embed().lost_nothing()
    path = done.folder / "journal.jsonl"
    path.write_bytes(line + b"\n")
    one_error(desk.embed().outcome, 3, "journal.jsonl")
    one_error(desk.run("shard", done.folder, "--out", desk.root / "shards"), 3, "journal.jsonl")


def test_rows_of_garbage_are_named(desk, one_error):
    done = desk.embed().lost_nothing()
    (done.folder / "journal.rows").write_bytes(b"garbage " * 100)
    one_error(desk.embed().outcome, 3, "journal.rows")
    one_error(desk.run("shard", done.folder, "--out", desk.root / "shards"), 3, "journal.rows")


@pytest.mark.parametrize("name", ["records.jsonl", "journal.rows"])
def test_a_last_line_torn_by_a_kill_is_passed_over(desk, name):
    done = desk.embed().lost_nothing()
    path = done.folder / name
    path.write_bytes(path.read_bytes() + b'{"id": "scene-00')
    desk.embed().lost_nothing()


# --- what shards say of themselves ---


def shards_of_images(desk):
    done = desk.embed().lost_nothing()
    assert desk.run("shard", done.folder, "--out", desk.root / "shards", "--holdout", "0").code == 0
    return desk.root / "shards"


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"version": 1}', '{"version": 99}', '{"version": 1, "shards": [5]}', "[" * 100_000],
)
def test_an_index_that_is_none_is_named(desk, train, one_error, text):
    shards = shards_of_images(desk)
    (shards / "index.json").write_text(text)
    for outcome in (desk.run("shard", "--verify", "--out", shards), train(shards)):
        one_error(outcome, 3, "index.json")
    assert desk.run("audit", shards).code == 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"path": "../../../etc/passwd"}, 4),
        ({"path": "/etc/passwd"}, 4),
        ({"path": 5}, 3),
        ({"path": ""}, 3),
        ({"path": "."}, 3),
        ({"path": "a\0b"}, 3),
        ({"count": -1}, 3),
        ({"count": True}, 3),
        ({"bytes": "x"}, 3),
        ({"sha256": None}, 3),
        ({"bucket": "../x"}, 3),
        ({"bucket": "0x0"}, 3),
        ({"split": []}, 3),
    ],
)
def test_a_row_of_the_index_that_cannot_be_is_refused(desk, train, one_error, change, code):
    shards = shards_of_images(desk)
    index = json.loads((shards / "index.json").read_text())
    index["shards"][0].update(change)
    (shards / "index.json").write_text(json.dumps(index))
    for outcome in (desk.run("shard", "--verify", "--out", shards), train(shards)):
        one_error(outcome, code, str(shards))


@pytest.mark.parametrize(
    "place",
    [[-512, 100], [10**30, 100], [0, 10**15], [0, 2**62], [0, -5], ["a", "b"], [0.5, 3], [True, 3], [5], 5, None],
)
def test_places_of_members_outside_the_tar_are_refused(desk, train, one_error, place):
    shards = shards_of_images(desk)
    path = min(shards.rglob("*.members.json"))
    members = json.loads(path.read_text())
    next(iter(members.values()))["vae.npy"] = place
    path.write_text(json.dumps(members))
    for outcome in (desk.run("shard", "--verify", "--out", shards), train(shards)):
        one_error(outcome, 3, path.name)


def test_a_feature_altered_after_it_was_made_is_not_packed(desk, one_error):
    done = desk.embed().lost_nothing()
    path = done.folder / "vae_latents/scene-0001.npy"
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)
    one_error(desk.run("shard", done.folder, "--out", desk.root / "shards"), 3, "scene-0001")


@pytest.mark.parametrize("text", ["[]", "5", "{}", "null"])
def test_an_identity_card_that_is_none_is_named(desk, one_error, text):
    done = desk.embed().lost_nothing()
    (done.folder / "identity.json").write_text(text)
    one_error(desk.embed().outcome, 3, "identity.json")
    one_error(desk.run("shard", done.folder, "--out", desk.root / "shards"), 3, "identity.json")


@pytest.mark.parametrize(
    "change",
    [{"identity": {}}, {"statistics": {}}, {"dims": {}}, {"dims": {"text": -1, "image": 64, "latent_channels": 16}}],
)
def test_a_part_of_the_index_that_cannot_be_is_refused(desk, train, one_error, change):
    shards = shards_of_images(desk)
    index = json.loads((shards / "index.json").read_text())
    (shards / "index.json").write_text(json.dumps({**index, **change}))
    one_error(train(shards), 3, "index.json")


def test_when_nothing_can_be_used_the_reasons_can_be_read_where_the_next_step_says(desk, one_error):
    for path in desk.images.glob("*.txt"):
        path.write_text("")
    done = desk.embed()
    one_error(done.outcome, 3, "3 empty-caption")
    assert "records.jsonl" in done.outcome.err and set(done.reasons.values()) == {"empty-caption"}


@pytest.mark.parametrize("text", ["[]", "5", "{}", "null", '{"folder": 5}', "{"])
def test_a_source_file_that_is_none_is_named_and_made_again_by_embed(desk, one_error, text):
    done = desk.embed().lost_nothing()
    (done.folder / "source.json").write_text(text)
    one_error(desk.run("shard", done.folder, "--out", desk.root / "shards"), 3, "source.json")
    desk.embed().lost_nothing()
    assert desk.run("shard", done.folder, "--out", desk.root / "shards", "--holdout", "0").code == 0


@pytest.mark.parametrize("text", ["5", "[]", "{}", "null", '"abc"'])
def test_a_list_of_members_that_is_none_is_named(desk, train, one_error, text):
    shards = shards_of_images(desk)
    path = min(shards.rglob("*.members.json"))
    path.write_text(text)
    for outcome in (desk.run("shard", "--verify", "--out", shards), train(shards)):
        one_error(outcome, 3, path.name)
