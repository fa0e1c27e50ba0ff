"""Embedding: everything is made once, edits are noticed, nothing is mixed, nothing is half-written."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dittool.config.load import load_config
from dittool.data.features import journal
from dittool.data.features.embed import embed
from dittool.data.features.estimate import estimate
from dittool.data.features.journal import ROW
from dittool.data.features.parts import Part
from dittool.data.features.store import FeatureStore
from dittool.data.features.verify import verify
from dittool.data.records import (
    FEATURES,
    IMAGE_CLS,
    IMAGE_PATCHES,
    LATENT,
    STAGES,
    TEXT,
    Record,
    safe_key,
)
from dittool.data.source.scan import load_pixels, scan
from dittool.encoders.image import load_image_encoder
from dittool.encoders.vae import load_codec
from dittool.errors import BadDataError, StorageError, UsageError, WeightsMissingError
from dittool.geometry import Bucket
from tests.data.features.derived_folder import digests, held


def test_features_have_the_documented_shapes(tiny_shards):
    store = tiny_shards.store
    for record in store.read_records():
        bucket = Bucket(*map(int, record.bucket.split("x")))
        assert store.read(IMAGE_CLS, record.id).shape == (64,)
        assert store.read(IMAGE_PATCHES, record.id).shape == (bucket.width // 16 * (bucket.height // 16), 64)
        assert store.read(LATENT, record.id).shape == (16, bucket.height // 8, bucket.width // 8)
        assert store.read(TEXT, record.id).shape == (len(record.caption.replace(",", "").split()), 64)


def test_stored_features_are_those_of_the_bucketed_image(tiny_shards):
    record = tiny_shards.store.read_records()[0]
    pixels = load_pixels(record, tiny_shards.images)
    expected = load_codec("builtin:dct").encode(pixels[None])[0].numpy().astype(np.float16)
    assert np.array_equal(tiny_shards.store.read(LATENT, record.id), expected)


def test_patch_k_is_the_patch_at_row_k_div_w_column_k_mod_w():
    """Changing one block of pixels moves its own token most: registers are not taken for patches, rows not for
    columns.
    """
    encoder = load_image_encoder("builtin:dinov3", "fp32")
    assert encoder.registers == 4
    image = np.full((1, 80, 112, 3), 128, np.uint8)
    plain = encoder.encode(image).patches[0]
    for row, column in ((0, 0), (0, 6), (2, 3), (4, 0), (4, 6)):
        changed = image.copy()
        changed[:, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = (250, 20, 20)
        moved = (encoder.encode(changed).patches[0] - plain).norm(dim=1)
        assert int(moved.argmax()) == row * 7 + column


def test_a_configuration_without_images_is_refused(images, tmp_path):
    with pytest.raises(UsageError, match="embed\\(\\) makes features of images, and this is a toy"):
        embed(images, tmp_path / "derived", load_config("drift-toy"))
    assert not (tmp_path / "derived").exists()


def test_a_second_run_makes_nothing(images, tmp_path):
    config = load_config("demo")
    first = embed(images, tmp_path / "derived", config)
    before = digests(tmp_path / "derived")
    second = embed(images, tmp_path / "derived", config)
    assert first.made == dict.fromkeys(STAGES, 8) and second.made == dict.fromkeys(STAGES, 0)
    assert digests(tmp_path / "derived") == before


def test_passes_may_be_run_one_by_one(images, tmp_path):
    config = load_config("demo")
    for stage in ("t5", "dinov3", "vae"):
        embed(images, tmp_path / "apart", config, [stage])
    embed(images, tmp_path / "together", config)
    assert digests(tmp_path / "apart") == digests(tmp_path / "together")


def test_an_edited_caption_redoes_its_text_and_an_edited_image_its_pictures(images, tmp_path):
    config, derived = load_config("demo"), tmp_path / "derived"
    embed(images, derived, config)
    min(images.glob("*.txt")).write_text("a blue square at the top, a black background")
    assert embed(images, derived, config).made == {"dinov3": 0, "vae": 0, "t5": 1}
    path = max(images.glob("*.png"))
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    assert embed(images, derived, config).made == {"dinov3": 1, "vae": 1, "t5": 0}


def test_a_lost_feature_file_is_made_again(images, tmp_path):
    config, derived = load_config("demo"), tmp_path / "derived"
    embed(images, derived, config)
    before = digests(derived)
    min((derived / "dinov3_patches").iterdir()).unlink()
    assert embed(images, derived, config).made["dinov3"] == 1
    assert digests(derived) == before


@pytest.mark.row(2)
def test_a_file_without_a_journal_line_does_not_count(images, tmp_path):
    """Row 2: killed between the feature and its journal line."""
    config, derived = load_config("demo"), tmp_path / "derived"
    embed(images, derived, config)
    before = digests(derived)
    rows = (derived / "journal.rows").read_bytes()
    (derived / "journal.rows").write_bytes(rows[: -2 * ROW.itemsize - 20])
    assert sum(embed(images, derived, config).made.values()) == 3
    assert digests(derived) == before
    assert verify(derived).faults == []


def test_a_row_is_never_glued_to_half_a_row(tmp_path):
    """Row 2: the next writer of the journal may be another part, which does not know that one was killed."""
    store, records = FeatureStore(tmp_path), [Record(f"r{i}", f"r{i}", "", "used", caption=str(i)) for i in range(3)]
    for record in records[:2]:
        store.append_journal("t5", [record])
    journal = tmp_path / "journal.rows"
    journal.write_bytes(journal.read_bytes()[:-30])
    store.append_journal("t5", [records[2]])
    assert store.read_journal().knows("t5", records).tolist() == [True, False, True]


def test_a_row_that_lost_its_beginning_or_its_end_does_not_count(tmp_path):
    store, records = FeatureStore(tmp_path), [Record(f"r{i}", f"r{i}", "", "used", caption=str(i)) for i in range(4)]
    store.append_journal("t5", records)
    rows = bytearray((tmp_path / "journal.rows").read_bytes())
    rows[ROW.itemsize : ROW.itemsize + 8] = bytes(8)  # a sector that was not written before the power went
    rows[3 * ROW.itemsize - 8 : 3 * ROW.itemsize] = bytes(8)
    (tmp_path / "journal.rows").write_bytes(rows)
    assert store.read_journal().current("t5", records).tolist() == [True, False, False, True]


def test_of_two_rows_the_later_counts_whichever_file_it_stands_in(tmp_path, monkeypatch):
    first, record = FeatureStore(tmp_path, Part(1, 2)), Record("r", "r", "", "used", caption="new")
    for seconds, part, caption in ((30, Part(0, 2), "new"), (20, Part(1, 2), "old"), (10, Part(1, 2), "older")):
        monkeypatch.setattr(journal.time, "time", lambda now=seconds: now)
        FeatureStore(tmp_path, part).append_journal("t5", [replace(record, caption=caption)])
    assert first.read_journal().current("t5", [record]).all() and len(first.read_journal()) == 1


def test_a_plain_run_takes_over_what_parts_entered_and_drops_what_is_stale_or_gone(tmp_path):
    records = [Record(f"r{i}", f"r{i}", "", "used", caption=str(i)) for i in range(4)]
    for index in (0, 1):
        FeatureStore(tmp_path, Part(index, 2)).append_journal("t5", records[index::2])
    changed = [replace(records[0], caption="another"), *records[1:3]]
    assert len(FeatureStore(tmp_path, Part(0, 2)).prune_journal(changed)) == 3  # a part does not know the others
    assert len(FeatureStore(tmp_path).prune_journal(changed)) == 2
    assert [path.name for path in tmp_path.glob("journal*")] == ["journal.rows"]


def test_a_journal_of_json_lines_is_read_and_taken_over(images, tmp_path):
    config, derived = load_config("demo"), tmp_path / "derived"
    embed(images, derived, config)
    store, before = FeatureStore(derived), digests(derived)
    records = [record for record in store.read_records() if record.used]
    (derived / "journal.rows").unlink()
    lines = [
        {"stage": stage, "made": {r.id: {"source": journal.source_of(stage, r), "files": {}} for r in records}}
        for stage in ("dinov3", "vae")
    ]
    lines += [{"id": r.id, "stage": "t5", "source": journal.source_of("t5", r)} for r in records[1:]]  # of 0.1
    (derived / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(store.read_journal()) == 3 * len(records) - 1
    assert embed(images, derived, config).made == {"dinov3": 0, "vae": 0, "t5": 1}
    assert digests(derived) == before and not (derived / "journal.jsonl").exists()


def test_a_stale_line_is_gone_before_its_features_are_made_again(images, tmp_path):
    """Or it would vouch for the wrong features, were the run killed and the edit undone."""
    config, derived = load_config("demo"), tmp_path / "derived"
    embed(images, derived, config, ["t5"])
    caption = min(images.glob("*.txt"))
    before = caption.read_text()
    caption.write_text("a blue square at the top, a black background")
    store = FeatureStore(derived)
    pruned = store.prune_journal(record for record in scan(images, config.data.bucket_sizes()) if record.used)
    assert len(pruned) == 7
    caption.write_text(before)
    assert embed(images, derived, config, ["t5"]).made == {"t5": 1}


def test_features_of_another_encoder_or_bucket_list_are_not_mixed(images, tmp_path):
    """Row 48."""
    derived = tmp_path / "derived"
    embed(images, derived, load_config("demo"))
    with pytest.raises(BadDataError, match=r"text\.max_tokens: 7 here, 512 there"):
        embed(images, derived, load_config("demo", ["encoders.max_text_tokens=7"]))
    with pytest.raises(BadDataError, match="buckets"):
        embed(images, derived, load_config("demo", ["data.area=256x256"]))


def test_a_truncated_image_is_refused_with_its_reason_and_the_others_go_on(images, tmp_path):
    """Row 28."""
    path = min(images.glob("*.png"))
    path.write_bytes(path.read_bytes()[:-200])
    done = embed(images, tmp_path / "derived", load_config("demo"))
    refused = [record for record in done.records if not record.used]
    assert [record.name for record in refused] == [path.stem] and refused[0].reason and len(done.used) == 7
    again = embed(images, tmp_path / "derived", load_config("demo"))
    assert [record.reason for record in again.records if not record.used] == [refused[0].reason]


@pytest.mark.row(13)
def test_a_second_writer_is_turned_away(images, tmp_path):
    """Row 13."""
    derived = tmp_path / "derived"
    derived.mkdir()
    with (
        held(f"writer_lock(Path({str(derived)!r}), Part())") as holder,
        pytest.raises(StorageError, match=f"process {holder.pid}"),
    ):
        embed(images, derived, load_config("demo"))
    embed(images, derived, load_config("demo"), ["t5"])  # row 14: a dead owner holds nothing


def test_keys_are_safe_and_names_are_kept(tmp_path):
    """Rows 45 and 46."""
    names = ["img.v1.2", "../../etc/passwd", "a/b", "naïve", "x" * 300, "", "line\nbreak"]
    keys = [safe_key(name) for name in names]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,100}", key) for key in keys)
    assert safe_key("scene-0001") == "scene-0001"


def test_every_feature_has_its_own_folder_and_member():
    assert len({feature.name for feature in FEATURES}) == len({feature.member for feature in FEATURES}) == len(FEATURES)


def test_records_say_where_each_input_went(images, tmp_path):
    (images / "notes.txt").write_text("a caption without an image")
    (images / "broken.png").write_bytes(b"<html>not found</html>")
    (images / "broken.txt").write_text("a page")
    embed(images, tmp_path / "derived", load_config("demo"))
    rows = [json.loads(line) for line in (tmp_path / "derived" / "records.jsonl").read_text().splitlines()]
    status = {row["name"]: (row["status"], row.get("reason", "")) for row in rows}
    assert status["broken"][0] == "refused" and status["broken"][1]
    assert sum(state == "used" for state, _ in status.values()) == 8


# Identity and rebuilding


def test_a_refusal_names_the_command_that_rebuilds_only_what_is_stale(images, tmp_path):
    """Row 48."""
    derived = tmp_path / "derived"
    embed(images, derived, load_config("demo"))
    commands = {
        "encoders.max_text_tokens=7": "dit embed --pass t5 --rebuild",
        "data.patch_storage=int8": "dit embed --pass dinov3 --rebuild",
        "data.area=256x256": "dit embed --pass dinov3 --pass vae --rebuild",
    }
    for override, command in commands.items():
        with pytest.raises(BadDataError) as refused:
            embed(images, derived, load_config("demo", [override]))
        assert command + "," in refused.value.hint


def test_that_command_remakes_it_and_nothing_else(images, tmp_path):
    derived = tmp_path / "derived"
    embed(images, derived, load_config("demo"))
    changed = load_config("demo", ["encoders.max_text_tokens=7", "data.patch_storage=int8"])
    with pytest.raises(BadDataError):
        embed(images, derived, changed, ["t5"], rebuild=True)  # the storage is not this pass's to change
    done = embed(images, derived, changed, ["dinov3", "t5"], rebuild=True)
    assert done.made == {"dinov3": 8, "t5": 8}
    embed(images, tmp_path / "fresh", changed)
    assert digests(derived) == digests(tmp_path / "fresh") and verify(derived).faults == []
    assert embed(images, derived, changed).made == dict.fromkeys(STAGES, 0)


def test_another_bucket_list_remakes_only_images_whose_bucket_changes(images, tmp_path):
    derived, wide = tmp_path / "derived", load_config("demo", ["data.area=None", 'data.buckets=["128x128", "160x96"]'])
    embed(images, derived, wide)
    buckets = [record.bucket for record in FeatureStore(derived).read_records()]
    square = load_config("demo", ["data.area=None", 'data.buckets=["128x128"]'])
    done = embed(images, derived, square, ["dinov3", "vae"], rebuild=True)
    assert 0 < buckets.count("160x96") < 8
    assert done.made == dict.fromkeys(("dinov3", "vae"), buckets.count("160x96"))


def test_rebuild_without_a_difference_remakes_the_pass(images, tmp_path):
    derived, config = tmp_path / "derived", load_config("demo")
    embed(images, derived, config)
    before = digests(derived)
    damaged = min((derived / "vae_latents").iterdir())
    damaged.write_bytes(b"damage")
    assert embed(images, derived, config, ["vae"], rebuild=True).made == {"vae": 8}
    assert digests(derived) == before


def test_a_rebuild_that_cannot_load_its_encoder_drops_nothing(images, tmp_path):
    derived = tmp_path / "derived"
    embed(images, derived, load_config("demo"))
    before = digests(derived)
    with pytest.raises(WeightsMissingError):
        embed(images, derived, load_config("demo", ["encoders.image=/no/such/folder"]), ["dinov3"], rebuild=True)
    assert digests(derived) == before and embed(images, derived, load_config("demo")).made == dict.fromkeys(STAGES, 0)


def test_missing_weights_of_a_later_pass_are_told_before_the_first_begins(images, tmp_path):
    with pytest.raises(WeightsMissingError, match=r"encoders\.text"):
        embed(images, tmp_path / "derived", load_config("demo", ["encoders.text=/no/such/folder"]))
    assert digests(tmp_path / "derived") == {}


# Estimate and disk


def test_the_estimate_is_what_embedding_then_takes_and_makes_nothing(images, tmp_path):
    derived, config = tmp_path / "derived", load_config("demo")
    found = estimate(images, derived, config)
    assert (
        not derived.exists()
        and set(found.seconds) == set(STAGES)
        and all(value >= 0 for value in found.seconds.values())
    )
    embed(images, derived, config)
    for feature in ("dinov3", "dinov3_patches", "vae_latents"):
        taken = sum(-(-path.stat().st_size // 4096) * 4096 for path in (derived / feature).iterdir())
        assert sum(row.bytes for row in found.rows if row.feature == feature) == taken
    assert estimate(images, derived, config).bytes == 0


@pytest.mark.parametrize("storage", ["fp16", "fp32", "int8", "pooled"])
def test_the_size_of_patches_is_known_for_every_storage(images, tmp_path, storage):
    derived, config = tmp_path / "derived", load_config("demo", [f"data.patch_storage={storage}", "data.area=256x256"])
    expected = sum(
        row.bytes for row in estimate(images, derived, config, ["dinov3"]).rows if row.feature == "dinov3_patches"
    )
    embed(images, derived, config, ["dinov3"])
    assert sum(-(-path.stat().st_size // 4096) * 4096 for path in (derived / "dinov3_patches").iterdir()) == expected
    assert verify(derived, ["dinov3"]).faults == []


def test_embedding_does_not_begin_on_a_disk_that_will_not_do(images, tmp_path, monkeypatch, dit):
    """Row 9."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    run = dit("embed", images, "--preset", "demo", "--out", tmp_path / "derived")
    assert run.code == 5 and re.search(r"needs \d+\.\d kB and the disk has 10\.0 kB free", run.err)
    assert digests(tmp_path / "derived") == {}


def test_the_counts_add_up(images, tmp_path, dit):
    (images / "broken.png").write_bytes(b"<html>")
    (images / "broken.txt").write_text("a page")
    first = json.loads(
        dit("embed", images, "--preset", "demo", "--out", tmp_path / "derived", "--part", "0/2", "--json").out
    )
    assert first["inputs"] == first["used"] + first["refused"] == 9 and sum(first["reasons"].values()) == 1
    assert all(first["made"][stage] + first["kept"][stage] + first["left"][stage] == first["used"] for stage in STAGES)


def test_pictures_with_profiles_that_an_older_version_ignored_are_made_again(images, tmp_path):
    """Its journal names their bytes and bucket, not the colours that they were brought to."""
    from tests.data.source.test_colour_profiles import P3

    path, derived = min(images.glob("*.png")), tmp_path / "derived"
    Image.open(path).save(path, icc_profile=P3)
    embed(images, derived, load_config("demo"))
    store = FeatureStore(derived)
    (derived / "journal.rows").unlink()
    for stage in STAGES:
        store.append_journal(stage, [replace(record, flags=()) for record in store.read_records()])
    assert embed(images, derived, load_config("demo")).made == {"dinov3": 1, "vae": 1, "t5": 0}
