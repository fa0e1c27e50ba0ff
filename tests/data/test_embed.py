"""Embedding: everything is made once, edits are noticed, nothing is mixed, nothing is half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dittool.config.load import load_config
from dittool.data.buckets import Bucket
from dittool.data.embed import embed
from dittool.data.features import FeatureStore
from dittool.data.records import FEATURES, IMAGE_CLS, IMAGE_PATCHES, LATENT, STAGES, TEXT, safe_key
from dittool.data.scan import load_pixels
from dittool.encoders.image import load_image_encoder
from dittool.encoders.vae import load_codec
from dittool.errors import BadDataError, StorageError


@pytest.fixture
def images(tiny_shards, tmp_path):
    """Eight drawn images, free to be edited."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted(tiny_shards.images.iterdir())[:16]:
        shutil.copy(path, folder)
    return folder


def digests(derived):
    return {str(path.relative_to(derived)): path.read_bytes() for path in derived.rglob("*.npy")}


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
    """Changing one block of pixels moves its own token most: registers are not taken for patches, rows not for columns."""
    encoder = load_image_encoder("builtin:dinov3", "fp32")
    assert encoder.registers == 4
    image = np.full((1, 80, 112, 3), 128, np.uint8)
    plain = encoder.encode(image).patches[0]
    for row, column in ((0, 0), (0, 6), (2, 3), (4, 0), (4, 6)):
        changed = image.copy()
        changed[:, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = (250, 20, 20)
        moved = (encoder.encode(changed).patches[0] - plain).norm(dim=1)
        assert int(moved.argmax()) == row * 7 + column


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


def test_a_file_without_a_journal_line_does_not_count(images, tmp_path):
    """Row 2: killed between the feature and its journal line."""
    config, derived = load_config("demo"), tmp_path / "derived"
    embed(images, derived, config)
    before = digests(derived)
    journal = (derived / "journal.jsonl").read_text().splitlines(keepends=True)
    (derived / "journal.jsonl").write_text("".join(journal[:-3]) + journal[-3][:20])
    assert sum(embed(images, derived, config).made.values()) == 3
    assert digests(derived) == before


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


def test_values_that_do_not_fit_float16_are_named(tmp_path):
    """Row 47."""
    store = FeatureStore(tmp_path)
    with pytest.raises(BadDataError, match="x: vae_latents has 2 values that are not finite in fp16"):
        store.write(LATENT, "x", np.array([1.0, 1e6, np.nan]))
    assert not list(tmp_path.rglob("*.npy"))


def test_a_second_writer_is_turned_away(images, tmp_path):
    """Row 13."""
    from dittool.storage import folder_lock

    derived = tmp_path / "derived"
    derived.mkdir()
    code = f"""
import time
from pathlib import Path
from dittool.storage import folder_lock
with folder_lock(Path({str(derived)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match=f"process {holder.pid}"):
            embed(images, derived, load_config("demo"))
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with folder_lock(derived):  # row 14: a dead owner holds nothing
        pass


def test_killed_at_any_write_the_next_run_completes_with_the_same_bytes(images, tmp_path):
    """Rows 1 and 2: the process dies at its n-th rename."""
    config = load_config("demo")
    embed(images, tmp_path / "whole", config)
    code = """
import os, sys
from pathlib import Path
from dittool.config.load import load_config
from dittool.data.embed import embed
left = int(sys.argv[3])
def hook(event, arguments):
    global left
    if event == "os.rename":
        left -= 1
        if left == 0:
            os._exit(9)
sys.addaudithook(hook)
embed(Path(sys.argv[1]), Path(sys.argv[2]), load_config("demo"), ["vae", "t5"])
"""
    for dies_at in (1, 4, 9, 15, 20):
        derived = tmp_path / f"killed{dies_at}"
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        run = subprocess.run([sys.executable, "-c", code, str(images), str(derived), str(dies_at)], env=environment, check=False)
        assert run.returncode == 9
        embed(images, derived, config)
        assert digests(derived) == digests(tmp_path / "whole")
        assert not list(derived.rglob(".tmp-*"))


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
