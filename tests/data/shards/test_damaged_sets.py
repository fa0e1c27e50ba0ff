"""Sets that are cut, garbled or edited: each damage is found by name, nothing is run or read outside of the set."""

from __future__ import annotations

import random
import shutil

import pytest

from dittool.data.provenance import Provenance
from dittool.data.shards.read import ShardSet
from dittool.data.shards.verify import verify
from dittool.data.shards.write import shard
from dittool.errors import BadDataError, DitError
from dittool.storage import read_json, write_json
from dittool.untrusted.tar import group_samples, tar_members
from tests.data.shards.test_shard_faults import arguments_for, digests


@pytest.fixture(scope="module")
def small_set(tiny_shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "shards"
    shard(tiny_shards.store.folder, out, limit=2, holdout=0)
    return out


@pytest.mark.row(49)
def test_a_cut_at_every_block_is_detected_by_the_tar_itself(small_set, tmp_path):
    whole_tar = min(small_set.rglob("*.tar")).read_bytes()
    cut = tmp_path / "cut.tar"
    for end in range(0, len(whole_tar), 512):
        cut.write_bytes(whole_tar[:end])
        with pytest.raises(BadDataError, match="damaged tar"):
            tar_members(cut)
    cut.write_bytes(whole_tar)
    assert tar_members(cut)


@pytest.mark.row(49)
def test_a_cut_at_every_block_is_detected_when_the_set_is_opened(small_set, tmp_path):
    folder = shutil.copytree(small_set, tmp_path / "shards")
    tar = min(folder.rglob("*.tar"))
    raw = tar.read_bytes()
    for end in range(0, len(raw), 512):
        tar.write_bytes(raw[:end])
        with pytest.raises(BadDataError, match="the index says"):
            ShardSet.open(folder)


@pytest.mark.row(50)
def test_garbage_and_bent_headers_never_raise_anything_but_our_errors(small_set, tmp_path):
    """A bent tar is refused with a reason, or, where the change says nothing, read."""
    tar, path, chance = min(small_set.rglob("*.tar")), tmp_path / "bent.tar", random.Random(0)
    raw, headers = tar.read_bytes(), [member.offset - 512 for member in tar_members(tar)]
    refused = 0
    for _ in range(300):
        bent, place = bytearray(raw), chance.choice(headers) + chance.randrange(512)
        bent[place] = (bent[place] + chance.randrange(1, 256)) % 256
        path.write_bytes(bent)
        try:
            group_samples(path, tar_members(path))
        except DitError as error:
            assert str(path) in error.message
            refused += 1
    assert refused > 290  # the checksum sees every byte but the blanks around its own digits
    for content in (b"", b"x" * 100, bytes(512), bytes(range(256)) * 8, chance.randbytes(5120)):
        path.write_bytes(content)
        with pytest.raises(BadDataError, match="damaged tar"):
            tar_members(path)


@pytest.mark.row(50)
@pytest.mark.parametrize("command", [["train", "--preset", "demo", "--data"], ["shard", "--verify", "--out"]])
def test_a_set_with_an_empty_tar_exits_3(tmp_path, dit, command):
    (tmp_path / "shards" / "bucket_128x128").mkdir(parents=True)
    (tmp_path / "shards" / "bucket_128x128" / "shard-000000.tar").write_bytes(bytes(1024))
    outcome = dit(*command, tmp_path / "shards")
    assert outcome.code == 3 and "without any sample" in outcome.err


@pytest.mark.row(54)
@pytest.mark.parametrize(
    "address", ["pipe:touch {}", "http://example.org/shards", "s3://bucket/shards", "file:///tmp/shards"]
)
def test_addresses_are_refused_and_pipes_not_run(tmp_path, small_set, dit, address):
    from dittool.storage import read_json, write_json

    flag = tmp_path / "flag"
    outcome = dit("shard", "--verify", "--out", address.format(flag))
    assert outcome.code == 4 and "not from an address" in outcome.err
    folder = shutil.copytree(small_set, tmp_path / "shards")
    index = read_json(folder / "index.json")
    index["shards"][0]["path"] = address.format(flag)
    write_json(folder / "index.json", index)
    assert dit("shard", "--verify", "--out", folder).code == 4
    assert not flag.exists()


@pytest.mark.row(52)
@pytest.mark.parametrize("path", ["../shards/bucket_128x128/shard-000000.tar", "/etc/passwd", "bucket\\..\\x.tar"])
def test_an_index_whose_paths_leave_the_folder_is_refused(tmp_path, small_set, dit, path):
    folder = shutil.copytree(small_set, tmp_path / "shards")
    index = read_json(folder / "index.json")
    index["shards"][0]["path"] = path
    write_json(folder / "index.json", index)
    outcome = dit("shard", "--verify", "--out", folder)
    assert outcome.code == 4 and "leaves the folder" in outcome.err


@pytest.mark.parametrize(
    "row",
    [
        {"count": -1},
        {"bytes": "1"},
        {"bytes": True},
        {"bucket": "wide"},
        {"bucket": None},
        {"split": "test"},
        {"sha256": None},
        {"path": ""},
    ],
)
def test_an_index_with_a_row_that_cannot_be_is_refused_by_name(tmp_path, small_set, dit, row):
    folder = shutil.copytree(small_set, tmp_path / "shards")
    index = read_json(folder / "index.json")
    index["shards"][0] |= row
    write_json(folder / "index.json", index)
    outcome = dit("shard", "--verify", "--out", folder)
    assert outcome.code == 3 and f"{next(iter(row))} = {next(iter(row.values()))!r}" in outcome.err


@pytest.mark.parametrize("places", [[0, 10**15], [-512, 10], ["0", 5], [0], None, [1.5, 2]])
def test_members_outside_their_tar_are_refused(tmp_path, small_set, dit, places):
    folder = shutil.copytree(small_set, tmp_path / "shards")
    path = min(folder.rglob("*.members.json"))
    members = read_json(path)
    next(iter(members.values()))["vae.npy"] = places
    write_json(path, members)
    outcome = dit("shard", "--verify", "--out", folder)
    assert outcome.code == 3 and "do not lie in" in outcome.err


def test_a_list_of_members_that_was_edited_is_found(tiny_shards, tmp_path):
    """Two samples that exchange their latents fit every shape and every size."""
    folder = shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    path = max(folder.rglob("*.members.json"), key=lambda one: len(read_json(one)))
    members = read_json(path)
    first, *_, last = members.values()
    first["vae.npy"], last["vae.npy"] = last["vae.npy"], first["vae.npy"]
    write_json(path, members)
    faults = verify(folder)
    assert [fault.where for fault in faults] == [path.relative_to(folder).as_posix()] and "sha256" in faults[0].what


@pytest.mark.row(51)
def test_a_sample_that_stands_in_two_shards_is_found(tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    index = read_json(folder / "index.json")
    row = index["shards"][0]
    twin = folder / row["path"].replace("000000", "000009")
    shutil.copy(folder / row["path"], twin)
    shutil.copy((folder / row["path"]).with_suffix(".members.json"), twin.with_suffix(".members.json"))
    index["shards"].append(row | {"path": twin.relative_to(folder).as_posix()})
    write_json(folder / "index.json", index)
    assert len(verify(folder)) == row["count"] and "2 times" in verify(folder)[0].what


def test_shards_that_dit_did_not_write_are_not_overwritten(tiny_shards, small_set, tmp_path, dit):
    """An older set would lose its tars to the new one."""
    folder = shutil.copytree(small_set, tmp_path / "shards")
    for path in [folder / "index.json", *folder.rglob("*.members.json")]:
        path.unlink()
    before = digests(folder)
    outcome = dit(*arguments_for(tiny_shards, folder))
    assert outcome.code == 2 and "did not write" in outcome.err
    assert digests(folder) == before
    assert dit("shard", "--index", folder, "--preset", "demo").code == 0
    assert dit(*arguments_for(tiny_shards, folder)).code == 2  # with its claimed index, too


def test_a_card_changed_after_the_set_was_made_is_noticed(tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    index = read_json(folder / "index.json")
    index["identity"]["encoders"]["vae"]["scale"] = 2.0
    write_json(folder / "index.json", index)
    assert [fault.where for fault in verify(folder)] == ["index.json"]
    shards = ShardSet.open(folder)
    with pytest.raises(BadDataError, match="hashes to"):
        Provenance.of(shards, shards.samples, tiny_shards.config)


def test_statistics_that_are_not_the_samples_are_noticed(tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards.folder, tmp_path / "shards")
    index = read_json(folder / "index.json")
    index["statistics"]["latent_mean"][3] += 1e-3
    write_json(folder / "index.json", index)
    assert [fault.what for fault in verify(folder)] == ["latent_mean of the statistics are not those of the samples"]
