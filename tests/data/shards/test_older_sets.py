"""Sets that an older program wrote with the webdataset library: no index, padded texts with a mask, fp32 patches."""

from __future__ import annotations

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch

from dittool.data.features.embed import embed
from dittool.data.provenance import Provenance
from dittool.data.shards.read import ShardSet
from dittool.data.shards.stream import BatchStream
from dittool.data.shards.verify import verify
from dittool.data.shards.write import shard
from dittool.errors import BadDataError, UnsafeFileError
from dittool.storage import read_json
from dittool.untrusted.tar import tar_members


@pytest.fixture
def older(written, tmp_path):
    return shutil.copytree(written, tmp_path / "older")


def index(dit, folder, *overrides):
    return dit(
        "shard", "--index", folder, "--preset", "demo", *(part for override in overrides for part in ("-s", override))
    )


def test_such_a_set_opens_without_an_index_and_gives_the_same_samples(tiny_shards, written):
    ours, theirs = ShardSet.open(tiny_shards.folder), ShardSet.open(written)
    ours_by_id = {ref.id: ref for ref in ours.samples}
    assert {ref.id for ref in theirs.samples} == ours_by_id.keys()
    for ref in theirs.samples:
        mine, their = ours.read(ours_by_id[ref.id]), theirs.read(ref)
        assert np.array_equal(mine.text, their.text)  # the padding is gone
        assert np.array_equal(mine.patches, their.patches) and their.patches.dtype == np.float32
        assert theirs.read_record(ref).caption == ours.read_record(ours_by_id[ref.id]).caption
    assert verify(written) == []


def test_opening_and_verifying_write_nothing(written, dit):
    before = sorted(written.rglob("*"))
    dit("shard", "--verify", "--out", written)
    assert sorted(written.rglob("*")) == before


def test_the_index_says_that_the_identity_is_claimed(older, dit):
    outcome = index(dit, older)
    assert outcome.code == 0 and "is a claim" in outcome.err
    card = ShardSet.open(older).card
    assert card.claimed and card.patch_storage == "fp32"
    assert {encoder.kind: encoder.id for encoder in card.encoders} == {
        "image": "builtin:dinov3",
        "text": "builtin:words",
        "vae": "builtin:dct",
    }
    assert verify(older) == []


def test_indexing_changes_no_tar_and_is_done_once(older, dit):
    before = {path: path.read_bytes() for path in older.rglob("*.tar")}
    index(dit, older)
    assert {path: path.read_bytes() for path in older.rglob("*.tar")} == before
    outcome = index(dit, older)
    assert outcome.code == 2 and "index.json already" in outcome.err


def lost(tiny_shards, folder, shard_size=3):
    """A set of ours without its index, and that index."""
    shard(tiny_shards.folder.parent / "derived", folder, shard_size)
    index = (folder / "index.json").read_bytes()
    (folder / "index.json").unlink()
    for members in folder.rglob("*.members.json"):
        members.unlink()
    return index


@pytest.mark.parametrize("storage", ["fp16", "int8", "pooled"])
def test_a_lost_index_is_made_again_equal_to_the_old_one(tiny_shards, tmp_path, dit, storage):
    derived = tiny_shards.folder.parent / "derived"
    if storage != "fp16":
        derived = tmp_path / "derived"
        embed(tiny_shards.images, derived, tiny_shards.config_with(f"data.patch_storage={storage}"))
    shard(derived, tmp_path / "set", 3, seed=5)
    before = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    for path in (tmp_path / "set").rglob("*.json"):
        path.unlink()
    ended = dit("shard", derived, "--index", tmp_path / "set", "--seed", 5)
    assert ended.code == 0, ended.err
    after = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    assert {path for path in after if path.name != ".lock"} == {path for path in before if path.name != ".lock"}
    assert all(after[path] == before[path] for path in before if path.name != ".lock")


@pytest.mark.parametrize("storage", ["int8", "pooled"])
def test_a_claim_says_how_patches_are_stored(tiny_shards, tmp_path, dit, storage):
    embed(tiny_shards.images, tmp_path / "derived", tiny_shards.config_with(f"data.patch_storage={storage}"))
    shard(tmp_path / "derived", tmp_path / "set")
    made = ShardSet.open(tmp_path / "set")
    for path in (tmp_path / "set").rglob("*.json"):
        path.unlink()
    assert index(dit, tmp_path / "set").code == 0
    claimed = ShardSet.open(tmp_path / "set")
    assert claimed.card.claimed and claimed.card.names_same_making(made.card) and claimed.statistics == made.statistics


