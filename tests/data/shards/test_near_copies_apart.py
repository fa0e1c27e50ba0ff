"""Near copies through embed, shard and audit: one side of the hold-out, also when they arrive later."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from dittool.config.load import load_config
from dittool.data.features.embed import embed
from dittool.data.features.sides import NEAR_COPY
from dittool.data.features.store import FeatureStore
from dittool.data.shards.read import ShardSet
from dittool.data.shards.write import shard
from dittool.seeding import unit_interval
from tests.conftest import TINY
from tests.data.features.test_near_copies import textured

SHARE = 0.3
CONFIG = load_config("demo", TINY)


def save(picture: Image.Image, path, **options: int) -> None:
    picture.save(path, **options)
    path.with_suffix(".txt").write_text(f"texture {path.stem[:2]}")


def copies(images, numbers) -> None:
    for number in numbers:
        save(textured(number), images / f"{number:02d}-copy.jpg", quality=90)


def sides(shards) -> dict[str, str]:
    return {ref.id: ref.split for ref in ShardSet.open(shards).samples}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        save(textured(number), folder / f"{number:02d}.png")
    return folder


def test_copies_stand_on_one_side_and_singles_where_they_stood(images, tmp_path):
    embed(images, tmp_path / "derived", CONFIG)
    before = sides(shard(tmp_path / "derived", tmp_path / "before", holdout=SHARE).folder)
    assert set(before.values()) == {"train", "holdout"}
    copies(images, range(12))
    embed(images, tmp_path / "derived", CONFIG)
    after = sides(shard(tmp_path / "derived", tmp_path / "after", holdout=SHARE).folder)
    assert {sample: after[sample] for sample in before} == before
    assert {sample: after[f"{sample}-copy"] for sample in before} == before
    alone = {record.id: record for record in FeatureStore(tmp_path / "derived").read_records()}
    own = [unit_interval("holdout", alone[f"{sample}-copy"].image_sha256) < SHARE for sample in before]
    assert own != [side == "holdout" for side in before.values()]  # left to themselves, some would stand elsewhere


def test_copies_that_come_together_are_told_and_stand_together(images, tmp_path, dit):
    copies(images, range(6))
    done = embed(images, tmp_path / "derived", CONFIG)
    flags = [flag for record in done.records for flag in record.flags if flag.startswith(NEAR_COPY)]
    assert len(flags) == 6
    where = sides(shard(tmp_path / "derived", tmp_path / "shards", holdout=SHARE).folder)
    assert all(where[f"{number:02d}"] == where[f"{number:02d}-copy"] for number in range(6))
    audited = dit("audit", tmp_path / "shards", "--select", "D5,D9", "--json")
    assert [finding["status"] for finding in json.loads(audited.out)["findings"]] == ["pass", "warn"]


def test_the_audit_finds_copies_that_were_not_looked_for(images, tmp_path, dit):
    copies(images, range(12))
    embed(images, tmp_path / "derived", load_config("demo", [*TINY, "data.near_copies=ignored"]))
    shard(tmp_path / "derived", tmp_path / "shards", holdout=SHARE)
    findings = json.loads(dit("audit", tmp_path / "shards", "--select", "D5", "--json").out)["findings"]
    assert findings[0]["status"] == "fail"
    assert "near copies of ones in training" in findings[0]["evidence"]
    embed(images, tmp_path / "derived", CONFIG)  # what the advice says: features stay, copies are looked for
    shard(tmp_path / "derived", tmp_path / "shards", holdout=SHARE)
    assert dit("audit", tmp_path / "shards", "--select", "D5").code == 0


def test_an_older_folder_shards_as_it_did_and_says_what_was_not_looked_for(images, tmp_path, listener):
    embed(images, tmp_path / "derived", CONFIG)
    shard(tmp_path / "derived", tmp_path / "now", holdout=SHARE)
    older = shutil.copytree(tmp_path / "derived", tmp_path / "older")
    (older / "thumbnails.rows").unlink()
    (older / "near_copies.jsonl").unlink()
    shard(older, tmp_path / "then", holdout=SHARE, talk=listener)
    assert any("near copies were not looked for" in text for text in listener.warnings)
    for path in (tmp_path / "now").rglob("*.tar"):
        assert (tmp_path / "then" / path.relative_to(tmp_path / "now")).read_bytes() == path.read_bytes()
    made = embed(images, older, CONFIG).made
    assert set(made.values()) == {0}
    assert (older / "near_copies.jsonl").exists()


def test_parts_are_compared_when_the_last_one_is_done(images, tmp_path):
    from dittool.data.features.parts import Part

    copies(images, range(12))
    for index in (1, 0):
        assert not (tmp_path / "derived" / "near_copies.jsonl").exists()
        embed(images, tmp_path / "derived", CONFIG, part=Part(index, 2))
    where = sides(shard(tmp_path / "derived", tmp_path / "shards", holdout=SHARE).folder)
    assert all(where[f"{number:02d}"] == where[f"{number:02d}-copy"] for number in range(12))


def test_one_that_joins_both_sides_is_left_out_with_the_reason(images, tmp_path, dit):
    embed(images, tmp_path / "derived", CONFIG)
    store = FeatureStore(tmp_path / "derived")
    records = {record.id: record for record in store.read_records()}
    where = sides(shard(store.folder, tmp_path / "before", holdout=SHARE).folder)
    trained = next(records[sample] for sample, side in where.items() if side == "train")
    held = next(records[sample] for sample, side in where.items() if side == "holdout")
    joins = next(record for record in records.values() if record.id not in (trained.id, held.id))
    decided = {joins.image_sha256: [trained.image_sha256, held.image_sha256]}
    with store.near_copies_path.open("a") as file:
        file.write(json.dumps({"compared": 12, "sides": decided}) + "\n")
    store.merge_records(list(records.values()))
    done = dit("shard", store.folder, "--out", tmp_path / "shards", "--holdout", SHARE, "--json")
    assert [row["id"] for row in json.loads(done.out)["joining"]] == [joins.id]
    assert "1 images are left out" in done.err
    assert joins.id not in sides(tmp_path / "shards")
    assert "joins-both-sides" in (tmp_path / "shards" / "left_out.jsonl").read_text()
