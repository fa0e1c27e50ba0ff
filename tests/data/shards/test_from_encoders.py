"""`dit embed --into-shards`: the set of `dit embed` and `dit shard`, written once; killed, on a full disk, in parts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest

from dittool.data.features import passes
from dittool.data.features.embed import embed
from dittool.data.features.parts import Part
from dittool.data.features.store import FeatureStore
from dittool.data.shards import from_encoders
from dittool.data.shards.from_encoders import embed_into_shards
from dittool.data.shards.index import members_path
from dittool.data.shards.read import ShardSet
from dittool.data.shards.verify import verify
from dittool.data.shards.write import shard
from dittool.errors import BadDataError, StorageError, UsageError
from tests.data.features.derived_folder import held
from tests.data.shards.test_shard_faults import FailingFile
from tests.killed import killed_at

OVERRIDES = ("data.area=None", 'data.buckets=["64x64"]', "data.holdout=0.3")
OPTIONS = ("--preset", "demo", "--quiet", "--shard-size", 4, *(word for key in OVERRIDES for word in ("-s", key)))
SIZE = 4


@pytest.fixture(scope="module")
def images(tiny_shards, tmp_path_factory):
    """Ten drawn images, one of them twice in another size: a near copy."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("sources") / "images"
    folder.mkdir()
    for path in sorted(tiny_shards.images.iterdir())[:20]:
        shutil.copy(path, folder)
    first = min(folder.glob("*.png"))
    with Image.open(first) as image:
        image.resize((image.width * 3 // 2, image.height * 3 // 2)).save(folder / "zz-again.png")
    shutil.copy(first.with_suffix(".txt"), folder / "zz-again.txt")
    return folder


@pytest.fixture(scope="module")
def config(tiny_shards):
    return tiny_shards.config_with(*OVERRIDES)


@pytest.fixture(scope="module")
def whole(images, config, tmp_path_factory):
    """What an undisturbed call leaves. Read only."""
    out = tmp_path_factory.mktemp("whole") / "shards"
    embed_into_shards(images, out, config, shard_size=SIZE)
    return out


def digests(out) -> dict[str, str]:
    """Every file of a set but what the scan left."""
    paths = (path for path in sorted(out.rglob("*")) if path.is_file() and not path.name.startswith(".lock"))
    names = {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return {name: digest for name, digest in names.items() if not name.startswith("scan/")}


def test_it_is_the_set_that_embed_and_shard_make(images, config, whole, tmp_path):
    embed(images, tmp_path / "derived", config)
    shard(tmp_path / "derived", tmp_path / "shards", shard_size=SIZE)
    assert digests(whole) == digests(tmp_path / "shards") and verify(whole) == []
    assert not list(whole.rglob("*.npy"))
    assert FeatureStore(whole / "scan").read_records() == FeatureStore(tmp_path / "derived").read_records()


def test_near_copies_stand_on_one_side(whole):
    shards = ShardSet.open(whole)
    sides = {}
    for ref in shards.samples:
        record = shards.read_record(ref)
        sides.setdefault((*record.sides_with, record.image_sha256)[0], []).append(ref.split)
    assert max(map(len, sides.values())) == 2 and all(len(set(some)) == 1 for some in sides.values())


def test_audit_and_train_take_it_as_any_other(images, dit, tmp_path, tiny_shards):
    out, words = tmp_path / "shards", [word for key in tiny_shards.overrides for word in ("-s", key)]
    assert dit("embed", images, "--into-shards", "--out", out, "--preset", "demo", *words).code == 0
    assert dit("audit", out, "--preset", "demo", "--select", "D1,D2,D3,D4,D5,D6,D7").code == 0
    assert dit("train", "--preset", "demo", "--data", out, "--out", tmp_path / "run", *words, "--no-audit").code == 0


def test_a_second_call_makes_nothing_and_touches_nothing(images, config, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "shards")
    before = {path: path.stat().st_ino for path in out.rglob("*.tar")} | {"": (out / "index.json").stat().st_ino}
    done = embed_into_shards(images, out, config, shard_size=SIZE)
    after = {path: path.stat().st_ino for path in out.rglob("*.tar")} | {"": (out / "index.json").stat().st_ino}
    assert (done.made, done.kept, done.complete) == (0, len(before) - 1, True) and before == after


def test_only_the_shard_that_was_damaged_is_encoded_again(images, config, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "shards")
    path = min(out.rglob("*.tar"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    done = embed_into_shards(images, out, config, shard_size=SIZE)
    assert done.kept == len(done.shards) - 1 and digests(out) == digests(whole)


def test_parts_in_any_order_give_the_bytes_of_one_run(images, config, whole, tmp_path):
    out = tmp_path / "shards"
    for index in (2, 0, 1, 2, 0):
        done = embed_into_shards(images, out, config, part=Part(index, 3), shard_size=SIZE)
    assert done.complete and digests(out) == digests(whole)
    again = embed_into_shards(images, out, config, shard_size=SIZE)  # a plain run takes over what parts wrote
    assert (again.made, again.complete) == (0, True) and digests(out) == digests(whole)


def test_a_set_of_another_identity_or_of_other_images_is_not_replaced(images, config, whole, tmp_path, tiny_shards):
    out = shutil.copytree(whole, tmp_path / "shards")
    other = tiny_shards.config_with(*OVERRIDES, "data.patch_storage=int8")
    with pytest.raises(BadDataError, match=r"another identity: patch_storage.*'int8' here, 'fp16' there") as refused:
        embed_into_shards(images, out, other, shard_size=SIZE)
    assert "move this set away: mv" in refused.value.hint
    elsewhere = shutil.copytree(tiny_shards.images, tmp_path / "elsewhere")
    for path in sorted(elsewhere.iterdir())[:20]:
        path.unlink()
    with pytest.raises(UsageError, match="shards of other images"):
        embed_into_shards(elsewhere, out, config, shard_size=SIZE)
    assert digests(out) == digests(whole)


def test_a_part_keeps_its_twin_out(images, config, tmp_path):
    out = tmp_path / "shards"
    out.mkdir()
    with (
        held(f"writer_lock(Path({str(out)!r}), Part(0, 2))") as holder,
        pytest.raises(StorageError, match=f"process {holder.pid}"),
    ):
        embed_into_shards(images, out, config, part=Part(0, 2))


@pytest.mark.parametrize("refuses", ["one", "all of a shard"])
def test_what_an_encoder_refuses_leaves_its_place_empty_and_a_second_call_changes_nothing(
    images, config, whole, tmp_path, monkeypatch, refuses
):
    samples = ShardSet.open(whole).samples
    shard_path = samples[0].shard
    ids = {ref.id for ref in samples if ref.shard == shard_path}
    refused = {samples[0].id} if refuses == "one" else ids

    def encode_batch(ready, loaded, anything_made):
        good, bad = passes_encode(ready, loaded, anything_made)
        wrong = [record for record, _ in good if record.id in refused and ready.stage == "vae"]
        marked = [passes.refused_while_encoding(record, "vae", "constant", "all values are 0") for record in wrong]
        return [(record, encoded) for record, encoded in good if record not in wrong], bad + marked

    passes_encode = from_encoders.encode_batch
    monkeypatch.setattr(from_encoders, "encode_batch", encode_batch)
    out = tmp_path / "shards"
    done = embed_into_shards(images, out, config, shard_size=SIZE)
    assert verify(out) == []
    found = {record.id: record.reason for record in FeatureStore(out / "scan").read_records() if not record.used}
    assert found == dict.fromkeys(refused, "encode:vae:constant")
    kept = [ref.id for ref in ShardSet.open(out).samples]
    assert kept == [ref.id for ref in samples if ref.id not in refused]
    assert shard_path in digests(out) or refuses != "one"
    before = digests(out)
    again = embed_into_shards(images, out, config, shard_size=SIZE)
    assert again.made == 0 and again.kept >= len(done.shards) and digests(out) == before


# Rows 3 and 4: killed


@pytest.mark.slow
@pytest.mark.row(3, 4)
def test_killed_at_a_file_event_the_next_call_gives_the_same_bytes(images, config, whole, tmp_path):
    events = (25, 45, 70)
    assert killed_at(events, tmp_path, "embed", images, "--into-shards", "--out", "OUT", *OPTIONS) == {}
    for event in events:
        finish(images, config, whole, tmp_path / f"killed{event}")


@pytest.mark.row(3, 4)
@pytest.mark.slow
def test_killed_at_every_file_event_the_next_call_gives_the_same_bytes(images, config, whole, tmp_path):
    command = ("embed", images, "--into-shards", "--out", "OUT", *OPTIONS)
    last, code = killed_at([0], tmp_path, *command)[0]
    assert last > 60 and code == 0
    killed_at(range(1, last + 1), tmp_path, *command)
    for event in range(1, last + 1):
        finish(images, config, whole, tmp_path / f"killed{event}")
        shutil.rmtree(tmp_path / f"killed{event}")


def finish(images, config, whole, out) -> None:
    """A set says what it is, and the next call makes it whole."""
    if (out / "index.json").exists():
        try:
            ShardSet.open(out)
        except BadDataError as error:
            assert "unfinished" in error.message
        else:
            assert verify(out) == []
    lines = (out / "scan" / "shards.jsonl").read_text().splitlines() if (out / "scan" / "shards.jsonl").exists() else []
    done = embed_into_shards(images, out, config, shard_size=SIZE)
    assert done.kept == len(lines)
    assert digests(out) == digests(whole) and not list(out.rglob(".tmp-*"))


# Row 9: the disk is full


@pytest.mark.row(9)
@pytest.mark.parametrize("nth", [1, 2, 5, 9, 20, 60, 130])
def test_disk_full_at_the_nth_write(images, config, whole, tmp_path, dit, monkeypatch, nth):
    out, real = tmp_path / "shards", os.fdopen
    FailingFile.left = nth
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", lambda *arguments, **options: FailingFile(real(*arguments, **options)))
        outcome = dit("embed", images, "--into-shards", "--out", out, *OPTIONS)
    assert outcome.code == 5 and "No space left" in outcome.err and "Traceback" not in outcome.err
    finish(images, config, whole, out)


@pytest.mark.row(9)
@pytest.mark.parametrize("nth", [1, 4, 8, 16, 24])
def test_disk_full_at_the_nth_sync(images, config, whole, tmp_path, dit, full_at_sync, nth):
    out = tmp_path / "shards"
    with full_at_sync(nth):
        assert dit("embed", images, "--into-shards", "--out", out, *OPTIONS).code == 5
    finish(images, config, whole, out)


def test_options_that_contradict_each_other_are_refused(images, dit, tmp_path):
    for words in (("--rebuild",), ("--verify",), ("--estimate",), ("--pass", "vae")):
        outcome = dit("embed", images, "--into-shards", "--out", tmp_path / "shards", *words)
        assert outcome.code == 2, words
    assert dit("embed", images, "--shard-size", 4, "--out", tmp_path / "derived").code == 2


# dit shard --part


def test_shards_of_a_derived_folder_in_parts_are_those_of_one_call(tiny_shards, tmp_path):
    derived, one, parts = tiny_shards.store.folder, tmp_path / "one", tmp_path / "parts"
    shard(derived, one, shard_size=SIZE)
    done = [shard(derived, parts, shard_size=SIZE, part=Part(index, 3)) for index in (1, 2, 0)]
    assert [summary.complete for summary in done] == [False, False, True]
    journals = {name for name in digests(parts) if name.startswith("shards-")}
    assert {name: one for name, one in digests(parts).items() if name not in journals} == digests(one)
    assert shard(derived, parts, shard_size=SIZE, part=Part(1, 3)).kept == len(done[0].shards)
    shard(derived, parts, shard_size=SIZE)
    assert digests(parts) == digests(one)


def test_a_part_of_another_identity_and_a_sample_in_two_shards_are_not_merged(tiny_shards, tmp_path):
    derived, out = tiny_shards.store.folder, tmp_path / "shards"
    shard(derived, out, shard_size=SIZE, part=Part(0, 2))
    journal = out / "shards-0of2.jsonl"
    written = journal.read_text()
    lines = [json.loads(line) | {"identity": "0" * 64} for line in written.splitlines()]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BadDataError, match="another part made it with identity 000000000000"):
        shard(derived, out, shard_size=SIZE, part=Part(1, 2))
    journal.write_text(written)
    lines = [json.loads(line) for line in written.splitlines()]
    first, last = (out / lines[place]["path"] for place in (0, -1))
    places = json.loads(members_path(first).read_text())
    stolen = next(iter(json.loads(members_path(last).read_text())))
    places[stolen] = places.pop(next(iter(places)))
    members_path(first).write_text(json.dumps(places))
    lines[0]["row"]["members_sha256"] = hashlib.sha256(members_path(first).read_bytes()).hexdigest()
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(BadDataError, match=f"sample '{stolen}' stands in .* and in "):
        shard(derived, out, shard_size=SIZE, part=Part(1, 2))
    assert "unfinished" in (out / "index.json").read_text()