def test_the_folder_of_other_images_makes_no_index(tiny_shards, class_shards, tmp_path, dit):
    lost(tiny_shards, tmp_path / "set")
    ended = dit("shard", class_shards.folder.parent / "derived", "--index", tmp_path / "set")
    assert ended.code == 3 and "was not made from an image of" in ended.err
    assert not (tmp_path / "set" / "index.json").exists()


def test_a_claimed_index_of_our_own_tars_keeps_their_hold_out(tiny_shards, tmp_path, dit):
    before = json.loads(lost(tiny_shards, tmp_path / "set"))
    assert index(dit, tmp_path / "set").code == 0
    after = read_json(tmp_path / "set" / "index.json")
    assert after["shards"] == before["shards"] and {row["split"] for row in after["shards"]} == {"train", "holdout"}
    shutil.copytree(tmp_path / "set", tmp_path / "again", ignore=shutil.ignore_patterns("*.json"))
    ended = dit("shard", "--index", tmp_path / "again", "--preset", "demo", "--holdout", 0.1)
    assert ended.code == 2 and "has its hold-out already" in ended.err


def test_a_hold_out_of_a_foreign_set_takes_entire_shards(older, tmp_path, dit):
    shards = [path for path in older.rglob("*.tar")]
    assert len(shards) > 2
    ended = dit("shard", "--index", older, "--preset", "demo", "--holdout", 0.2, "--json")
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)["rows"]
    held = sum(row["count"] for row in rows if row["split"] == "holdout")
    assert 0.2 * sum(row["count"] for row in rows) <= held < sum(row["count"] for row in rows)
    assert ShardSet.open(older).index.holdout == pytest.approx(held / sum(row["count"] for row in rows))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--index", "SET", "--preset", "demo", "--limit", 3, "--seed", 1], "--limit, --seed"),
        (["DERIVED", "--index", "SET", "--preset", "demo"], "DERIVED"),
        (["--index", "SET", "--verify", "--out", "elsewhere"], "--out, --verify"),
        (["--verify", "--holdout", 0.1], "--holdout"),
        (["DERIVED", "--verify"], "DERIVED"),
    ],
)
def test_an_option_that_does_nothing_in_a_mode_is_refused(older, dit, options, named):
    ended = dit("shard", *(older if option == "SET" else option for option in options))
    assert ended.code == 2 and f"{named}: no effect with --" in ended.err
    assert not (older / "index.json").exists()


def test_its_batches_are_those_of_the_set_it_was_copied_from(tiny_shards, older, dit):
    index(dit, older)
    theirs, ours = ShardSet.open(older), ShardSet.open(tiny_shards.folder)
    by_id = {ref.id: ref for ref in ours.samples}
    norm = Provenance.of(theirs, theirs.samples, tiny_shards.config).norm
    refs = theirs.split("train")
    first = BatchStream(theirs, refs, norm, 4, seed=0)[0]
    second = BatchStream(ours, [by_id[ref.id] for ref in refs], norm, 4, seed=0)[0]
    assert first.ids == second.ids and torch.equal(first.latents, second.latents)
    assert torch.equal(first.conditions.text, second.conditions.text) and torch.equal(
        first.conditions.patches, second.conditions.patches
    )


def test_a_model_can_be_trained_on_it(older, dit, tmp_path, tiny_shards):
    index(dit, older)
    settings = [part for override in tiny_shards.overrides for part in ("-s", override)]
    outcome = dit(
        "train",
        "--preset",
        "demo",
        *settings,
        "-s",
        "train.steps=3",
        "--no-audit",
        "--data",
        older,
        "--out",
        tmp_path / "run",
    )
    assert outcome.code == 0, outcome.err


def test_training_without_the_index_names_the_command_that_makes_it(older, dit, tmp_path):
    outcome = dit("train", "--preset", "demo", "--data", older, "--out", tmp_path / "run")
    assert outcome.code == 3 and f"dit shard DERIVED --index {older}" in outcome.err and "--preset P" in outcome.err


