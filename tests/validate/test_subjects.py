"""Which samples are judged, whose conditions they are exchanged with, and what they are called."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dittool.data.shards.read import ShardSet
from dittool.errors import BadDataError, UsageError
from dittool.validate.run import ValidateOptions
from dittool.validate.samples import choose
from tests.validate.oracle import judge


def test_subjects_are_held_out_and_each_partner_is_another_image_of_the_bucket(drawn):
    split, subjects = choose(drawn[0], 100)
    assert split == "holdout" and len(subjects) == len(drawn[0].split("holdout"))
    for subject in subjects:
        assert subject.ref.split == "holdout"
        assert subject.partner.id != subject.ref.id and subject.partner.bucket == subject.ref.bucket
    assert choose(drawn[0], 3)[1][0].ref == subjects[0].ref


def test_each_partner_is_used_once_where_a_bucket_has_several(drawn):
    by_bucket = {}
    for subject in choose(drawn[0], 100)[1]:
        by_bucket.setdefault(subject.ref.bucket, []).append(subject)
    several = [group for group in by_bucket.values() if len(group) > 1]
    assert several
    for group in several:
        assert {subject.partner.id for subject in group} == {subject.ref.id for subject in group}


def test_an_image_alone_in_its_bucket_has_no_ceiling_and_no_pair(drawn, oracle, tmp_path):
    shards, _ = drawn
    lonely = shards.split("holdout")[0]
    alone = ShardSet(
        shards.folder, [ref for ref in shards.samples if ref.bucket != lonely.bucket or ref == lonely], shards.index
    )
    done = judge(oracle(), alone, tmp_path)
    row = next(row for row in done.results["reconstruction"]["per_image"] if row["id"] == lonely.id)
    assert row["ssim"]["ceiling"] is None and row["ssim"]["gap_closed"] is None
    assert lonely.id not in {pair["noise_of"] for pair in done.results["dino_swap"]["per_pair"]}


def test_a_set_without_hold_out_is_judged_on_training_images_and_says_so(drawn, oracle, tmp_path):
    shards, _ = drawn
    trained_on_all = ShardSet(shards.folder, [replace(ref, split="train") for ref in shards.samples], shards.index)
    done = judge(oracle(), trained_on_all, tmp_path, tests=["dino_swap"], limit=4)
    assert done.results["data"]["split"] == "train" and done.results["data"]["unseen"] is False
    assert "trained on" in done.results["data"]["described"] or "training images" in done.results["data"]["described"]


def test_a_hold_out_of_another_sharding_is_not_called_unseen(drawn, oracle, perfect, tmp_path):
    shards, _ = drawn
    first, *others = shards.split("train")
    resharded = ShardSet(
        shards.folder, [replace(first, split="holdout"), *others, *shards.split("holdout")], shards.index
    )
    done = judge(oracle(), resharded, tmp_path, tests=["dino_swap"], limit=4)
    assert done.results["data"]["unseen"] is False
    assert perfect.results["data"]["unseen"] is True


def test_prepared_mirror_images_are_not_judged(tiny_shards, tmp_path):
    from dittool.data.features.embed import embed
    from dittool.data.shards.write import shard

    embed(tiny_shards.images, tmp_path / "derived", tiny_shards.config_with('data.flip="prepared"'))
    shard(tmp_path / "derived", tmp_path / "shards")
    shards = ShardSet.open(tmp_path / "shards")
    assert any(shards.read_record(ref).flipped for ref in shards.samples)
    _, subjects = choose(shards, 100)
    involved = [ref for subject in subjects for ref in (subject.ref, subject.partner) if ref is not None]
    assert involved and not any(shards.read_record(ref).flipped for ref in involved)


def test_held_out_and_training_images_are_never_called_the_same(drawn, oracle, perfect, tmp_path):
    shards = drawn[0]
    done = judge(oracle(), shards, tmp_path, tests=["reconstruction"], limit=4, split="train")
    on_training, on_holdout = done.results["reconstruction"], perfect.results["reconstruction"]
    assert (on_training["split"], on_holdout["split"]) == ("train", "holdout")
    assert (
        done.results["data"]["described"] == "training images, as asked for" and done.results["data"]["unseen"] is False
    )
    for part, split in ((on_training, "train"), (on_holdout, "holdout")):
        members = {ref.id for ref in shards.split(split)}
        assert all(row["id"] in members and row["file"] == f"{split}_{row['id']}.png" for row in part["per_image"])
    assert any("training images" in one.title for one in done.criteria)
    assert not any("training images" in one.title for one in perfect.criteria)


def test_limit_0_judges_every_image_of_the_split(drawn):
    for split in ("holdout", "train"):
        assert len(choose(drawn[0], 0, split)[1]) == len(drawn[0].split(split))


def test_a_split_without_samples_is_bad_data_that_says_which(drawn):
    shards = drawn[0]
    nothing_held_out = ShardSet(shards.folder, shards.split("train"), shards.index)
    with pytest.raises(BadDataError, match="'holdout'"):
        choose(nothing_held_out, 4, "holdout")
    with pytest.raises(UsageError, match="'test'"):
        ValidateOptions(split="test")
