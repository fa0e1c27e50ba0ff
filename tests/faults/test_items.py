"""Rows 40, 47 and 48: what changes under the reader, values that are not finite, features of something else."""

from __future__ import annotations

import hashlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dittool.data.identity import json_sha256
from dittool.encoders.builtin import BlockDCT
from tests.data.source.picture_files import BLUE, RED
from tests.faults.files import files_of, flat, near

NOT_A_NUMBER = np.float16(np.nan).tobytes()


GOOD = {"scene-0001", "scene-0002", "scene-0003"}


# --- row 40: what changes ---


@pytest.mark.row(40)
def test_an_image_replaced_between_listing_and_reading_is_refused_and_made_by_the_next_run(desk, monkeypatch):
    victim = desk.put("victim.png", flat(RED, (77, 99)))
    real = Image.open

    def open_then_replace(*arguments, **options):
        image = real(*arguments, **options)
        if image.size == (77, 99):  # its header has been judged; its pixels are read later
            victim.write_bytes(flat(BLUE, (90, 80)))
        return image

    monkeypatch.setattr(Image, "open", open_then_replace)
    done = desk.embed()
    assert done.reasons["victim"].removeprefix("decode:") == "changed"
    done.lost_nothing(**done.reasons)
    assert near(desk.embed().lost_nothing().colour("victim"), BLUE)


@pytest.mark.row(40)
def test_an_image_edited_between_two_runs_is_made_again_and_the_others_are_not(desk):
    desk.put("edited.png", flat(RED))
    desk.embed().lost_nothing()
    desk.put("edited.png", flat(BLUE))
    done = desk.embed().lost_nothing()
    assert done.answer["made"] == {"dinov3": 1, "vae": 1, "t5": 0} and near(done.colour("edited"), BLUE)


# --- row 47: values that are not finite ---


@pytest.mark.row(47)
def test_an_image_whose_features_are_nan_is_refused_by_name_and_the_others_go_on(desk, monkeypatch):
    desk.put("poison.png", flat(RED))
    real = BlockDCT.encode

    def encode(codec, pixels):
        latents = real(codec, pixels)
        latents[torch.from_numpy((pixels == np.array(RED, np.uint8)).all(axis=(1, 2, 3)))] = torch.nan
        return latents

    monkeypatch.setattr(BlockDCT, "encode", encode)
    done = desk.embed()
    assert done.outcome.code == 0 and list(done.reasons) == ["poison"] and "vae" in done.reasons["poison"]
    assert not (done.folder / "vae_latents/poison.npy").exists() and not (done.folder / "t5_hidden/poison.npy").exists()
    assert all(np.isfinite(np.load(path)).all() for path in done.folder.rglob("*.npy"))
    assert {path.stem for path in (done.folder / "vae_latents").iterdir()} == set(GOOD)
    packed = desk.run("shard", done.folder, "--out", desk.root / "shards", "--holdout", "0")
    assert packed.code == 0 and "3 training samples" in packed.out


def poisoned(shards):
    """One value of one latent becomes NaN, and every checksum is put right again."""
    index = json.loads((shards / "index.json").read_text())
    for row in index["shards"]:
        path = shards / row["path"]
        places = json.loads(path.with_suffix(".members.json").read_text())
        raw = bytearray(path.read_bytes())
        for members in places.values():
            offset, size = members["vae.npy"]
            raw[offset + size - 2 : offset + size] = NOT_A_NUMBER
        path.write_bytes(raw)
        row["sha256"] = hashlib.sha256(raw).hexdigest()
    (shards / "index.json").write_text(json.dumps(index))
    return shards


@pytest.mark.row(47)
def test_nan_in_shards_whose_checksums_are_right_is_found_by_verify_and_audit(desk, shards):
    verified = desk.run("shard", "--verify", "--out", poisoned(shards), "--json")
    assert verified.code == 1 and all(
        "1 values that are not finite" in fault["what"] for fault in json.loads(verified.out)["faults"]
    )
    audited = desk.run("audit", shards, "--select", "D6", "--json")
    findings = json.loads(audited.out)["findings"]
    assert audited.code == 1 and any(one["status"] == "fail" and "vae" in one["evidence"] for one in findings)


@pytest.mark.row(47)
def test_training_on_nan_stops_before_it_spoils_the_weights(desk, shards, tiny_shards, one_error):
    options = [part for override in tiny_shards.overrides for part in ("-s", override)]
    stopped = desk.run("train", "--preset", "demo", "--data", poisoned(shards), "--out", desk.root / "run", *options)
    one_error(stopped, 6, "nan", "stopped before the update", "Samples: ")
    assert not list((desk.root / "run").rglob("*.pt"))


# --- row 48: features of something else ---


@pytest.mark.row(48)
def test_features_of_another_encoder_crop_or_bucket_list_are_not_mixed_in(desk, one_error):
    done = desk.embed().lost_nothing()
    before = files_of(done.folder)
    refusals = {
        "encoders.max_text_tokens=7": "max_tokens: 7 here, 512 there",
        "data.area=256x256": "buckets",
        'encoders.dtype="bf16"': "bf16",
    }
    for override, word in refusals.items():
        refused = desk.embed("-s", override)
        one_error(refused.outcome, 3, str(done.folder), word)
        unlocked = {name: raw for name, raw in files_of(done.folder).items() if name != ".lock"}
        assert {name for name, raw in unlocked.items() if before.get(name) != raw} <= {"resolved.toml", "journal.rows"}
    desk.embed().lost_nothing()


@pytest.mark.row(48)
@pytest.mark.parametrize("feature", ["dinov3", "vae_latents", "t5_hidden"])
def test_a_feature_of_another_width_is_not_packed_among_the_others(desk, one_error, feature):
    done = desk.embed().lost_nothing()
    path = done.folder / feature / "scene-0002.npy"
    array = np.load(path)
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate([array, array], axis=-1 if feature == "t5_hidden" else 0))
    path.write_bytes(buffer.getvalue())
    one_error(desk.run("shard", done.folder, "--out", desk.root / "shards"), 3, "scene-0002")


@pytest.mark.row(48)
def test_shards_of_another_identity_do_not_continue_a_run(desk, shards, tiny_run, one_error):
    run = shutil.copytree(tiny_run, desk.root / "run")
    index = json.loads((shards / "index.json").read_text())
    index["identity"]["encoders"]["vae"]["weights"] = "0" * 64
    index["identity_hash"] = json_sha256(index["identity"])
    (shards / "index.json").write_text(json.dumps(index))
    one_error(
        desk.run("train", "--resume", "--out", run, "--data", shards, "-s", "train.steps=9"),
        3,
        "another identity",
        "encoders.vae.weights",
    )