@pytest.mark.parametrize(
    ("member", "shape", "message"),
    [
        ("dinov3.npy", (63,), "width of CLS is 63, theirs would be 64"),
        ("dinov3_patches.npy", (60, 64), "shape of the patches is (60, 64)"),
        ("vae.npy", (4, 16, 16), "shape of the latent is (4, 16, 16)"),
        ("t5h.npy", (5, 32), "width of the text is 32"),
    ],
)
def test_a_claim_that_the_data_contradict_is_refused(tmp_path, dit, member, shape, message):
    shapes = {"dinov3.npy": (64,), "dinov3_patches.npy": (64, 64), "vae.npy": (16, 16, 16), "t5h.npy": (5, 64)} | {
        member: shape
    }
    write_one(tmp_path / "bucket_128x128", {name: np.ones(one, np.float32) for name, one in shapes.items()})
    outcome = index(dit, tmp_path)
    assert outcome.code == 3 and message in outcome.err
    assert not (tmp_path / "index.json").exists()


@pytest.mark.parametrize("mask", [np.zeros(5, bool), np.array([1, 0, 1, 0, 0], bool), np.ones(4, bool)])
def test_a_mask_that_is_not_a_run_of_ones_is_refused(tmp_path, mask):
    shapes = {"dinov3.npy": (64,), "dinov3_patches.npy": (64, 64), "vae.npy": (16, 16, 16), "t5h.npy": (5, 64)}
    write_one(
        tmp_path / "bucket_128x128",
        {name: np.ones(one, np.float32) for name, one in shapes.items()} | {"t5m.npy": mask},
    )
    shards = ShardSet.open(tmp_path)
    with pytest.raises(BadDataError, match=r"t5m\.npy: a mask of"):
        shards.read(shards.samples[0])


def write_one(folder, arrays):
    folder.mkdir()
    with tarfile.open(folder / "shard-000000.tar", "w") as tar:
        for name, data in [("one.json", b"{}")] + [(f"one.{name}", npy(array)) for name, array in arrays.items()]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# Extended headers, which that library's writer puts before every member


def extended_tar(path, headers: dict[str, str], name: str = "a.npy"):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.size, info.pax_headers = 3, headers
        tar.addfile(info, io.BytesIO(b"abc"))
    return path


def test_times_in_extended_headers_are_passed_over(tmp_path):
    assert [(m.key, m.suffix, m.size) for m in tar_members(extended_tar(tmp_path / "x.tar", {"mtime": "1.25"}))] == [
        ("a", "npy", 3)
    ]


def test_a_long_name_comes_from_the_extended_header(tmp_path):
    name = "k" * 150 + ".npy"
    assert [member.key for member in tar_members(extended_tar(tmp_path / "x.tar", {}, name))] == ["k" * 150]


@pytest.mark.row(52)
@pytest.mark.parametrize(
    "headers",
    [{"path": "../../etc/x.npy"}, {"path": "/etc/x.npy"}, {"linkpath": "/etc/passwd"}, {"GNU.sparse.major": "1"}],
)
def test_extended_headers_cannot_lead_out_of_the_tar(tmp_path, headers):
    with pytest.raises(UnsafeFileError):
        tar_members(extended_tar(tmp_path / "x.tar", headers))


@pytest.mark.row(50)
@pytest.mark.parametrize("size", ["-1", "9" * 30, "1e3", "999999"])
def test_a_size_in_an_extended_header_must_fit_the_file(tmp_path, size):
    with pytest.raises(BadDataError, match="damaged tar"):
        tar_members(extended_tar(tmp_path / "x.tar", {"size": size}))


@pytest.mark.row(53)
@pytest.mark.parametrize(
    "record", [b"0 a=b\n", b"99 a=b\n", b"-6 a=b\n", b"a=b\n", b"6 a=b", b"7 a=bc\n6 ab\n\n", bytes(512)]
)
def test_extended_headers_that_would_loop_or_overrun_are_refused(tmp_path, record):
    path = extended_tar(tmp_path / "x.tar", {"comment": "0123456789"})
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + path.read_bytes()[1024:])
    with pytest.raises(BadDataError, match="extended header"):
        tar_members(path)


def test_the_claimed_index_is_read_back_as_it_was_written(older, dit):
    index(dit, older)
    rows = read_json(older / "index.json")["shards"]
    assert all(row["split"] == "train" for row in rows) and sum(row["count"] for row in rows) == len(
        ShardSet.open(older).samples
    )
